"""The report of a run, one small page."""
