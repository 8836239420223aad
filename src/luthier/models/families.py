"""Facts of a model family: where its decoder is, and for one that hears, how sound goes in.

Shapes: B rows, L tokens, D model width, T mel frames, F mel bins, S sound tokens.

Phi-4-multimodal, as transformers has it natively, has two properties that shape this file:
* `Phi4MultimodalModel.forward` puts sound in only when it is given `input_ids`. Anything that passes
  `inputs_embeds` (PEFT's prompt tuning does) makes the model deaf without an error. We therefore put the sound
  in ourselves and always pass `inputs_embeds`: one path for live and for cached features.
* Its encoder adds the padding mask to the attention scores instead of masking with it, so a clip padded in a
  batch differs from the same clip alone. Every recording is therefore padded with silence to a multiple of
  `SOUND_QUANTUM` samples, a function of the recording alone, and only recordings of equal length share a call.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.errors import RequestError

SAMPLE_RATE = 16_000
SOUND_QUANTUM = 10_240
"""Samples (0.64 s): recordings are padded with silence to a multiple of it."""


@dataclass(frozen=True, kw_only=True)
class TextFamily:
    """What tuning on text must know of an architecture. Names of modules are relative to the bare model."""

    name: str
    decoder_pattern: str
    """Attention and MLP projections, anchored at the decoder's layers: lists of names leak into encoders.
    Empty where we do not know the architecture."""
    frozen: tuple[str, ...] = ()
    """Prefixes of what is not the decoder: parts that see and hear, tuned only where the recipe names them (`parts`),
    and such as no input passes through."""

    @property
    def closed(self) -> tuple[str, ...]:
        """Prefixes of parts that LoRA must stay out of."""
        return self.frozen


@dataclass(frozen=True, kw_only=True)
class Family(TextFamily):
    """An architecture that judges recordings."""

    revision: str
    """The hub revision with the native layout."""
    encoder: str
    projector: tuple[str, ...]

    @property
    def closed(self) -> tuple[str, ...]:
        return (self.encoder, *self.projector, *self.frozen)

    def audio_token_id(self, model: Any) -> int:
        """The id whose positions are filled with sound."""
        return int(model.config.audio_config.audio_token_id)

    def mel(self, extractor: Any, waveform: NDArray[np.float32]) -> torch.Tensor:
        """(samples,) at 16 kHz -> (T, F) log-mel, from the family's own extractor on this recording alone."""
        padded = np.zeros(-(-len(waveform) // SOUND_QUANTUM) * SOUND_QUANTUM, dtype=np.float32)
        padded[: len(waveform)] = waveform
        found = extractor([padded], sampling_rate=SAMPLE_RATE, return_tensors="pt")
        features: torch.Tensor = found["audio_input_features"][0]
        return features.to(torch.float32)

    def sound_tokens(self, model: Any, frames: int) -> int:
        """How many positions a recording of `frames` mel frames takes in the prompt."""
        config = model.config.audio_config
        return -(-frames // (config.time_reduction * config.downsample_rate))

    def encode_sound(self, model: Any, mel_BTF: torch.Tensor, mode: str = "speech") -> torch.Tensor:
        """Recordings of one length -> (B, S, D), through encoder and projector: that of `vision_speech` is for sound
        beside a picture."""
        audio = model.model.embed_tokens_extend.audio_embed
        up, down = (getattr(audio, f"{way}_proj_for_{mode}") for way in ("up", "down"))
        hidden = audio.encoder(mel_BTF.to(device=down.weight.device, dtype=down.weight.dtype), None)
        projected: torch.Tensor = down(torch.nn.functional.gelu(up(hidden)))
        return projected


_LAYERS = r"model\.((language|text)_model\.)?layers\.\d+\."
_SPLIT = _LAYERS + r"(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
_FUSED = _LAYERS + r"(self_attn\.(qkv_proj|o_proj)|mlp\.(gate_up_proj|down_proj))"

PHI4_MULTIMODAL = Family(
    name="phi4_multimodal",
    revision="refs/pr/70",
    decoder_pattern=_FUSED,
    encoder="model.embed_tokens_extend.audio_embed.encoder",
    projector=(
        "model.embed_tokens_extend.audio_embed.up_proj_for_speech",
        "model.embed_tokens_extend.audio_embed.down_proj_for_speech",
    ),
    frozen=(
        "model.embed_tokens_extend.image_embed",
        "model.embed_tokens_extend.audio_embed.up_proj_for_vision_speech",
        "model.embed_tokens_extend.audio_embed.down_proj_for_vision_speech",
    ),
)
FAMILIES = {PHI4_MULTIMODAL.name: PHI4_MULTIMODAL}

_SIGHT = ("model.vision_tower", "model.multi_modal_projector")
_SEEING = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), ("model.visual",)),
    **dict.fromkeys(("idefics3", "smolvlm"), ("model.vision_model", "model.connector")),
    "gemma3": _SIGHT,
    "llava_onevision": (*_SIGHT, "model.image_newline"),
}
"""What stands before the decoder, of families whose decoder has its projections apart."""
TEXT_FAMILIES = {
    family.name: family
    for family in (
        *(
            TextFamily(name=name, decoder_pattern=_SPLIT)
            for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
        ),
        *(TextFamily(name=name, decoder_pattern=_SPLIT, frozen=parts) for name, parts in _SEEING.items()),
        TextFamily(name="phi3", decoder_pattern=_FUSED),
        TextFamily(name="phi3_v", decoder_pattern=_FUSED, frozen=("model.vision_embed_tokens",)),
        TextFamily(name="phi4_multimodal", decoder_pattern=_FUSED, frozen=("model.embed_tokens_extend",)),
    )
}
"""By the model_type of config.json. Phi-4 (text) is a phi3."""


def family_of(model: Any) -> Family:
    """The family of a loaded model. Raises RequestError for one that verdicts do not support."""
    name = model.config.model_type
    if name not in FAMILIES:
        raise RequestError(
            f"model.base: architecture {name!r} cannot judge recordings", f"choose one of: {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def text_family_of(model: Any) -> TextFamily:
    """The family of a model that is tuned on text; one without a pattern for an architecture not in the table."""
    name = model.config.model_type
    return TEXT_FAMILIES.get(name, TextFamily(name=name, decoder_pattern=""))


def parameters_digest(model: torch.nn.Module, prefixes: tuple[str, ...] = ("",)) -> str:
    """sha256 over names, types, shapes and bytes of the state whose names begin with one of `prefixes`.

    The state of a quantised model is what is packed, with its scales.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name.startswith(prefixes):
            digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
