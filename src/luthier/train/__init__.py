"""The arithmetic of a run, the loop, and stage after stage."""
