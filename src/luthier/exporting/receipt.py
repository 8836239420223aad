"""The parity receipt: the same prompts through every form of a model, and where the answers part.

The first form is the trainer's own (the base with the adapter, as the run evaluates it); the others are held against
it: greedy answers token by token, and logits at the prompt's last position and along the trainer's answer. Of a base
that sees or hears the prompts hold the media of their rows. This module loads the trainer's and the plain PEFT form of
a chat; verdicts are in `verdict_receipt`. It writes no file.

Shapes: N positions (the prompt's last one, and one for each token of the answer but the last), V vocabulary.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.data.building.rows import TableRow
from luthier.data.mediasource import MediaSource
from luthier.data.table import iter_batches, media_bytes
from luthier.errors import ChatError
from luthier.evaluate.generate import Decoding, Generator, prompt_of
from luthier.evaluate.seeing import Prompt, Reader
from luthier.exporting.kinds import Subject
from luthier.files import sha256_bytes, sha256_file
from luthier.models import adapters
from luthier.models.chat import ChatTemplate, load_tokenizer, tools_of
from luthier.models.senses.base import Senses
from luthier.models.senses.spelling import Speller
from luthier.models.senses.supply import Medium, Supply
from luthier.models.text_base import TextBase, load_text_base, tokenizer_digest
from luthier.models.tokens import GROWTH
from luthier.runtime.devices import Devices
from luthier.schema import NO_TARGET, Message, Part, Provenance, Row, canonical
from luthier.stages.chat_prepare import build_chat_model
from luthier.stages.chat_rows import rows_at

PROMPTS = 20
ANSWER_TOKENS = 32
FORMS = ("trainer", "adapter", "merged", "gguf")
_LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "gguf", "llama-cpp-python")
_NEUTRAL = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "How many days are there in a week?",
    "Translate into German: Good morning.",
    "Name three fruits.",
    "What is 12 plus 30?",
    "Explain in one sentence why the sky is blue.",
    "Give me a synonym of happy.",
    "Who wrote Hamlet?",
    "List the primary colours.",
    "What does a thermometer measure?",
    "Complete: The early bird",
    "Is a whale a fish?",
    "Suggest a name for a bakery.",
    "What comes after Tuesday?",
    "Spell the word rhythm backwards.",
    "Say hello in Spanish.",
    "Which is heavier, a kilogram of iron or of feathers?",
    "Summarise: Water boils at a lower temperature on a mountain.",
    "What is your name?",
)
"""Asked where a run has held out no chats."""


@dataclass(frozen=True)
class Questions:
    """The prompts as ids, and where they are from; for a base that sees or hears also the media of each."""

    prompts: list[list[int]]
    origin: str
    media: Sequence[tuple[Medium, ...]] = ()
    supply: Supply | None = None

    @classmethod
    def of(cls, prompts: Sequence[Prompt], origin: str, supply: Supply | None) -> Questions:
        media = [one.media for one in prompts] if supply else []
        return cls([list(one.ids) for one in prompts], origin, media, supply)

    def asked(self) -> list[Prompt]:
        """The prompts with their media."""
        return [
            Prompt(ids, media) for ids, media in zip(self.prompts, self.media or [()] * len(self.prompts), strict=True)
        ]

    def digest(self) -> str:
        """sha256 of what is asked."""
        references = [[medium.reference for medium in media] for media in self.media]
        return sha256_bytes(canonical([self.prompts, references] if any(references) else self.prompts).encode())


@dataclass(frozen=True)
class Readings:
    """What one form said: greedy answers without their stop token, and logits (N, V) a prompt, float32 on the host."""

    answers: list[list[int]]
    logits: list[torch.Tensor]


@dataclass
class Trainer:
    """The model as the run evaluates it, with what it needs to be asked."""

    base: TextBase
    model: Any
    devices: Devices

    @classmethod
    def load(cls, subject: Subject) -> Trainer:
        """Raises CheckpointError for an adapter of another base."""
        train = replace(subject.recipe.train, gradient_checkpointing=False, torch_compile=False)
        devices = Devices(subject.recipe.model.dtype)
        base, model = build_chat_model(replace(subject.recipe, train=train), devices, subject.recipe.seed)
        model.load(subject.folder)
        model.eval()
        return cls(base, model.language_model, devices)


def questions(subject: Subject, tokenizer: Any, longest: int, senses: Senses | None = None) -> Questions:
    """Up to 20 prompts of at most `longest` tokens: of the rows that the run held out, else neutral ones.

    Rows with media are asked where the base's `senses` are given.
    """
    template, recipe = ChatTemplate.of(tokenizer), subject.recipe
    supply = speller = None
    if senses is not None:
        source = MediaSource(partial(media_bytes, subject.run.data), recipe.data.limits, recipe.data.frames)
        supply, speller = Supply(senses, source), Speller(senses, source)
    ask = partial(_ask, template, speller, longest)
    found = [one for one in (ask(item.row) for item in _held_out(subject)) if one]
    if found:
        return Questions.of(found[:PROMPTS], f"held-out rows of {recipe.name or subject.run.path.name}", supply)
    rows = [
        Row("", (Message("user", (Part("text", text),)),), NO_TARGET, "", "test", Provenance("neutral", ""))
        for text in _NEUTRAL
    ]
    if template.chats:
        return Questions.of([one for one in map(ask, rows) if one], "neutral questions", supply)
    plain = [Prompt(tokenizer(text)["input_ids"]) for text in _NEUTRAL]
    return Questions.of(plain, "neutral texts: the base has no chat template", supply)


def _held_out(subject: Subject) -> list[TableRow]:
    """The first held-out rows, more than are needed: some cannot be asked."""
    folder, data = subject.run.data, subject.recipe.data
    if not (folder / "manifest.json").is_file():
        return []
    batches = list(iter_batches(folder, ["split", "source"]))
    split, source = (
        np.concatenate([batch.column(key).to_numpy(zero_copy_only=False) for batch in batches])
        for key in ("split", "source")
    )
    for wanted, sources in (("test", data.test), ("validation", data.train)):
        numbers = np.flatnonzero((split == wanted) & np.isin(source, list(sources)))
        if len(numbers):
            return [item for _, item in rows_at(folder, numbers[: 4 * PROMPTS])]
    return []


def _ask(template: ChatTemplate, speller: Speller | None, longest: int, row: Row) -> Prompt | None:
    """What asks for a chat's last answer; None where it cannot be asked."""
    messages = row.messages[:-1] if row.messages and row.messages[-1].role == "assistant" else row.messages
    if not messages or (row.media and speller is None) or not template.chats:
        return None
    try:
        prompt = prompt_of(template, messages, tools_of(row), speller)
    except ChatError:
        return None
    return prompt if 0 < len(prompt) <= longest else None


