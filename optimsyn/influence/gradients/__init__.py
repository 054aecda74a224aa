"""Exact per-sample gradients, streamed layer by layer, and their products."""
