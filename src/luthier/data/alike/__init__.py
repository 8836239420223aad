"""How rows are told to be the same, and what only looks so."""
