"""A look at the reward: measured on a few pairs of a run before anything is spent on it."""
