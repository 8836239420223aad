"""Answers in words: a chat model goes on from prompts, always with the likeliest token or by seeded drawing.

Prompts of one pass are padded on the left, and neither the padding nor the company changes a greedy answer. A base's
own settings for generation (such as a repetition penalty) play no part, or answers before and after training would not
be the model's alone. Bases that see or hear are read by `seeing`, whether a prompt has media or not. This module knows
nothing of stages, records and pages.

Shapes: B prompts of one pass, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from luthier.console import progress
from luthier.errors import RequestError
from luthier.evaluate.seeing import Prompt, Reader, apart
from luthier.models import adapters
from luthier.models.chat import ChatTemplate
from luthier.models.senses.spelling import Speller
from luthier.models.senses.supply import Supply
from luthier.runtime.devices import Devices
from luthier.schema import Message


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen."""

    max_new_tokens: int
    temperature: float = 0.0
    """0: the likeliest token, always."""
    top_p: float = 1.0
    """Drawn from the likeliest tokens that have this share (Holtzman et al. 2020, arXiv 1904.09751)."""
    seed: int = 17


@dataclass(frozen=True)
class Answer:
    """What the model said. `stopped`: it ended by itself, with a stop token (the last of `ids`)."""

    ids: list[int]
    text: str
    stopped: bool


def prompt_ids(template: ChatTemplate, messages: Sequence[Message], tools: list[Any] | None = None) -> list[int]:
    """The ids that ask for the answer to these messages: those with which a lesson of that answer begins.

    The template writes the first token (BOS) if there is one; the tokenizer adds none. Raises ChatError.
    """
    text = template.write([template.turn(message) for message in messages], tools, prompt=True).text
    ids: list[int] = template.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def prompt_of(
    template: ChatTemplate, messages: Sequence[Message], tools: list[Any] | None = None, speller: Speller | None = None
) -> Prompt:
    """What asks for the answer to these messages, with their media where a `speller` writes them. Raises ChatError."""
    if speller is None:
        return Prompt(prompt_ids(template, messages, tools))
    return Prompt(*speller.prompt(template, messages, tools))


@dataclass(frozen=True)
class Generator:
    """A chat model (plain or under PEFT, whole or quantised) with what it needs to answer."""

    model: Any
    template: ChatTemplate
    devices: Devices
    batch_size: int = 8
    supply: Supply | None = None
    """The media of prompts, for a base that sees or hears; without it prompts are text alone."""

    def __call__(
        self, prompts: Sequence[Sequence[int] | Prompt], decoding: Decoding, label: str = "answering"
    ) -> list[Answer]:
        """One answer a prompt, in order. The same seed draws the same answers for the same list of prompts.

        Raises RequestError for an empty prompt, an answer of no length or media without a supply, MediaError for a
        medium that cannot be decoded.
        """
        if decoding.max_new_tokens < 1 or not all(len(prompt) for prompt in prompts):
            raise RequestError(
                f"{len(prompts)} prompts, {decoding.max_new_tokens} tokens at most: there is nothing to answer",
                "give each prompt a token, and an answer one or more",
            )
        asked = [one if isinstance(one, Prompt) else Prompt(one) for one in prompts]
        if self.supply is None and any(one.media for one in asked):
            raise RequestError("prompts hold media, and nothing supplies them", "give the Generator a supply")
        parts = self._parts(asked, decoding)
        found: dict[int, Answer] = {}
        with self._answering(decoding):
            for part in progress(parts, label, len(parts)):
                found.update(zip(part, self._answer([asked[i] for i in part], decoding), strict=True))
        return [found[i] for i in range(len(prompts))]

    def _parts(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[list[int]]:
        """Prompts of like length together."""
        alone = apart(adapters.bare(self.model), prompts, decoding.max_new_tokens)
        order = sorted(set(range(len(prompts))) - alone, key=lambda i: len(prompts[i]))
        parts = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        return [*parts, *([place] for place in sorted(alone))]

    @property
    def stops(self) -> list[int]:
        """Ids that end an answer: the template's, the tokenizer's, and those that the base names itself."""
        named = adapters.bare(self.model).generation_config.eos_token_id
        found = {self.template.stop, self.template.tokenizer.eos_token_id}
        found.update(named if isinstance(named, list) else [named])
        return sorted(token for token in found if token is not None)

    def _answer(self, prompts: Sequence[Prompt], decoding: Decoding) -> Iterator[Answer]:
        stops, pad = self.stops, self.template.tokenizer.pad_token_id or 0
        if self.supply is None:
            found = self._continued(prompts, decoding, pad)
        else:
            with self.devices.precision.autocast():
                reader = Reader(adapters.bare(self.model), self.supply, pad)
                found = reader.answers(prompts, _chooser(decoding), stops, decoding.max_new_tokens)
        for ids in found:
            end = next((at for at, token in enumerate(ids) if token in stops), None)
            kept = ids if end is None else ids[: end + 1]
            text = self.template.tokenizer.decode(kept if end is None else ids[:end], skip_special_tokens=True)
            yield Answer(kept, text, end is not None)

    def _continued(self, prompts: Sequence[Prompt], decoding: Decoding, pad: int) -> list[list[int]]:
        """What follows prompts of text, by the library's own loop."""
        from transformers import GenerationConfig

        width, stops = max(map(len, prompts)), self.stops
        device = self.devices.device
        rows = [[pad] * (width - len(prompt)) + list(prompt.ids) for prompt in prompts]
        ids_BL = torch.tensor(rows, device=device)
        lengths_B1 = torch.tensor([[len(prompt)] for prompt in prompts], device=device)
        mask_BL = (torch.arange(width, device=device) >= width - lengths_B1).long()
        drawn = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
        settings = GenerationConfig(
            max_new_tokens=decoding.max_new_tokens,
            pad_token_id=pad,
            eos_token_id=stops or None,
            **(drawn if decoding.temperature else {"do_sample": False}),
        )
        model = adapters.bare(self.model)
        with torch.no_grad(), self.devices.precision.autocast(), _without_settings(model):
            out_BL = model.generate(input_ids=ids_BL, attention_mask=mask_BL, generation_config=settings)
        found: list[list[int]] = out_BL[:, width:].tolist()
        return found

    @contextmanager
    def _answering(self, decoding: Decoding) -> Iterator[None]:
        """Evaluation mode, uncompiled (each new length would be compiled again), with random numbers of its own."""
        training, device = self.model.training, self.devices.device
        cards = [device] if device.type == "cuda" else []
        self.model.eval()
        try:
            with torch.compiler.set_stance("force_eager"), torch.random.fork_rng(devices=cards):
                torch.manual_seed(decoding.seed)
                yield
        finally:
            self.model.train(training)


def _chooser(decoding: Decoding) -> Callable[[torch.Tensor], torch.Tensor]:
    """(B, V) logits -> (B,) ids: the likeliest, or one drawn."""
    if not decoding.temperature:
        return lambda logits_BV: logits_BV.argmax(dim=-1)

    def draw(logits_BV: torch.Tensor) -> torch.Tensor:
        sorted_BV, order_BV = (logits_BV / decoding.temperature).softmax(dim=-1).sort(dim=-1, descending=True)
        before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
        kept_BV = sorted_BV.masked_fill(before_BV >= decoding.top_p, 0.0)  # the likeliest always stays
        return order_BV.gather(1, torch.multinomial(kept_BV, 1))[:, 0]

    return draw


@contextmanager
def _without_settings(model: Any) -> Iterator[None]:
    """The library fills what a call leaves open from the base's own generation_config; here that is put aside."""
    from transformers import GenerationConfig

    theirs, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = theirs
