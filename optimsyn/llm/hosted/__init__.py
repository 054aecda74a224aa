"""Models behind an HTTP service: requests, errors, capabilities, prices and batches."""
