"""The typed recipe: the one contract of the command line, the notebooks and the library."""
