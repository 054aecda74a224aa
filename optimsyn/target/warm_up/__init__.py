"""The warm-up of a target: training, its rules and its checkpoints."""
