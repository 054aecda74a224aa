"""The optimisers: GEPA on the guiding text, GRPO on the rubric model."""
