"""Which tokens of an answer bring its influence."""
