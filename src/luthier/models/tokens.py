"""New tokens of a tokenizer and their rows: a verdict's read-out token and soft prompt, a chat's added tokens.

They live in spare rows of the embedding matrix and are trained through PEFT's `trainable_token_indices` (or with all
other weights when all are tuned). A verdict's matrix is never resized; a chat's grows when no row is spare, and never
shrinks: published matrices have more rows than their tokenizer has tokens.
"""

from __future__ import annotations

from typing import Any

import torch

from luthier.errors import RequestError
from luthier.models.text_base import TextBase
from luthier.recipe_model import LearnedTokens

_MEANING = ("pass", "fail", "score", "grade")
"""Words whose mean embedding is where a new token of a verdict begins."""
_ROWS_LOOKED_AT = 4096
"""Rows of the vocabulary, evenly spaced, whose mean and spread stand for all of them."""
GROWTH = 64
"""A grown matrix has a multiple of so many rows: matrix products are slow at odd sizes."""


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
    _begin(weight, list(ids.values()), words, seed)


def _begin(weight: torch.Tensor, rows: list[int], like: list[int] | slice, seed: int) -> None:
    """Set rows (V, D) to the mean of others, plus noise of a tenth of their spread."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        known = weight[like].float()
        mean, scale = known.mean(0), known.std() * 0.1
        for index in rows:
            noise = torch.randn(mean.shape, generator=generator).to(mean.device)
            weight[index] = (mean + scale * noise).to(weight.dtype)


def name_text_tokens(tokenizer: Any, names: list[str]) -> None:
    """Make names tokens of a chat's tokenizer: what reads with it then has the ids of a run, without its base."""
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([name for name in names if name not in known], special_tokens=True)


def add_text_tokens(base: TextBase, names: list[str], seed: int) -> dict[str, int]:
    """Add tokens to a chat base and return name -> id. A name that the tokenizer has already keeps id and row.

    New rows begin at the mean of the vocabulary with a little seeded noise, in the head too where it is a matrix of
    its own. Without spare rows the matrix grows (`base.grown`): the new rows, those that no token has among them, are
    then trained and saved with the adapter, and whoever loads it resizes the base to as many rows first.
    """
    known = base.tokenizer.get_vocab()
    name_text_tokens(base.tokenizer, names)
    ids = {name: int(base.tokenizer.convert_tokens_to_ids(name)) for name in names}
    before = base.model.get_input_embeddings().weight.shape[0]
    if ids and max(ids.values()) >= before:
        rows = -(-(max(ids.values()) + 1) // GROWTH) * GROWTH
        with torch.random.fork_rng(devices=[]):
            base.model.resize_token_embeddings(rows, mean_resizing=False)
        base.grown = range(before, rows)
    base.added_tokens = ids
    fresh = sorted({*(index for name, index in ids.items() if name not in known), *base.grown})
    filled = min(before, max(known.values()) + 1)
    like = slice(0, filled, max(1, filled // _ROWS_LOOKED_AT))
    for part in (base.model.get_input_embeddings(), base.model.get_output_embeddings()):
        _begin(part.weight, fresh, like, seed)  # a tied matrix is set twice, alike: nothing it is made of changes
    return ids


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
