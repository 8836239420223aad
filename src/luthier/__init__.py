"""Luthier: from raw domain data to a fine-tuned multimodal model that is measured and deployed.

Importing this package loads no torch, transformers, datasets, gradio or ray; each verb loads what it
needs when it is called. The verbs are in `luthier.verbs`, one function each.
"""

__version__ = "0.1.0"
