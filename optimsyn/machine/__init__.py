"""Checks of this machine, and of a recipe on it before it runs."""
