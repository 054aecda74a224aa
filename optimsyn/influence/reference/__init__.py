"""The same scores by plain automatic differentiation, as in a textbook."""
