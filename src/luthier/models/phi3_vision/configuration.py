"""Settings of Phi-3-vision: a Phi-3 decoder, a CLIP encoder, and how pictures become vectors.

The published config.json loads as it is. Decisions:
* `rope_scaling.type` "su" is what transformers calls "longrope": the short factors for sequences of up to
  `original_max_position_embeddings` tokens, the long ones beyond, and cosines and sines times
  sqrt(1 + ln(max_position / original) / ln(original)), 1.1902 for 131,072 over 4,096.
* Without `vision_config`, which the published file has not, the encoder is CLIP ViT-L/14-336 with quick-GELU. A saved
  config.json has one.
* Only what Phi-3-vision and Phi-3.5-vision are is known: HD transform with learned separators, tiles before the whole
  picture ("sub_glb"), an MLP as projector, patches of the encoder's last layer but one. Anything else is refused.
"""

from __future__ import annotations

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig, Phi3Config, PreTrainedConfig

CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""openai/clip-vit-large-patch14-336."""
EMBEDDING = {
    "embedding_cls": "image",
    "hd_transform_order": "sub_glb",
    "projection_cls": "mlp",
    "use_hd_transform": True,
    "with_learnable_separator": True,
}
ENCODER = {"name": "clip_vision_model", "layer_idx": -2, "type_feature": "patch"}
"""The one value that we know of each of these settings of `img_processor`; the last two are left out in the file."""


@strict
class Phi3VConfig(Phi3Config):
    """`embd_layer` and `img_processor` are as in the published file; `vision_config` gives the encoder's sizes."""

    model_type = "phi3_v"
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {"vision_config": CLIPVisionConfig}

    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 131072
    eos_token_id: int | list[int] | None = 2
    sliding_window: int | None = 131072
    embd_layer: dict[str, Any] | None = None
    img_processor: dict[str, Any] | None = None
    vision_config: dict[str, Any] | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = CLIPVisionConfig(**{**CLIP_L_336, **(self.vision_config or {})})
        sight: Any = self.vision_config
        self.embd_layer = {**EMBEDDING, **(self.embd_layer or {})}
        self.img_processor = {
            "image_dim_out": sight.hidden_size,
            "model_name": "openai/clip-vit-large-patch14-336",
            "name": "clip_vision_model",
            "num_img_tokens": (sight.image_size // sight.patch_size // 2) ** 2,
            **(self.img_processor or {}),
        }
        super().__post_init__(**kwargs)

    def convert_rope_params_to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Adds what transformers wants to know of long-rope and the published file says beside it, or not at all."""
        found = kwargs.get("rope_scaling") or self.rope_parameters
        if found:
            found = dict(found)
            kind = found.pop("type", None)
            found["rope_type"] = found.get("rope_type") or kind or "default"
            if found["rope_type"] in ("su", "longrope"):
                found["rope_type"] = "longrope"
                found.setdefault("original_max_position_embeddings", self.original_max_position_embeddings)
                found.setdefault("factor", self.max_position_embeddings / self.original_max_position_embeddings)
            kwargs["rope_scaling"] = found
        converted: dict[str, Any] = super().convert_rope_params_to_dict(*args, **kwargs)
        return converted

    def validate_architecture(self) -> None:
        """Refuses what is not Phi-3-vision, naming the setting."""
        sight: Any = self.vision_config
        embedding, encoder = self.embd_layer or {}, self.img_processor or {}
        side, rest = divmod(sight.image_size, sight.patch_size)
        known = {
            **{f"embd_layer.{key}": (embedding.get(key), value) for key, value in EMBEDDING.items()},
            **{f"img_processor.{key}": (encoder.get(key, value), value) for key, value in ENCODER.items()},
            "img_processor.image_dim_out": (encoder["image_dim_out"], sight.hidden_size),
            "img_processor.num_img_tokens": (encoder["num_img_tokens"], (side // 2) ** 2),
            "vision_config.image_size, in whole pairs of patches": (rest + side % 2, 0),
        }
        for name, (found, wanted) in known.items():
            if found != wanted:
                raise ValueError(f"config.json: {name} is {found!r}; Phi-3-vision is known with {wanted!r} alone")
