"""What is read: documents, passages, questions and their splits; the records that everything is kept in."""
