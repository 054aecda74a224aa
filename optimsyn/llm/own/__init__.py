"""A generator of somebody's own: any object with one method."""
