"""Shared basics: errors, secrets, files, tables. Knows nothing of recipes, models or runs."""
