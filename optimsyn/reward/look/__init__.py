"""A look at the reward: measured on a few pairs before the run spends anything on it."""
