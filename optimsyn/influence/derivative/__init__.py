"""Influence as a derivative of a sample's own loss: forward mode and twin adapters."""
