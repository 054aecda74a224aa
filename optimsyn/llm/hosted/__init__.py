"""Models behind an HTTP service, and what is known and learned of such services."""
