"""Models, their adapters, and how a row becomes tensors."""
