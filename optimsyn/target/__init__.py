"""The target: the model that the data is for, its encoding, its loss and its warm-up."""
