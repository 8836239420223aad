"""What a recipe says of the model: the base, what of it is tuned, and how its weights are held.

Checks that need nothing but these keys are in `model_problems`. This module knows nothing of the task.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

TUNINGS = ("lora", "full")
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("", "nf4", "int8")
PARTS = ("language", "projector", "encoder")


@dataclass
class LoraSettings:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685). Adapters are always held in float32."""

    r: int = 16
    """Rank."""
    alpha: int = 32
    """Scale: the update is multiplied by alpha / r (by alpha / sqrt(r) with use_rslora)."""
    dropout: float = 0.05
    """Dropout on the adapter's input."""
    target_modules: str = ""
    """A regular expression over module names, or all-linear; empty takes the family's anchored decoder pattern."""
    parts: list[str] = field(default_factory=lambda: ["language"])
    """Chat: which parts of a base that sees or hears get adapters: language, projector, encoder. What is in none of
    parts, train_encoder and train_projector stays frozen."""
    use_rslora: bool = False
    """Rank-stabilised scale (Kalajdzievski 2023, arXiv 2312.03732)."""
    use_dora: bool = False
    """Magnitude and direction apart (Liu et al. 2024, arXiv 2402.09353)."""


@dataclass
class LearnedTokens:
    """Token embeddings that are trained: the read-out token, and a soft prompt before the sound."""

    readout: str = "<|verdict|>"
    """The token at whose position the verdict is read."""
    soft_prompt: int = 0
    """How many learned tokens stand before the sound (0: none)."""
    learning_rate: float = 1.0e-3
    """Their own learning rate; no weight decay applies to them."""


@dataclass
class ModelConfig:
    """The base model and what of it is tuned."""

    base: str = ""
    """A hub id, a local folder, or `toy:FAMILY`."""
    revision: str = ""
    """The hub revision; empty takes the family's pinned one, or the newest."""
    builtin_adapter: str = ""
    """A folder of the base (such as speech-lora) that is merged into it before tuning; empty: none."""
    dtype: str = "float32"
    """float32, bfloat16 or float16: how frozen weights are held and passes computed; what is trained stays float32."""
    quantization: str = ""
    """nf4 (QLoRA, Dettmers et al. 2023, arXiv 2305.14314) or int8 (LLM.int8, Dettmers et al. 2022) through
    bitsandbytes; empty: none. A base that is published quantised needs no key."""
    tuning: str = "lora"
    """lora, or full: every weight that the inputs pass through."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    modules_to_save: list[str] = field(default_factory=list)
    """With lora: modules that are trained whole and saved beside the adapter (such as lm_head)."""
    added_tokens: list[str] = field(default_factory=list)
    """Chat: tokens that join the tokenizer; with lora their rows alone are trained (trainable_token_indices),
    at learned_tokens.learning_rate."""
    learned_tokens: LearnedTokens = field(default_factory=LearnedTokens)
    train_encoder: bool = False
    """Tune the encoder of pictures or sound too (every weight of it). With tuning: full chats need it as well, or the
    encoder stays frozen."""
    train_projector: bool = False
    """Tune the projector between encoder and decoder too (every weight of it)."""
    max_tokens: int = 2048
    """Rows that are longer are dropped and counted (chat: see train.truncation)."""


def model_problems(model: ModelConfig) -> list[str]:
    """Everything wrong with these keys, as `key: reason (mend)` lines."""
    found = []
    if not model.base:
        found.append("model.base: missing (a hub id, a folder, or toy:phi4-multimodal)")
    if model.tuning not in TUNINGS:
        found.append(f"model.tuning: {model.tuning!r} is not lora or full")
    if model.dtype not in DTYPES:
        found.append(f"model.dtype: {model.dtype!r} is not one of {', '.join(DTYPES)}")
    if model.quantization not in QUANTIZATIONS:
        found.append(f"model.quantization: {model.quantization!r} is not nf4 or int8 (leave it empty for none)")
    if model.tuning == "full":
        for name in ("quantization", "modules_to_save"):
            if getattr(model, name):
                found.append(f"model.{name}: does not go with model.tuning: full (set model.tuning: lora, or empty it)")
    if model.dtype != "float32" and model.train_encoder != model.train_projector:
        found.append(
            f"model.train_encoder and model.train_projector: with {model.dtype} both or neither (float32 and "
            f"{model.dtype} modules would meet)"
        )
    strangers = [part for part in model.lora.parts if part not in PARTS]
    if strangers or not model.lora.parts:
        found.append(f"model.lora.parts: {model.lora.parts} is not a list of {', '.join(PARTS)}")
    if model.lora.r < 1:
        found.append(f"model.lora.r: {model.lora.r} is below 1")
    if model.lora.alpha <= 0:
        found.append(f"model.lora.alpha: {model.lora.alpha} is not above 0")
    if not 0 <= model.lora.dropout < 1:
        found.append(f"model.lora.dropout: {model.lora.dropout} is outside 0..1")
    if model.max_tokens < 8:
        found.append(f"model.max_tokens: {model.max_tokens} leaves no room for a question and an answer")
    if model.learned_tokens.soft_prompt < 0:
        found.append("model.learned_tokens.soft_prompt: below 0")
    try:
        re.compile(model.lora.target_modules)
    except re.error as error:
        found.append(f"model.lora.target_modules: is not a regular expression ({error})")
    return found
