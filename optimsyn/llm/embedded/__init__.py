"""The model that comes with optimsyn, and its server."""
