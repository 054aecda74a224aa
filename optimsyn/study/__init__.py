"""Experiments: whether influence is true, and what it sees."""
