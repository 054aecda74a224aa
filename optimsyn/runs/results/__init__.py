"""Typed results: one model for each stage, with the table that shows it."""
