"""A graded row -> token ids with room for its sound, ending at the read-out position.

The prompt is `instruction, question, soft prompt, sound` as the user's turn of the model's own chat template, then
the assistant's tag and the read-out token. Rows that cannot be encoded are dropped with a reason, never cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.models.load import Base
from luthier.models.tokens import soft_prompt_names
from luthier.recipe import Recipe
from luthier.recipe_model import LearnedTokens
from luthier.schema import Row


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded row. Sound fills `sound_length` positions from `sound_at`; the last position is the read-out."""

    id: str
    source: str
    group: str
    ids: tuple[int, ...]
    media: str
    sound_at: int
    sound_length: int
    grade: float
    target: float
    level: int
    held_back: tuple[float, ...] = ()
    weight: float = 1.0
    """What its loss is multiplied by (balancing of classes)."""


@dataclass(frozen=True)
class PromptEncoder:
    """Turns a question into ids. Built once per stage."""

    tokenizer: Any
    audio_token_id: int
    instruction: str
    learned: LearnedTokens
    max_tokens: int

    @classmethod
    def of(cls, base: Base, recipe: Recipe) -> PromptEncoder:
        """The encoder that a recipe asks for on its base."""
        return cls(
            base.tokenizer,
            base.family.audio_token_id(base.model),
            recipe.task.instruction,
            recipe.model.learned_tokens,
            recipe.model.max_tokens,
        )

    def prompt_ids(self, question: str, sound_length: int) -> tuple[tuple[int, ...], int] | str:
        """(ids, position of the first sound token), or the reason why the row must be dropped."""
        audio = self.tokenizer.convert_ids_to_tokens(self.audio_token_id)
        # All of them, not `all_special_tokens`: that list lacks the turn tags of a tokenizer that does not name them.
        if any(str(token) in question for token in self.tokenizer.added_tokens_decoder.values()):
            return "reserved_token_in_prompt"
        soft = "".join(soft_prompt_names(self.learned))
        content = f"{self.instruction}\n{question}\n{soft}{audio}"
        text = (
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            + self.learned.readout
        )
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if ids.count(self.audio_token_id) != 1 or ids[-1] != self.tokenizer.convert_tokens_to_ids(self.learned.readout):
            return "template_loses_a_token"
        at = ids.index(self.audio_token_id)
        ids = [*ids[:at], *[self.audio_token_id] * sound_length, *ids[at + 1 :]]
        return (tuple(ids), at) if len(ids) <= self.max_tokens else "too_many_tokens"


def encode_rows(
    rows: Sequence[Row], encoder: PromptEncoder, lengths: dict[str, int], label: Callable[[Row], tuple[float, int]]
) -> tuple[list[Example], Counter[str]]:
    """Encode rows; `label` gives (soft target, level). Returns the examples and the drops by reason."""
    examples, dropped = [], Counter[str]()
    for row in rows:
        media = row.media[0]
        found = encoder.prompt_ids(row.text, lengths[media])
        if isinstance(found, str):
            dropped[found] += 1
            continue
        target, level = label(row)
        examples.append(
            Example(
                id=row.id,
                source=row.provenance.source,
                group=row.group,
                ids=found[0],
                media=media,
                sound_at=found[1],
                sound_length=lengths[media],
                grade=float(row.target.grade or 0.0),
                target=target,
                level=level,
                held_back=row.target.held_back,
            )
        )
    return examples, dropped
