"""Secrets: detected, and removed from all output."""
