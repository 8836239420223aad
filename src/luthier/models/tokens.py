"""Learned token embeddings: the read-out token and a soft prompt, as new tokens of the tokenizer.

They live in spare rows of the embedding matrix, which is never resized, and are trained through PEFT's
`trainable_token_indices` (or with all other weights when all are tuned).
"""

from __future__ import annotations

from typing import Any

import torch

from luthier.errors import RequestError
from luthier.recipe_model import LearnedTokens

_MEANING = ("pass", "fail", "score", "grade")
"""Words whose mean embedding is where a new token begins."""


def soft_prompt_names(settings: LearnedTokens) -> list[str]:
    return [f"<|learned_{index}|>" for index in range(settings.soft_prompt)]


def add_learned_tokens(tokenizer: Any, model: Any, settings: LearnedTokens) -> dict[str, int]:
    """Add the tokens to the tokenizer and return name -> id.

    Raises RequestError when the embedding has no spare rows: resizing it would make the adapter unloadable on
    the plain base.
    """
    names = [settings.readout, *soft_prompt_names(settings)]
    tokenizer.add_special_tokens({"additional_special_tokens": names}, replace_extra_special_tokens=False)
    ids = {name: int(tokenizer.convert_tokens_to_ids(name)) for name in names}
    rows = model.get_input_embeddings().weight.shape[0]
    if max(ids.values()) >= rows:
        raise RequestError(
            f"model.learned_tokens: the vocabulary has {rows} rows and no room for {len(names)} more",
            f"set model.learned_tokens.soft_prompt below {settings.soft_prompt or 1}",
        )
    if len(set(ids.values())) != len(names):
        raise RequestError("model.learned_tokens: two learned tokens share an id", "name them differently")
    return ids


def initialise_learned_tokens(tokenizer: Any, model: Any, ids: dict[str, int], seed: int) -> None:
    """Set the rows of new tokens: the mean embedding of words of judgement, plus a little seeded noise.

    The noise tells the tokens of a soft prompt apart; equal rows would get equal gradients for ever.
    """
    weight = model.get_input_embeddings().weight
    words = [i for word in _MEANING for i in tokenizer.encode(word, add_special_tokens=False)]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        mean = weight[words].float().mean(0)
        scale = weight[words].float().std() * 0.1
        for index in ids.values():
            noise = torch.randn(mean.shape, generator=generator).to(mean.device)
            weight[index] = (mean + scale * noise).to(weight.dtype)


def answer_ids(tokenizer: Any, answers: dict[str, str]) -> dict[str, int]:
    """The single token of each answer. Raises RequestError for an answer of several tokens."""
    found = {}
    for name, text in answers.items():
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise RequestError(
                f"task.answers.{name}: {text!r} is {len(ids)} tokens, and one is needed",
                "choose a text such as 1, 0, A, B",
            )
        found[name] = int(ids[0])
    if found["pass"] == found["fail"]:
        raise RequestError("task.answers: pass and fail are the same token", "choose two texts")
    return found
