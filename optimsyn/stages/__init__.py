"""The stages of a run: plain functions that a notebook cell calls, cached and resumable."""
