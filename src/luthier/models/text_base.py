"""A base that is tuned on chats: any causal language model of transformers, with its tokenizer, as the recipe holds it,
and of some families with what sees and hears.

From the hub, a local folder or a toy twin; whole, or quantised through bitsandbytes: then the decoder alone, as half a
picture's detail would be lost before it is reached. No remote code is ever run. This module knows nothing of adapters
and rows.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from luthier.errors import RequestError
from luthier.models import quantized
from luthier.models.chat import ChatTemplate, load_tokenizer
from luthier.models.families import TEXT_FAMILIES, TextFamily, parameters_digest, text_family_of
from luthier.models.load import DTYPES, auto_class, load_weights, read_config
from luthier.models.senses.base import Senses, has_senses, senses_of
from luthier.recipe_model import ModelConfig


@dataclass(frozen=True)
class BaseFacts:
    """What an adapter says of the base under it, so that another one is refused."""

    name: str
    revision: str
    weights_sha256: str
    tokenizer_sha256: str
    dtype: str
    """How the weights are held; the digest is of these."""
    quantization: str
    added_tokens: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class TextBase:
    """What `load_text_base` gives: the bare model (no PEFT) and its tokenizer."""

    model: Any
    tokenizer: Any
    digest: str
    """sha256 of the weights as loaded; of what is packed, for a quantised base."""
    name: str
    revision: str
    """The commit that was loaded, for a hub model."""
    family: TextFamily
    tokenizer_digest: str
    """Of the tokenizer and its template as loaded, before any token was added."""
    added_tokens: dict[str, int] = field(default_factory=dict)
    """Ids of the tokens of model.added_tokens, once `tokens.add_text_tokens` has given them."""
    grown: range = range(0)
    """Rows that the embedding was grown by to hold them; empty where spare rows were enough."""

    @cached_property
    def senses(self) -> Senses | None:
        """What the base sees and hears with, made when it is first asked for: a chat of text alone needs none of it.

        Raises SourceError where the settings of its processors cannot be read.
        """
        return senses_of(self.model, self.tokenizer, self.name, self.revision)

    def facts(self) -> BaseFacts:
        return BaseFacts(
            self.name,
            self.revision,
            self.digest,
            self.tokenizer_digest,
            str(self.model.dtype).removeprefix("torch."),
            quantized.kind_of(self.model),
            dict(self.added_tokens),
        )


def load_text_base(config: ModelConfig, device: str | torch.device = "cpu") -> TextBase:
    """Load tokenizer and weights by name, and put them on a device (a quantised model cannot be moved later).

    Raises SourceError for a base that cannot be reached or read, RequestError for one that cannot be used: with a
    chat template that writes no question, with weights missing, with code of its own, quantised without bitsandbytes.
    """
    place = torch.device(device)
    tokenizer = load_tokenizer(config.base, config.revision)
    ChatTemplate.of(tokenizer)
    model = _toy(config, place) if config.base.startswith("toy:") else _load(config, place)
    quantized.settle(model, DTYPES[config.dtype], place)
    model.requires_grad_(False)
    return TextBase(
        model.eval(),
        tokenizer,
        parameters_digest(model),
        config.base,
        str(getattr(model.config, "_commit_hash", None) or config.revision),
        text_family_of(model),
        tokenizer_digest(tokenizer),
    )


def _load(config: ModelConfig, device: torch.device, folder: Path | None = None) -> Any:
    """`folder` holds the weights where they are not under the base's own name."""
    local = folder is not None or Path(config.base).is_dir()
    revision = None if local else config.revision or None
    dtype = DTYPES[config.dtype]
    settings = read_config(str(folder or config.base), revision)
    made_by = _made_by(config.base, settings)
    options = quantized.loading_options(config.quantization, settings, dtype, device, _sight(settings))
    model = load_weights(str(folder or config.base), revision, made_by=made_by, dtype=dtype, **options)
    return model if options else model.to(device)


def _toy(config: ModelConfig, device: torch.device) -> Any:
    """A toy twin; the library quantises only while it loads, so a quantised twin goes through a folder."""
    from luthier.models.toys import build_toy

    model = build_toy(config.base)[0]
    if not config.quantization:
        return model.to(device, DTYPES[config.dtype])
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return _load(config, device, Path(folder))


def weightless_base(config: ModelConfig, tokenizer: Any) -> TextBase:
    """The base's shapes on torch's meta device: of a toy, a folder or the hub, from its configuration alone.

    Raises what `load_text_base` would raise of the configuration. Nothing in it is quantised.
    """
    if config.base.startswith("toy:"):
        from luthier.models.toys import build_toy

        toy = build_toy(config.base)[0]
        with torch.device("meta"):
            model = type(toy)(toy.config)
    else:
        settings = read_config(config.base, None if Path(config.base).is_dir() else config.revision or None)
        made_by = _made_by(config.base, settings)
        with torch.device("meta"):
            model = made_by.from_config(settings, trust_remote_code=False)
    model.requires_grad_(False)
    # Added tokens are written into the tokenizer, and whoever called may still render with it.
    return TextBase(model, copy.deepcopy(tokenizer), "", config.base, config.revision, text_family_of(model), "")


def senses_without_weights(config: ModelConfig, tokenizer: Any) -> Senses | None:
    """What a base sees and hears with, from its configuration alone; None for one that reads text. Errors as of
    `weightless_base`, and SourceError where the settings of its processors cannot be read."""
    if not config.base.startswith("toy:"):
        settings = read_config(config.base, None if Path(config.base).is_dir() else config.revision or None)
        if not has_senses(settings.model_type):
            return None
    return weightless_base(config, tokenizer).senses


def _made_by(name: str, settings: Any) -> Any:
    found = auto_class(settings)
    if found is None:
        raise RequestError(
            f"model.base: {name} has architecture {settings.model_type!r}, which does not continue a text",
            "choose a causal language model: Llama, Qwen, Gemma, Phi, Mistral",
        )
    return found


def _sight(settings: Any) -> tuple[str, ...]:
    """Prefixes of what stands before the decoder."""
    family = TEXT_FAMILIES.get(settings.model_type)
    return family.frozen if family else ()


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 over what decides ids: the fast tokenizer's own JSON and the chat template.

    Truncation and padding are left out: they are set by whoever called the tokenizer last.
    """
    known = json.loads(tokenizer.backend_tokenizer.to_str())
    known.update(truncation=None, padding=None)
    text = json.dumps([known, tokenizer.chat_template], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
