"""Secrets: how they are found, and taken out of whatever is shown or written."""
