"""Influence: what one training step on a pair would do for the validation questions."""
