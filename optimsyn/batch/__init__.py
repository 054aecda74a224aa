"""Runs many recipes at once, on this machine or on a Ray cluster."""
