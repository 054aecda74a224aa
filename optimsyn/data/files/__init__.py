"""Reads rows and texts from files, folders, archives and hub datasets."""
