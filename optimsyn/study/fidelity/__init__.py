"""Is the influence true? Scores against real training."""
