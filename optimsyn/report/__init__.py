"""Views of a run: the report, tables, charts, the summary and comparisons."""
