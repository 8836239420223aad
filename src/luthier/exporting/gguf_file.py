"""A merged model folder as one GGUF file.

Weights are read, changed and written one tensor at a time, so memory holds the largest of them and no more. What is
written by ourselves is known to be right (`gguf_shapes`, `gguf_vocabulary`); for other architectures the converter of a
llama.cpp checkout is run as it is, and the smaller kinds come from llama.cpp's own quantiser. Knows no adapters.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from luthier.console import progress
from luthier.errors import DiskError, ExistsError, RequestError
from luthier.exporting import gguf_shapes
from luthier.exporting.gguf_check import TokenCheck, check_tokens
from luthier.exporting.gguf_vocabulary import read_vocabulary
from luthier.exporting.llamatools import convert, quantiser
from luthier.files import free_bytes, read_json, sha256_file, write_atomically

OWN_KINDS = ("f32", "f16", "bf16", "q8_0")
QUANTISED = ("q4_k_m", "q5_k_m", "q6_k", "q4_0")
"""Written by llama.cpp's quantiser from a file of 16 bits."""
KINDS = (*OWN_KINDS, *QUANTISED)
_FTYPE = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}


@dataclass(frozen=True)
class GgufRecord:
    """What was written, and by whom."""

    file: Path
    kind: str
    architecture: str
    bytes: int
    sha256: str
    written_by: str
    """luthier, or llama.cpp's converter; and llama.cpp's quantiser, where it had a part."""
    tokens: TokenCheck
    notes: tuple[str, ...] = ()
    """Where answers may differ from those of transformers."""


def write_gguf(model_folder: Path, out: Path, kind: str = "q8_0", llama_cpp: Path | None = None) -> GgufRecord:
    """Write the model of a Hugging Face folder (weights of 16 bits or more, fast tokenizer) as `out`.

    `llama_cpp` is a checkout (also $LLAMA_CPP), for architectures that are not known here and for its quantiser.
    Raises RequestError for what cannot be written exactly, ExistsError, DiskError.
    """
    if kind not in KINDS:
        raise RequestError(f"{kind}: no such kind of GGUF", f"choose one of {', '.join(KINDS)}")
    if out.exists():
        raise ExistsError(f"{out} exists already", "name another file")
    checkout = llama_cpp or (Path(os.environ["LLAMA_CPP"]) if os.environ.get("LLAMA_CPP") else None)
    quantise = quantiser(checkout) if kind in QUANTISED else None
    with write_atomically(out) as stream:
        place = Path(stream.name)
        if quantise is None:
            architecture, author, notes = _write_own(model_folder, place, kind, checkout)
        else:
            whole = place.with_name(f"{place.name}-f16")
            try:
                architecture, author, notes = _write_own(model_folder, whole, "f16", checkout)
                quantise(whole, place, kind)
            finally:
                whole.unlink(missing_ok=True)
            author += " and llama.cpp's quantiser"
        # Before it has its name: a file that llama.cpp does not load is none.
        tokens = check_tokens(model_folder, place)
    return GgufRecord(
        out, kind, architecture, out.stat().st_size, sha256_file(out), author, tokens, (*notes, *tokens.notes())
    )


def _write_own(folder: Path, place: Path, kind: str, checkout: Path | None) -> tuple[str, str, list[str]]:
    """By ourselves, or by the converter of a checkout where we cannot. Returns architecture, author, notes."""
    config = read_config(folder)
    try:
        notes = _write(folder, place, kind, config)
    except RequestError as error:
        if checkout is None or error.mend != gguf_shapes.CONVERTER:
            raise
        convert(folder, place, kind, checkout)
        return config.model_type, "llama.cpp's converter", []
    return gguf_shapes.FAMILIES[config.model_type].arch, "luthier", notes


