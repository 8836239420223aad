"""Raw records to rows and back, one module per family of formats."""
