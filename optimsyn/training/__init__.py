"""Fine-tuning, evaluation and bootstrap intervals."""
