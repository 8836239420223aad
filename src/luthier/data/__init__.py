"""Rows in, every one accounted for. No torch."""
