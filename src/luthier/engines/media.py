"""Pictures, sound and videos of a question as vectors among the embeddings of its words, for bases that read them.

Each vector has an id of its own beyond the vocabulary, so a conversation with media in it is a list of ids as any
other. Vectors are made by the model that is asked, adapter and all, and the last ones are kept. Knows no files: media
come decoded.

Shapes: L ids of a text, P axes of a position, K layers that take vectors, S vectors of a medium, D model width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from luthier.data.mediasource import DecodedMedia, Film, MediaSource
from luthier.errors import RequestError
from luthier.files import sha256_bytes
from luthier.models.chat import ChatTemplate
from luthier.models.senses.base import Medium, Placed, Senses
from luthier.models.senses.laying import Laid, decoder_given, lay
from luthier.models.senses.numbers import Numbers
from luthier.models.senses.spelling import Speller
from luthier.models.senses.store import place_of
from luthier.schema import Message

MOST = 80
"""Media whose vectors are kept, some 500 each: those of a video of 64 frames, and some pictures."""


class ChatMedia:
    """The media of one base's conversations. `first` is the first id beyond its vocabulary."""

    def __init__(self, senses: Senses, first: int) -> None:
        self.senses, self.first = senses, first
        self._numbers = Numbers(senses, first)
        self._vectors: OrderedDict[Medium, torch.Tensor] = OrderedDict()
        """(K, S, D) of each; the reference says which model made it of which content."""
        self._axes = len(senses.positions(np.zeros(1, np.int64), Placed()))

    def read(
        self, template: ChatTemplate, messages: Sequence[Message], media: Mapping[str, Any], asked: tuple[str, Any]
    ) -> list[int]:
        """The ids that ask for an answer; `asked` is the model's id and its bare model.

        Raises ChatError for media that the base or its template does not take, that are missing, or that stand for
        words; RequestError for more than `MOST`.
        """
        source = DecodedMedia.of(media)
        ids, found = Speller(self.senses, source).prompt(template, messages)
        if len(found) > MOST:
            raise RequestError(f"{len(found)} pictures or recordings in a conversation", f"send {MOST} at most")
        numbered: list[int] = self._numbers.write(ids, [self._kept(one, source, asked) for one in found]).tolist()
        return numbered

    def holds(self, ids: Sequence[int]) -> bool:
        """Whether there are media among these ids."""
        return max(ids, default=0) >= self.first

    def given(
        self, model: Any, before: Sequence[int], ids: Sequence[int], last: int | None
    ) -> tuple[dict[str, Any], int]:
        """What the text decoder is given for `ids`, which follow what it has read, and the greatest position then;
        `last` is the greatest one before, None where it is not known."""
        if last is None or self.holds(ids):
            laid, media = self._placed(before, ids)
        else:
            laid, media = self._words(ids, last), ()
        vectors_KMD = None
        if media:
            vectors_KMD = torch.cat([self._vectors[medium] for medium in media], dim=1).to(place_of(model)[0])
        mask_1L = torch.ones(1, len(before) + len(ids), dtype=torch.long, device=place_of(model)[0])
        found = {"attention_mask": mask_1L, **decoder_given(self.senses, model, laid, vectors_KMD)}
        return found, max(last or 0, int(laid.position_PBL.max()))

    def _placed(self, before: Sequence[int], ids: Sequence[int]) -> tuple[Laid, tuple[Medium, ...]]:
        """The new ids where they are in the whole text, and their media."""
        whole = lay(self.senses, [self._numbers.read([*before, *ids])], 0)
        _, media = self._numbers.read(ids)
        new = slice(len(before), None)
        laid = Laid(
            whole.ids_BL[:, new],
            whole.position_PBL[:, :, new],
            whole.slot_BL[:, new],
            whole.seen_BL[:, new],
            media,
        )
        return laid, media

    def _words(self, ids: Sequence[int], last: int) -> Laid:
        """New ids that are words: positions go on after the greatest one."""
        ids_1L = np.array([ids], dtype=np.int64)
        position_1L = last + 1 + np.arange(len(ids), dtype=np.int64)[None]
        none_1L = np.zeros(ids_1L.shape, dtype=np.bool_)
        return Laid(ids_1L, np.tile(position_1L, (self._axes, 1, 1)), none_1L, none_1L, ())

    def _kept(self, medium: Medium, source: MediaSource, asked: tuple[str, Any]) -> Medium:
        """The medium under the name of its content and of the model that makes its vectors, which are there then."""
        content = source.load(medium.kind, medium.reference)
        kept = replace(medium, reference=f"{asked[0]} {_digest(content)}")
        if kept not in self._vectors:
            self._vectors[kept] = self._encode(medium, content, asked[1])
        self._vectors.move_to_end(kept)
        while len(self._vectors) > MOST:
            gone, _ = self._vectors.popitem(last=False)
            self._numbers.forget(gone)
        return kept

    @torch.no_grad()
    def _encode(self, medium: Medium, content: Any, model: Any) -> torch.Tensor:
        prepared = replace(self.senses.prepare(medium.kind, content), mode=medium.mode)
        return self.senses.encode(model, [prepared.to(place_of(model)[0])])[0].cpu()


def _digest(content: Any) -> str:
    pieces = content.frames if isinstance(content, Film) else (content,)
    pixels = [np.asarray(piece) for piece in pieces]
    about = f"{[(piece.shape, str(piece.dtype)) for piece in pixels]} {getattr(content, 'seconds', '')}"
    return sha256_bytes(about.encode() + b"".join(piece.tobytes() for piece in pixels))
