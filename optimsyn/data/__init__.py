"""The data: documents, passages, questions and their splits, and the records."""
