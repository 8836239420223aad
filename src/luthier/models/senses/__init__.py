"""What bases see and hear: one module per family, found by the model_type of config.json."""
