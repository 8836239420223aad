"""From sources to a sealed table, stage after stage, and the way of each row through it."""
