"""Experiments: whether influence predicts training, and what it responds to."""
