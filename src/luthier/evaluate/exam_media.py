"""Sound and pictures of questions as vectors, made once for all options, orders and adapters of a base.

Ids beyond the vocabulary stand for the vectors, one each, so texts that begin with one recording share it as they share
words. The encoders must stay as they are: an adapter that tunes one is refused. This module knows no scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.data.exams.exam import Exam
from luthier.data.media import load_audio
from luthier.data.pictures import load_picture
from luthier.errors import RequestError
from luthier.models import adapters, quantized
from luthier.models.families import FAMILIES, parameters_digest
from luthier.models.features import FeatureStore
from luthier.models.picture_features import EMBEDDING, PictureStore
from luthier.models.text_base import TextBase
from luthier.models.token_tree import Ids
from luthier.recipe_data import Limits
from luthier.schema import Part


@dataclass(frozen=True)
class Medium:
    """One recording or picture: the numbers of its vectors, and where they are had from, (S, D)."""

    reference: str
    numbers: range
    vectors: Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class MediaReader:
    """The media of some exams, for one base. Made by `MediaReader.of`."""

    first: int
    """The first id beyond the vocabulary."""
    tokens: Mapping[int, str]
    """The type of medium that a placeholder stands for."""
    marks: Mapping[str, str]
    """The placeholder of each type, as text."""
    media: Mapping[str, Medium]
    """By reference, in the order of their numbers."""
    encoders: tuple[str, ...]
    """Prefixes of the parts of the base that make vectors."""
    digest: str
    """sha256 of the weights of these parts."""

    @classmethod
    def of(cls, base: TextBase, exams: Sequence[Exam], folder: Path, limits: Limits) -> MediaReader | None:
        """Make the vectors of all media (name pools too) in a folder of caches; None where there are no media.

        Raises RequestError for a base that does not see or hear, MediaError for media that cannot be decoded.
        """
        kinds = {str(part.media): part.type for exam in exams for item in exam.items for part in item.media}
        if not kinds:
            return None
        family = FAMILIES.get(base.model.config.model_type)
        if family is None or quantized.kind_of(base.model):
            raise RequestError(
                f"{base.name} {'is quantised' if family else 'reads text alone'}, and questions have "
                f"{' and '.join(sorted(set(kinds.values())))} in them",
                f"take a whole base of one of: {', '.join(FAMILIES)}",
            )
        blobs = {reference: data for exam in exams for reference, data in exam.blobs.items()}
        stores: dict[str, FeatureStore | PictureStore] = {
            "audio": FeatureStore(
                folder,
                family,
                extractor_of(base),
                lambda reference: load_audio(blobs[reference], limits),
                base.model,
                frozen=True,
            ),
            "image": PictureStore(folder, base.model, lambda reference: load_picture(blobs[reference], limits)),
        }
        media, begin = {}, 0
        for kind, store in stores.items():
            counts = store.prepare(reference for reference, its in kinds.items() if its == kind)
            for reference, count in sorted(counts.items()):
                media[reference] = Medium(reference, range(begin, begin + count), store.load)
                begin += count
        vision = base.model.config.vision_config
        tokens = {family.audio_token_id(base.model): "audio", int(vision.image_token_id): "image"}
        marks = {kind: str(base.tokenizer.convert_ids_to_tokens(token)) for token, kind in tokens.items()}
        encoders = (family.encoder, *family.projector, EMBEDDING)
        rows = int(base.model.get_input_embeddings().weight.shape[0])
        return cls(rows, tokens, marks, media, encoders, parameters_digest(base.model, encoders))

    def spell(self, ids: Sequence[int], media: Sequence[Part]) -> list[int]:
        """The ids with each placeholder replaced by the ids of its medium's vectors.

        Raises RequestError where placeholders and media do not go together one by one, or a picture stands beside
        sound, which the base would then read in another way.
        """
        written = [self.tokens[token] for token in ids if token in self.tokens]
        wanted = [part.type for part in media]
        if written != wanted or len(set(wanted)) > 1:
            raise RequestError(
                f"a question with {', '.join(wanted)} is written with {', '.join(written) or 'none'} in it",
                "give a question pictures or sound, not both, and no placeholder of the base in its words",
            )
        queue = iter(media)
        found: list[int] = []
        for token in ids:
            if token in self.tokens:
                found += [self.first + number for number in self.media[str(next(queue).media)].numbers]
            else:
                found.append(token)
        return found

    def rows(self, numbers_N: Ids) -> torch.Tensor:
        """(N, D) the vectors of these numbers."""
        media = list(self.media.values())
        which_N = np.searchsorted([medium.numbers.start for medium in media], numbers_N, side="right") - 1
        parts, places = [], []
        for which in np.unique(which_N):
            place_M = np.flatnonzero(which_N == which)
            medium = media[which]
            vectors_SD = medium.vectors(medium.reference)
            parts.append(vectors_SD[torch.from_numpy(numbers_N[place_M] - medium.numbers.start)])
            places.append(place_M)
        order_N = np.argsort(np.concatenate(places))
        return torch.cat(parts)[torch.from_numpy(order_N)]

    def check(self, model: Any) -> None:
        """Raise RequestError where the adapter in force has changed what makes the vectors."""
        if parameters_digest(adapters.bare(model), self.encoders) != self.digest:
            raise RequestError(
                "this adapter tunes the part of the base that hears or sees, whose vectors are made once for all",
                "merge it into the base, and examine that as a base of its own",
            )


def extractor_of(base: TextBase) -> Any:
    """What makes log-mel of sound for this base."""
    from transformers import AutoFeatureExtractor, Phi4MultimodalFeatureExtractor

    if base.name.startswith("toy:"):
        return Phi4MultimodalFeatureExtractor()
    return AutoFeatureExtractor.from_pretrained(base.name, revision=base.revision or None, trust_remote_code=False)
