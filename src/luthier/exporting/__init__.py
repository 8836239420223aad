"""What leaves a run for the machines of others: adapters, whole models, GGUF, Ollama and Space folders, each proved."""
