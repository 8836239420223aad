"""What of an exam or another table is in the training rows."""
