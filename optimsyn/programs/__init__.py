"""DSPy programs: guiding text, rubric, pair, and the validity checks of a pair."""
