"""Finds texts that say the same in other words, by the cosine of static embeddings (model2vec).

Knows texts and one model folder on this machine; refuses to know rows and to fetch anything. All kept texts are
compared with each other, so the work grows with the square of the rows; texts equal but for names and numbers stay
apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from luthier.data.alike.entities import Signature, siblings, signatures
from luthier.data.alike.standins import Indices, stand_ins
from luthier.data.dedupe import SIBLINGS_SHOWN, Found, Merge, TextOf
from luthier.errors import DataError, SourceError

Vectors = NDArray[np.float32]


class Embedder(Protocol):
    """What is used of a model: texts in, vectors of shape (texts, dimensions) out."""

    def encode(
        self, sentences: Sequence[str], *, max_length: int | None = ..., use_multiprocessing: bool = ...
    ) -> Vectors: ...


def load_model(folder: Path) -> Embedder:
    """A static model from a folder. Raises SourceError where the extra or the folder is missing or cannot be read."""
    try:
        from model2vec import StaticModel
    except ImportError as error:
        raise SourceError(
            "data.duplicates.semantic needs model2vec, which is not installed", 'pip install "luthier[semantic]"'
        ) from error
    if not folder.is_dir():
        raise SourceError(
            f"data.duplicates.semantic_model: {folder} is no folder", "name a folder that holds a model2vec model"
        )
    try:
        model: Embedder = StaticModel.from_pretrained(str(folder.resolve()), force_download=False)
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(
            f"data.duplicates.semantic_model: {folder} cannot be read: {error}",
            "name a folder with model.safetensors, tokenizer.json and config.json, as save_pretrained writes it",
        ) from error
    return model


def semantic(
    batches: Iterable[Sequence[str] | pa.StringArray],
    threshold: float,
    model: Embedder,
    text_of: TextOf,
    alive: NDArray[np.bool_] | None = None,
) -> Found:
    """Rows whose embeddings have a cosine of at least `threshold`; arguments and answer as in `dedupe.near`.

    Texts are embedded whole, however long. A text in which the model knows no word is like no other.
    """
    if not 0.0 < threshold <= 1.0:
        raise DataError(f"a similarity of {threshold:g} is not in 0..1", "give a share such as 0.95")
    vectors = _embed(batches, model, alive)
    rows = np.flatnonzero(vectors.any(axis=1))

    def cosine(some: Indices, others: Indices) -> Vectors:
        return vectors[some] @ vectors[others].T

    @lru_cache(maxsize=1024)
    def signature(row: int) -> Signature:
        return signatures(text_of(np.array([row], dtype=np.int64)))[0]

    # A vector's product with itself may fall short of 1 by the rounding of single precision.
    found = stand_ins(rows, cosine, threshold - 1e-6, lambda a, b: siblings(signature(a), signature(b)))
    merges = [Merge(row, into, "semantic", min(1.0, value)) for row, into, value in found.merged]
    size = float(vectors.shape[1] * 4) if len(vectors) else 0.0
    return Found(merges, found.apart[:SIBLINGS_SHOWN], len(found.apart), bytes_per_row=size)


def _embed(
    batches: Iterable[Sequence[str] | pa.StringArray], model: Embedder, alive: NDArray[np.bool_] | None
) -> Vectors:
    """Vectors of length 1 (or 0, where there is nothing to embed); (rows, dimensions) float32."""
    parts: list[Vectors] = []
    at = 0
    for batch in batches:
        texts = batch if isinstance(batch, list) else pa.array(batch).to_pylist()
        if not texts:
            continue
        live = np.ones(len(texts), dtype=bool) if alive is None else alive[at : at + len(texts)]
        at += len(texts)
        found = np.asarray(model.encode(texts, max_length=None, use_multiprocessing=False), dtype=np.float32)
        length = np.linalg.norm(found, axis=1, keepdims=True)
        parts.append(np.where((length > 0) & live[:, None], found / np.maximum(length, 1e-12), 0.0).astype(np.float32))
    return np.concatenate(parts) if parts else np.empty((0, 0), dtype=np.float32)
