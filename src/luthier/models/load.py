"""Weights from the hub, a folder or a toy twin; and a base that hears, with its tokenizer and feature extractor.

No remote code is ever run, and no pickle is read. The hub's `microsoft/Phi-4-multimodal-instruct` has two layouts:
`main` is made for remote code (model type phi4mm), `refs/pr/70` is the native one. We load the native one. Its speech
ability sits in a LoRA folder of its own (speech-lora): `model.builtin_adapter` names it, and it is merged into the base
before our adapter goes on top, so that one adapter is trained, saved and loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from luthier.errors import RequestError, SourceError
from luthier.files import sha256_bytes, sha256_file
from luthier.models.families import FAMILIES, PHI4_MULTIMODAL, Family, family_of, parameters_digest
from luthier.models.senses.base import has_senses
from luthier.recipe_model import ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Base:
    """What `load_base` gives: the bare model (no PEFT), and what turns text and sound into its inputs."""

    model: Any
    tokenizer: Any
    extractor: Any
    family: Family
    digest: str
    """sha256 of the weights as loaded, with that of the built-in adapter's file where one is merged.

    Taken before the merge, whose last bits may differ from machine to machine.
    """
    grown: range = range(0)
    """Rows that the embedding was grown by: none, for a verdict's tokens take spare rows."""


def load_base(config: ModelConfig) -> Base:
    """Load a base by name. Raises SourceError when it cannot be reached, RequestError when it cannot be used."""
    if config.base.startswith("toy:"):
        from luthier.models.toys import build_toy

        model, tokenizer, extractor = build_toy(config.base)
        model = model.to(DTYPES[config.dtype])
        return Base(model, tokenizer, extractor, family_of(model), parameters_digest(model))
    local = Path(config.base).is_dir()
    revision = None if local else config.revision or PHI4_MULTIMODAL.revision
    model, tokenizer, extractor = _load_native(config, revision)
    base = Base(model, tokenizer, extractor, family_of(model), parameters_digest(model))
    if config.builtin_adapter:
        folder = _adapter_folder(config, revision)
        merge_builtin(base, folder)
        base.digest = sha256_bytes((base.digest + sha256_file(folder / "adapter_model.safetensors")).encode())
    return base


def _load_native(config: ModelConfig, revision: str | None) -> tuple[Any, Any, Any]:
    from transformers import AutoFeatureExtractor, AutoTokenizer

    found = read_config(config.base, revision)
    if found.model_type not in FAMILIES:
        raise RequestError(
            f"model.base: {config.base} has architecture {found.model_type!r}",
            f"choose one of: {', '.join(FAMILIES)}; for Phi-4-multimodal set model.revision to "
            f"{PHI4_MULTIMODAL.revision}, the layout without remote code",
        )
    model = load_weights(config.base, revision, may_lack=FAMILIES[found.model_type].frozen, dtype=DTYPES[config.dtype])
    where = {"revision": revision, "trust_remote_code": False}
    with _said(config.base):
        return (
            model,
            AutoTokenizer.from_pretrained(config.base, **where),
            AutoFeatureExtractor.from_pretrained(config.base, **where),
        )


def read_config(name: str, revision: str | None) -> Any:
    """The config.json of a folder or hub model as transformers reads it, Phi-3-vision's as we do.

    Errors as of `load_weights`.
    """
    from transformers import AutoConfig

    from luthier.models import phi3_vision

    phi3_vision.register()
    with _said(name):
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)


