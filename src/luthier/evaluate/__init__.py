"""Held-out items scored with a trained model."""
