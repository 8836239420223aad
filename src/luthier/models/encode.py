"""A graded row -> token ids with room for its recording, picture or video, ending at the read-out position.

The prompt is `instruction, question, soft prompt, medium` as the user's turn of the model's own chat template, then
the assistant's tag and the read-out token. Rows that cannot be encoded are dropped with a reason, never cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from luthier.models.load import Base
from luthier.models.tokens import soft_prompt_names
from luthier.recipe import Recipe
from luthier.recipe_model import LearnedTokens
from luthier.schema import Row


@dataclass(frozen=True, slots=True)
class Spelling:
    """The ids that stand for a picture or video; at the places of `words` are words, at the others its vectors."""

    ids: tuple[int, ...]
    words: tuple[int, ...] = ()


Spelled = int | Spelling | str
"""What stands for a medium: so many vectors of a recording, ids; or the reason why it cannot be read."""


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded row. Its medium fills `media_length` positions from `media_at`; the last position is the read-out."""

    id: str
    source: str
    group: str
    ids: tuple[int, ...]
    media: str
    media_at: int
    media_length: int
    grade: float
    target: float
    level: int
    held_back: tuple[float, ...] = ()
    words: tuple[int, ...] = ()
    """Places within the medium that are words and no vectors: the times of a video's frames."""
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

    def prompt_ids(self, question: str, medium: Spelled) -> tuple[tuple[int, ...], int] | str:
        """(ids, position of the first that stands for the medium), or the reason why the row must be dropped."""
        if isinstance(medium, str):
            return medium
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
        spelled = medium.ids if isinstance(medium, Spelling) else (self.audio_token_id,) * medium
        ids = [*ids[:at], *spelled, *ids[at + 1 :]]
        return (tuple(ids), at) if len(ids) <= self.max_tokens else "too_many_tokens"


def example_of(name: str, encoded: tuple[tuple[int, ...], int], medium: int | Spelling) -> Example:
    """A question to a medium of this name without group and grade; `encoded` is what `prompt_ids` gave."""
    ids, at = encoded
    words = medium.words if isinstance(medium, Spelling) else ()
    length = len(medium.ids) if isinstance(medium, Spelling) else medium
    return Example(name, "", "", ids, name, at, length, 0.0, 0.0, 0, words=words)


def encode_rows(
    rows: Sequence[Row],
    encoder: PromptEncoder,
    spelled: Mapping[str, Spelled],
    label: Callable[[Row], tuple[float, int]],
) -> tuple[list[Example], Counter[str]]:
    """Encode rows; `spelled` says what stands for their media, `label` gives (soft target, level).

    Returns the examples and the drops by reason.
    """
    examples, dropped = [], Counter[str]()
    for row in rows:
        media = row.media[0]
        medium = spelled[media]
        found = encoder.prompt_ids(row.text, medium)
        if isinstance(found, str):
            dropped[found] += 1
            continue
        assert not isinstance(medium, str), "it has ids"
        target, level = label(row)
        examples.append(
            replace(
                example_of(row.id, found, medium),
                source=row.provenance.source,
                group=row.group,
                media=media,
                grade=float(row.target.grade or 0.0),
                target=target,
                level=level,
                held_back=row.target.held_back,
            )
        )
    return examples, dropped