def reloaded(subject: Subject, folder: Path, devices: Devices, settings: Any) -> tuple[Any, Any]:
    """(model, tokenizer) from an exported adapter's folder by plain `PeftModel`, on its base in evaluation mode."""
    from peft import PeftModel

    tokenizer = load_tokenizer(str(folder))
    base = load_text_base(settings, devices.device)
    rows = grown_rows(subject, folder, base.model.get_input_embeddings().weight.shape[0])
    if rows:
        base.model.resize_token_embeddings(rows, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ties that our folders save whole
        return PeftModel.from_pretrained(base.model, str(folder)).eval(), tokenizer


def grown_rows(subject: Subject, folder: Path, rows: int) -> int:
    """How many rows the base's embedding must be given for an adapter; 0 where it has enough."""
    added = adapters.read(folder / adapters.FACTS).get("added_tokens", {}) if subject.of_text else {}
    most = max(map(int, added.values()), default=-1) + 1
    return -(-most // GROWTH) * GROWTH if most > rows else 0


@torch.no_grad()
def read(model: Any, tokenizer: Any, asked: Questions, devices: Devices, reference: Readings | None) -> Readings:
    """A form's greedy answers, and its logits along the reference's answers (its own, where it is the first)."""
    generate = Generator(model, ChatTemplate.of(tokenizer), devices, 1, asked.supply)
    said = generate(asked.asked(), Decoding(ANSWER_TOKENS), "receipt")
    answers = [one.ids[: -1 if one.stopped else None] for one in said]
    logits = []
    for prompt, answer in zip(asked.asked(), (reference or Readings(answers, [])).answers, strict=True):
        with devices.precision.autocast():
            logits.append(_logits(adapters.bare(model), asked.supply, prompt, answer, devices).float().cpu())
    return Readings(answers, logits)


def _logits(model: Any, supply: Supply | None, prompt: Prompt, answer: list[int], devices: Devices) -> torch.Tensor:
    """(N, V) after the prompt and along the answer."""
    if supply is not None:
        return Reader(model, supply, 0).logits(prompt, answer)
    ids = torch.tensor([[*prompt.ids, *answer]], device=devices.device)
    found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found[0, len(prompt) - 1 :]


def trainer_readings(subject: Subject) -> tuple[Questions, Readings]:
    """The prompts, and what the trainer's model makes of them. Its memory is given back."""
    trainer = Trainer.load(subject)
    most = int(trainer.base.model.config.get_text_config().max_position_embeddings) - ANSWER_TOKENS
    asked = questions(subject, trainer.base.tokenizer, most, trainer.base.senses)
    found = read(trainer.model, trainer.base.tokenizer, asked, trainer.devices, None)
    del trainer
    gc.collect()
    return asked, found


def compare(here: Readings | Sequence[Sequence[int]], trainer: Readings) -> dict[str, Any]:
    """How a form differs from the trainer's: of one that tells no logits, the answers alone."""
    answers = here.answers if isinstance(here, Readings) else here
    firsts = [_first_difference(one, other) for one, other in zip(answers, trainer.answers, strict=True)]
    differing = [at for at in firsts if at is not None]
    tokens = sum(max(len(one), len(other)) for one, other in zip(answers, trainer.answers, strict=True))
    alike = sum(
        sum(a == b for a, b in zip(one, other, strict=False))
        for one, other in zip(answers, trainer.answers, strict=True)
    )
    found: dict[str, Any] = {
        "ran": True,
        "prompts": len(firsts),
        "prompts_that_differ": len(differing),
        "first_difference": min(differing, default=None),
        "tokens_that_differ": tokens - alike,
        "agreement": round(alike / tokens, 6) if tokens else 1.0,
    }
    if isinstance(here, Readings):
        gaps = [(a - b).abs() for a, b in zip(here.logits, trainer.logits, strict=True)]
        found["max_logit_gap_prompt"] = max((float(gap[0].max()) for gap in gaps), default=0.0)
        found["max_logit_gap"] = max_gap(here, trainer)
    return found


def max_gap(here: Readings, other: Readings) -> float:
    """The largest difference of a logit at any position of any prompt."""
    gaps = [float((a - b).abs().max()) for a, b in zip(here.logits, other.logits, strict=True)]
    return max(gaps, default=0.0)


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return None if at == len(one) == len(other) else at


def not_run(reason: str) -> dict[str, Any]:
    """A form that was not asked."""
    return {"ran": False, "reason": reason}


def chat_receipt(
    subject: Subject, tokenizer: Any, asked: Questions, forms: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The whole receipt of a chat. `forms`: what `compare` and `not_run` gave, by FORMS."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    return {
        **heading(subject),
        "prompts": {
            "count": len(asked.prompts),
            "origin": asked.origin,
            "sha256": asked.digest(),
            **({"with_media": sum(map(bool, asked.media))} if asked.media else {}),
            "answer_tokens": ANSWER_TOKENS,
        },
        "template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "tokenizer_sha256": tokenizer_digest(tokenizer),
        "forms": {name: forms.get(name) or not_run("not part of this export") for name in FORMS},
    }


def heading(subject: Subject) -> dict[str, Any]:
    """What every receipt begins with."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    model = subject.recipe.model
    return {
        "run": subject.run.path.resolve().name,
        "stage": subject.name,
        "step": subject.step,
        "adapter_sha256": sha256_file(subject.folder / adapters.WEIGHTS),
        "dtype": model.dtype,
        "quantization": model.quantization,
        "versions": versions,
    }
