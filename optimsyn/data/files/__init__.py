"""Rows and texts out of files, folders, archives and hub datasets."""
