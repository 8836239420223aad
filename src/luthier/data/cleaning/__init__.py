"""The steps that a recipe can name."""
