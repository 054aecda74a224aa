"""The same scores by plain automatic differentiation, as a textbook would write them."""