def _write(folder: Path, place: Path, kind: str, config: Any) -> list[str]:
    from luthier.models.chat import ChatTemplate, load_tokenizer

    gguf = import_gguf()
    family = gguf_shapes.family_of(config)
    tokenizer = load_tokenizer(str(folder))
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    stops = [token for token in (*ends, ChatTemplate.of(tokenizer).stop) if token is not None]
    vocabulary = read_vocabulary(folder, tokenizer, config.vocab_size, stops)
    writer = gguf.GGUFWriter(None, family.arch)
    writer.add_type(gguf.GGUFType.MODEL)
    gguf_shapes.describe(writer, config, family)
    writer.add_file_type(gguf.LlamaFileType[_FTYPE[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    vocabulary.write(writer, folder.name)
    names = gguf.get_tensor_name_map(_arch(gguf, family.arch), config.num_hidden_layers)
    planned = list(_plan(folder, config, family, names))
    for tensor in planned:
        tensor.kind = _kind_of(gguf, tensor.name, tensor.shape, kind)
        size = math.prod(gguf.quant_shape_to_byte_shape(tensor.shape, tensor.kind))
        writer.add_tensor_info(tensor.name, tensor.shape, "float32", size, raw_dtype=tensor.kind)
    _room(place, sum(info.nbytes for info in writer.tensors[0].values()))
    writer.write_header_to_file(place)
    try:
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in progress(planned, "writing GGUF"):
            writer.write_tensor_data(_encoded(gguf, tensor))
    finally:
        writer.close()
    return [*gguf_shapes.notes(config), *vocabulary.notes]


@dataclass
class _Planned:
    """A tensor to be: GGUF name, shape and kind; `read` gives its values."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Any]
    kind: Any = None


def _plan(folder: Path, config: Any, family: gguf_shapes.Family, names: Any) -> Iterator[_Planned]:
    """Every tensor in the order of its file. Raises RequestError for one that has no place in this architecture."""
    from safetensors import safe_open

    for name, values in gguf_shapes.extra_tensors(config).items():
        yield _Planned(name, tuple(values.shape), values.clone)
    for file in weight_files(folder):
        with safe_open(str(file), framework="pt") as stored:
            keys = list(stored.keys())
            shapes = {key: tuple(stored.get_slice(key).get_shape()) for key in keys}
        for key in keys:
            if key == "lm_head.weight" and config.tie_word_embeddings:
                continue
            name = names.get_name(key, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise RequestError(f"{file}: {key} has no place in {family.arch}", gguf_shapes.CONVERTER)
            yield _Planned(name, shapes[key], partial(_changed, config, family, file, key))


def _changed(config: Any, family: gguf_shapes.Family, file: Path, key: str) -> Any:
    return family.change(config, key, read_tensor(file, key))


def read_config(folder: Path) -> Any:
    """The transformers configuration of a model folder."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{folder}: holds no model of transformers: {error}", "name a merged model's folder"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a model folder."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    file = folder / "model.safetensors"
    if not file.is_file():
        raise RequestError(f"{folder}: holds no model.safetensors", "name a merged model's folder")
    return [file]


def read_tensor(file: Path, key: str) -> Any:
    """One tensor of a safetensors file."""
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as stored:
        return stored.get_tensor(key)


def _kind_of(gguf: Any, name: str, shape: tuple[int, ...], kind: str) -> Any:
    """llama.cpp multiplies vectors and norms in float32 alone; rows that no block fits stay float16."""
    kinds = gguf.GGMLQuantizationType
    if len(shape) <= 1 or name.endswith("_norm.weight") or not name.endswith((".weight", ".lora_a", ".lora_b")):
        return kinds.F32
    if kind == "q8_0" and shape[-1] % gguf.GGML_QUANT_SIZES[kinds.Q8_0][0]:
        return kinds.F16
    return kinds[kind.upper()]


def _encoded(gguf: Any, tensor: _Planned) -> Any:
    """The tensor's bytes as numpy. Raises RequestError for numbers that float16 cannot hold."""
    import numpy as np

    values = tensor.read().float().numpy()
    if tensor.kind == gguf.GGMLQuantizationType.F16 and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise RequestError(f"{tensor.name}: has numbers above float16's largest", "write it as bf16 or f32")
    return gguf.quants.quantize(np.ascontiguousarray(values), tensor.kind)


def import_gguf() -> Any:
    """The `gguf` package; RequestError with the install line where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise RequestError("GGUF files are written with the package gguf", "pip install 'luthier[gguf]'") from error
    logging.getLogger("gguf").setLevel(logging.WARNING)
    return gguf


def _arch(gguf: Any, name: str) -> Any:
    return next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)


def _room(place: Path, needed: int) -> None:
    free = free_bytes(place.parent)
    if free < needed:
        raise DiskError(f"{place.parent}: {needed:,} bytes are needed and {free:,} free", "free some space")
