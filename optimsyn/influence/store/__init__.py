"""A store of compressed directions: process a pool once, score it for many question sets."""
