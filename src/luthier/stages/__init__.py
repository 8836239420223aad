"""One stage from rows to scores. This is where training and evaluation meet; neither imports the other."""
