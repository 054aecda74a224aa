"""Grammar for a small model without an adapter: what its replies may look like."""
