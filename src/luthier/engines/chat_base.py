"""One base in memory with the chat adapters that take turns on it, and one forward pass of what is on it.

An adapter is looked at before it is put on for the first time (whole folder, digests, the base that it was trained on);
its weights then stay in memory, so that putting it on again is a copy. Knows no sampling and no requests.

Shapes: V tokens of the vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from luthier.engines.base import ServedModel
from luthier.engines.conversations import Reading
from luthier.engines.media import ChatMedia
from luthier.engines.threads import answering_threads
from luthier.errors import RequestError
from luthier.evaluate.candidates import Admitted, Candidate, look_at
from luthier.evaluate.generate import Generator, prompt_ids
from luthier.models import adapters
from luthier.models.chat import ChatTemplate
from luthier.models.head import Head
from luthier.models.swap import Seat, Weights, read_weights
from luthier.models.text_base import load_text_base
from luthier.models.tree_reading import stretches_beyond
from luthier.recipe_model import ModelConfig
from luthier.runtime.devices import Devices
from luthier.runtime.threads import is_small, some_threads
from luthier.schema import Message

MEMORY = 2 * 2**30
"""Bytes of adapters that stay in memory beside the one that is on."""


class ChatBase:
    """A base as some recipes hold it: number format, quantization."""

    def __init__(self, settings: ModelConfig, threads: int = 0) -> None:
        self.devices = Devices(settings.dtype)
        dtype = str(self.devices.precision.dtype).removeprefix("torch.")
        self.seat = Seat(partial(load_text_base, replace(settings, dtype=dtype), self.devices.device))
        self._threads = answering_threads(is_small(self.seat.base.model), threads)
        self._tokenizers: dict[str, Any] = {}
        self._admitted: dict[str, Admitted] = {}
        self._weights: OrderedDict[str, Weights] = OrderedDict()
        self._on = ""
        """The id of the model that is on the seat."""
        self.model: Any = None
        """The model of transformers that is asked, with the adapter in its modules."""
        self.template = ChatTemplate.of(self.seat.base.tokenizer)
        self.stops: frozenset[int] = frozenset()
        """Ids that end an answer."""
        self._media: ChatMedia | None = None
        """For a base that sees or hears."""
        self._head: Head | None = None
        """With the adapter that is on."""

    @property
    def longest(self) -> int:
        """Tokens of question and answer together."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    def put_on(self, model: ServedModel) -> None:
        """Have this model answer from now on.

        Raises CheckpointError for an adapter that is broken or of another base; the next one is then put on anew.
        """
        if self._on == model.id:
            return
        self._on = ""
        tokenizer = None
        if model.adapter is None:
            self.seat.rest()
        else:
            admitted = self._admit(model)
            self.seat.put(model.adapter, admitted.tokens, self._weights_of(model))
            tokenizer = admitted.tokenizer
        self.model, tokenizer = adapters.bare(self.seat.model), tokenizer or self.seat.base.tokenizer
        self._head, senses = None, self.seat.base.senses
        rows = int(self.model.get_input_embeddings().weight.shape[0])
        if senses is None:
            self._media = None
        elif self._media is None or self._media.senses is not senses or self._media.first != rows:
            self._media = ChatMedia(senses, rows)  # of a base that was loaded anew, or whose vocabulary grew
        if self.template.tokenizer is not tokenizer:
            self.template = ChatTemplate.of(tokenizer)
        self.stops = frozenset(Generator(self.model, self.template, self.devices).stops)
        self._on = model.id

    def read(self, messages: Sequence[Message], media: Mapping[str, Any]) -> list[int]:
        """The ids that ask for an answer; those of media lie beyond the vocabulary.

        Raises ChatError where the template cannot write it, and RequestError for media that the base does not read.
        """
        if self._media is None:
            kinds = {part.type for message in messages for part in message.content} - {"text"}
            if kinds:
                raise RequestError(
                    f"the question has {' and '.join(sorted(kinds))} in it, and {self.seat.base.name} reads text alone",
                    "ask in words, or choose a model whose base sees or hears",
                )
            return prompt_ids(self.template, messages)
        with self._pass():
            return self._media.read(self.template, messages, media, (self._on, self.model))

    def logits(self, ids: Sequence[int], reading: Reading) -> torch.Tensor:
        """(V,) after `ids`, which go on from what was read; in float32. The reading then has them too."""
        limit = stretches_beyond(self.model.config.get_text_config())
        stretched = limit is not None and len(reading.ids) + len(ids) > limit
        if stretched != reading.stretched or self._looks_back(ids, reading):
            ids = [*reading.forget(self.model.config), *ids]
        reading.stretched = stretched
        with torch.inference_mode(), self._pass():
            if self._media is None:
                given = {"input_ids": torch.tensor([ids], device=self.devices.device)}
                out = self.model(**given, past_key_values=reading.cache, use_cache=True, logits_to_keep=1)
                found: torch.Tensor = out.logits[0, -1].float()
            else:
                found = self._looked(self._media, ids, reading)
            reading.ids.extend(ids)
        return found

    def _looks_back(self, ids: Sequence[int], reading: Reading) -> bool:
        """Whether new pictures need a mask of all that is read: they look both ways, and a cache knows but one."""
        media = self._media
        return media is not None and not media.senses.keeps_causal and bool(reading.ids) and media.holds(ids)

    def _looked(self, media: ChatMedia, ids: Sequence[int], reading: Reading) -> torch.Tensor:
        """(V,) after `ids`, by the text decoder and the head."""
        if self._head is None:
            self._head = Head.of(self.model)
        given, reading.last = media.given(self.model, reading.ids, ids, reading.last)
        decoder = media.senses.decoder(self.model)
        out = decoder(**given, past_key_values=reading.cache, use_cache=True)
        return self._head.logits(out.last_hidden_state[0, -1]).float()

    def close(self) -> None:
        """Give the adapters' memory back; the base goes with this object."""
        self._weights.clear()
        self._on, self._media, self._head = "", None, None

    @contextmanager
    def _pass(self) -> Iterator[None]:
        """The threads and the number format of a forward pass, and of nothing between two of them."""
        with some_threads(self._threads), self.devices.precision.autocast():
            yield

    def _admit(self, model: ServedModel) -> Admitted:
        if model.id not in self._admitted:
            candidate = Candidate(model.id, model.adapter, model.step)
            self._admitted[model.id] = look_at(candidate, self.seat.base, self._tokenizers)
        return self._admitted[model.id]

    def _weights_of(self, model: ServedModel) -> Weights:
        """The adapter's weights from memory, or from its file, whose digest was just checked."""
        assert model.adapter is not None
        if model.id not in self._weights:
            self._weights[model.id] = read_weights(model.adapter)
        self._weights.move_to_end(model.id)
        while len(self._weights) > 1 and sum(map(_bytes, self._weights.values())) > MEMORY:
            gone, _ = self._weights.popitem(last=False)
            self._admitted.pop(gone)  # its file may be another one when it is read again
        return self._weights[model.id]


def _bytes(weights: Weights) -> int:
    return sum(weight.nbytes for weight in weights.values())