def auto_class(settings: Any) -> Any:
    """The class of transformers that makes models which go on with a text, whole with what sees and hears; None for an
    architecture that does not."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

    if getattr(settings, "is_encoder_decoder", False):
        return None
    if type(settings) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    return AutoModelForImageTextToText if has_senses(settings.model_type) else None


def load_weights(
    name: str, revision: str | None, may_lack: tuple[str, ...] = (), made_by: Any = None, **options: Any
) -> Any:
    """A language model from a folder or the hub, in evaluation mode.

    `may_lack` are prefixes of weights that the checkpoint may do without; `made_by` is what `auto_class` says of the
    architecture (None: a causal language model); `options` go to `from_pretrained`. Raises SourceError when it cannot
    be reached or read, RequestError when it lacks weights, needs code of its own, or is an adapter.
    """
    from transformers import AutoModelForCausalLM

    with _said(name):
        model, loading = (made_by or AutoModelForCausalLM).from_pretrained(
            name,
            revision=revision,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    _refuse_missing(name, may_lack, loading["missing_keys"])
    if getattr(model, "_hf_peft_config_loaded", False):
        raise RequestError(
            f"model.base: {name} has an adapter in it (adapter_config.json)",
            "name the base alone, or one into which the adapter was merged",
        )
    return model


@contextmanager
def _said(name: str) -> Iterator[None]:
    """Turn the library's errors about a base into ours."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "mismatch" not in str(error):  # such as no memory left on the device
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if "phi4mm" in str(error):  # the hub's main revision
            raise RequestError(
                f"model.base: {name} is in the layout that needs remote code, which is never run",
                f"set model.revision to {PHI4_MULTIMODAL.revision}",
            ) from error
        if "trust_remote_code" in str(error):
            raise RequestError(
                f"model.base: {name} needs remote code, which is never run",
                "choose a base whose architecture is in transformers",
            ) from error
        raise SourceError(
            f"model.base: {name} cannot be loaded: {first}",
            "check the name and the network, or give a local folder: --set model.base=FOLDER "
            "(--set model.base=toy:phi4-multimodal or toy:llama to try the recipe without weights)",
        ) from error


def _refuse_missing(name: str, may_lack: tuple[str, ...], keys: Iterable[str]) -> None:
    """The library gives weights that a checkpoint lacks random values, and only prints a report."""
    missing = sorted(key for key in keys if not key.startswith(may_lack))
    if missing:
        raise RequestError(
            f"model.base: {name} lacks {len(missing)} weights, such as {missing[0]}",
            "fetch it again, or set model.revision to one with the native layout",
        )


def _adapter_folder(config: ModelConfig, revision: str | None) -> Path:
    folder = Path(config.base) / config.builtin_adapter
    if Path(config.base).is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        root = snapshot_download(config.base, revision=revision, allow_patterns=[f"{config.builtin_adapter}/*"])
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise SourceError(
            f"model.builtin_adapter: {config.builtin_adapter} of {config.base} cannot be reached",
            "check the network, or set model.builtin_adapter to an empty text",
        ) from error
    return Path(root) / config.builtin_adapter


def merge_builtin(base: Base, folder: Path) -> None:
    """Merge the family's own speech LoRA into the base.

    Some conversions of this folder lack the `base_model.model.` prefix on their keys; PEFT then leaves every
    lora_B at zero and only warns. Keys are therefore mended, and an adapter that changes nothing is refused.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise SourceError(f"model.builtin_adapter: {weights} is missing", "name the folder of the speech adapter")
    settings = LoraConfig.from_pretrained(str(folder))
    settings.inference_mode = True
    prefix = "base_model.model."
    state = {key if key.startswith(prefix) else prefix + key: value for key, value in load_file(weights).items()}
    wrapped = get_peft_model(base.model, settings, adapter_name="builtin")
    result = set_peft_model_state_dict(wrapped, state, adapter_name="builtin")
    unexpected = list(getattr(result, "unexpected_keys", []))
    missing = [key for key in getattr(result, "missing_keys", []) if ".builtin." in key]
    if unexpected or missing:
        raise RequestError(
            f"model.builtin_adapter: {folder} does not fit the base ({len(missing)} weights missing, "
            f"{len(unexpected)} unknown, such as {(missing + unexpected)[0]})",
            "check that base and adapter are of one revision",
        )
    if not any(bool(value.any()) for key, value in state.items() if "lora_B" in key):
        raise RequestError(
            f"model.builtin_adapter: every lora_B of {folder} is zero: it would change nothing",
            "take another revision of the base",
        )
    base.model = wrapped.merge_and_unload()
