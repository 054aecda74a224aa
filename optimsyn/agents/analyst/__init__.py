"""The analyst: an agent whose whole work is a notebook of tool calls."""
