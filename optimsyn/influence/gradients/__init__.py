"""Exact per-sample gradients, streamed layer by layer, and what is made of them."""
