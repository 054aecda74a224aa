"""Documents, passages, questions, splits, the sample format and the export."""
