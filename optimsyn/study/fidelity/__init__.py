"""Does influence predict training? Scores against real training."""
