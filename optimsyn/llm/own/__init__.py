"""Custom generators: any object with one method."""
