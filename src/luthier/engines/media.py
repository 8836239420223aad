"""Pictures and sound of a question as vectors among the embeddings of its words, for bases that read them.

Each vector has an id of its own beyond the vocabulary, so a conversation with media in it is a list of ids as any
other. Vectors are made by the model that is asked, adapter and all, and the last ones are kept. Knows no files: media
come decoded.

Shapes: L ids, S vectors of a medium, D model width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from luthier.errors import RequestError
from luthier.evaluate.exam_media import extractor_of
from luthier.files import sha256_bytes
from luthier.models.families import FAMILIES
from luthier.models.picture_features import PictureEncoder
from luthier.models.text_base import TextBase
from luthier.schema import Part

_MOST = 16
"""Media whose vectors are kept: some 500 vectors each."""


class ChatMedia:
    """The media of one base's conversations."""

    def __init__(self, base: TextBase) -> None:
        self._family = FAMILIES[base.model.config.model_type]
        self._extractor = extractor_of(base)
        self._pictures = PictureEncoder(base.model)
        self._model = base.model
        self._marks = {
            self._family.audio_token_id(base.model): "audio",
            int(base.model.config.vision_config.image_token_id): "image",
        }
        self._vectors: OrderedDict[str, tuple[range, torch.Tensor]] = OrderedDict()
        """By model and content: ids, and (S, D)."""
        self._next = self._first = int(base.model.get_input_embeddings().weight.shape[0])

    def spell(self, ids: Sequence[int], parts: Sequence[Part], media: Mapping[str, Any], model: str) -> list[int]:
        """The ids with each placeholder replaced by the ids of its medium's vectors.

        Raises RequestError where placeholders and media do not go together one by one, where a picture stands beside
        sound (the base would read that in another way), and where a medium is missing.
        """
        written = [self._marks[token] for token in ids if token in self._marks]
        wanted = [part.type for part in parts]
        if written != wanted or len(set(wanted)) > 1:
            raise RequestError(
                f"a question with {', '.join(wanted) or 'no media'} is written with {', '.join(written) or 'none'}",
                "give a conversation pictures or sound, not both, and no placeholder of the base in its words",
            )
        if len(parts) > _MOST:
            raise RequestError(f"{len(parts)} pictures or recordings in a conversation", f"send {_MOST} at most")
        queue = iter(parts)
        found: list[int] = []
        for token in ids:
            found += self._ids_of(next(queue), media, model) if token in self._marks else [token]
        return found

    def embed(self, ids: Sequence[int], embedding: Any) -> torch.Tensor:
        """(1, L, D) of spelled ids; `embedding` is that of the model with its adapter."""
        weight = embedding.weight
        ids_L = torch.tensor(ids, device=weight.device)
        other_L = ids_L >= self._first
        found_LD: torch.Tensor = embedding(ids_L.masked_fill(other_L, 0))
        for numbers, vectors_SD in self._vectors.values():
            own_L = (ids_L >= numbers.start) & (ids_L < numbers.stop)
            if own_L.any():
                found_LD[own_L] = vectors_SD.to(found_LD)[(ids_L[own_L] - numbers.start)]
        return found_LD[None]

    def clear(self) -> None:
        self._vectors.clear()

    def _ids_of(self, part: Part, media: Mapping[str, Any], model: str) -> range:
        if part.media not in media:
            raise RequestError(f"the question names {part.type} {part.media}, which was not given", "send it along")
        medium = media[str(part.media)]
        pixels = np.asarray(medium)
        key = f"{model} {part.type} {pixels.shape} {sha256_bytes(pixels.tobytes())}"
        if key not in self._vectors:
            vectors_SD = self._encode(part, medium)
            numbers = range(self._next, self._next + len(vectors_SD))
            self._next = numbers.stop
            self._vectors[key] = numbers, vectors_SD
        self._vectors.move_to_end(key)
        while len(self._vectors) > _MOST:
            self._vectors.popitem(last=False)
        return self._vectors[key][0]

    @torch.no_grad()
    def _encode(self, part: Part, medium: Any) -> torch.Tensor:
        if part.type == "image":
            return self._pictures.encode(medium.convert("RGB"))
        mel_TF = self._family.mel(self._extractor, medium)
        return self._family.encode_sound(self._model, mel_TF[None])[0].cpu()
