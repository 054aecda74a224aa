"""The pairs of a run: handed between stages, opened as a dataset, written for trainers."""
