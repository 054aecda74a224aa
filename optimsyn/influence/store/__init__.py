"""A store of compressed directions: score a pool once, ask it about many question sets."""
