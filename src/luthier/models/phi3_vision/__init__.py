"""Phi-3-vision as transformers' own classes, without the remote code that its repository ships.

Written from the technical report (arXiv 2404.14219) and from figures that are published: the repository's config files,
the names and shapes of its safetensors, and the ids that its processor gives. Each module states what it decided.
Phi-3.5-vision has the same architecture with other factors and fewer tiles, and loads too.
"""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from luthier.models.phi3_vision.configuration import Phi3VConfig
from luthier.models.phi3_vision.modeling import Phi3VForCausalLM, Phi3VModel
from luthier.models.phi3_vision.processor import Phi3VImageProcessor, Phi3VProcessor

__all__ = ["Phi3VConfig", "Phi3VForCausalLM", "Phi3VImageProcessor", "Phi3VModel", "Phi3VProcessor", "register"]


def register() -> None:
    """Tell transformers' auto classes of model type "phi3_v". Done on import, and may be done again.

    A registered class goes before the code that `auto_map` of a config.json names, whether that code is trusted or not.
    """
    AutoConfig.register(Phi3VConfig.model_type, Phi3VConfig, exist_ok=True)
    AutoModel.register(Phi3VConfig, Phi3VModel, exist_ok=True)
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        auto.register(Phi3VConfig, Phi3VForCausalLM, exist_ok=True)
    AutoImageProcessor.register(Phi3VConfig, slow_image_processor_class=Phi3VImageProcessor, exist_ok=True)
    AutoProcessor.register(Phi3VConfig, Phi3VProcessor, exist_ok=True)


register()
