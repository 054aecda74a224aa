"""How rubrics and pairs are asked for: prompts, JSON schemas, and the DSPy adapter that sends them."""
