"""Language models of transformers in this process."""
