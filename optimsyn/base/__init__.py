"""What every room may use: errors, secrets, files, tables. Knows nothing of recipes, models or runs."""
