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
from luthier.models import adapters, quantized
from luthier.models.chat import ChatTemplate
from luthier.models.families import FAMILIES
from luthier.models.swap import Seat, Weights, read_weights
from luthier.models.text_base import load_text_base
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
        bare = adapters.bare(self.seat.model)
        if self.model is not bare:  # a base that was loaded anew
            self._media = None
        self.model, tokenizer = bare, tokenizer or self.seat.base.tokenizer
        if self.template.tokenizer is not tokenizer:
            self.template = ChatTemplate.of(tokenizer)
        self.stops = frozenset(Generator(self.model, self.template, self.devices).stops)
        self._on = model.id

    def read(self, messages: Sequence[Message], media: Mapping[str, Any]) -> list[int]:
        """The ids that ask for an answer; those of media lie beyond the vocabulary.

        Raises ChatError where the template cannot write it, RequestError for media that the base does not read.
        """
        ids = prompt_ids(self.template, messages)
        parts = [part for message in messages for part in message.content if part.type != "text"]
        if not parts and self._media is None:
            return ids
        if self._media is None:
            if self.model.config.model_type not in FAMILIES or quantized.kind_of(self.model):
                raise RequestError(
                    f"the question has {parts[0].type} in it, and {self.seat.base.name} reads text alone here",
                    "ask in words, or choose a model whose base sees and hears",
                )
            self._media = ChatMedia(self.seat.base)
        with self._pass():
            return self._media.spell(ids, parts, media, self._on)

    def logits(self, ids: Sequence[int], reading: Reading) -> torch.Tensor:
        """(V,) after `ids`, which go on from what was read; in float32. The reading then has them too."""
        device = self.devices.device
        with torch.inference_mode(), self._pass():
            if self._media is None:
                given = {"input_ids": torch.tensor([ids], device=device)}
            else:
                given = {"inputs_embeds": self._media.embed(ids, self.model.get_input_embeddings())}
            out = self.model(**given, past_key_values=reading.cache, use_cache=True, logits_to_keep=1)
            reading.ids.extend(ids)
            found: torch.Tensor = out.logits[0, -1].float()
        return found

    def close(self) -> None:
        """Give the adapters' memory back; the base goes with this object."""
        self._weights.clear()
        self._on, self._media = "", None

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
