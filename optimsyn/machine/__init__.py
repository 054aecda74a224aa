"""What this machine can do, and what would stop a run on it."""
