"""The target: the model that learns from the data, its encoding, its loss and its warm-up."""
