"""Log-likelihoods of continuations: every token is read once, and only what predicts a scored token meets the head.

`Request` and `encode` are the level of strings, and follow lm-evaluation-harness (Gao et al.) token by token. `Scorer`
is the level of ids: what all texts begin with is read once for one state of the weights, the rest as a tree
(`models.token_tree`), so a question is read once for all its options, and options of one token come from one position.
This module knows nothing of exams.

Shapes: T tokens of a line, N scored tokens, U places that predict them, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from luthier.models.head import Head
from luthier.models.token_tree import Ids, TokenTree, shared_length
from luthier.models.tree_attention import Prefix
from luthier.models.tree_reading import TreeReader, Vectors, reading
from luthier.runtime.devices import Devices

LOGITS = 2**25
"""Logits held at once: 128 MiB in float32."""


@dataclass(frozen=True)
class Request:
    """A text and the continuation whose probability is asked for."""

    context: str
    continuation: str


@dataclass(frozen=True, eq=False)
class Scored:
    """A text as ids, of which those from `start` on are scored. Something stands before the first scored one."""

    ids: Ids
    start: int

    @property
    def count(self) -> int:
        """How many ids are scored."""
        return len(self.ids) - self.start


def encode(requests: Sequence[Request], tokenizer: Any) -> list[Scored]:
    """Ids of plain-text requests, cut where lm-evaluation-harness cuts them.

    Blanks that end a context are scored with the continuation. Context and whole are encoded apart, and what the whole
    has beyond the context's count is scored. The tokenizer adds its first token unless the text has it already. Before
    a continuation without a context stands BOS, or EOS where there is none. A tokenizer that ends every text with EOS
    is kept from it (the harness is not): it would stand between context and continuation, and be scored.
    """
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    moved = []
    for request in requests:
        context = request.context.rstrip()
        moved.append((context, request.context[len(context) :] + request.continuation))
    contexts = sorted({context for context, _ in moved})
    lengths = dict(zip(contexts, map(len, _tokens(contexts, tokenizer)), strict=True))
    wholes = _tokens([context + continuation for context, continuation in moved], tokenizer)
    found = []
    for (context, _), ids in zip(moved, wholes, strict=True):
        start = lengths[context]
        if not context:
            start, ids = 1, ids if ids[0] == first else [first, *ids]
        found.append(Scored(np.array(ids, np.int64), start))
    return found


def _tokens(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Ids of each text in one call, with the tokenizer's own first token unless the text begins with it; no last."""
    first, last = tokenizer.bos_token, tokenizer.eos_token_id
    ended = last is not None and tokenizer("a", verbose=False)["input_ids"][-1] == last
    begun = [bool(first) and text.startswith(first) for text in texts]
    found: list[list[int]] = [[]] * len(texts)
    for flag in (False, True):
        part = [at for at, has in enumerate(begun) if has == flag]
        if part:
            ids = tokenizer([texts[at] for at in part], add_special_tokens=not flag, verbose=False)["input_ids"]
            for at, one in zip(part, ids, strict=True):
                found[at] = one[:-1] if ended and not flag else one
    return found


def encode_answers(requests: Sequence[Request], tokenizer: Any) -> list[Scored]:
    """Ids of rendered chats, scored from the token that holds the answer's first character that is no blank."""
    wholes = [request.context + request.continuation for request in requests]
    made = tokenizer(wholes, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    found = []
    for request, ids, places in zip(requests, made["input_ids"], made["offset_mapping"], strict=True):
        blanks = len(request.continuation) - len(request.continuation.lstrip())
        at = len(request.context) + blanks
        start = next(token for token, (_, end) in enumerate(places) if end > at)
        found.append(Scored(np.array(ids, np.int64), start))
    return found


def beginning(texts: Sequence[Scored]) -> Ids:
    """What all texts begin with, as far as none of it predicts a scored token."""
    first = texts[0].ids[: min(text.start for text in texts) - 1]
    for text in texts[1:]:
        first = first[: shared_length(first, text.ids)]
    return first


class Scorer:
    """A model in one state of its weights, ready to score. Made by `scoring`."""

    def __init__(self, reader: TreeReader, head: Head, devices: Devices) -> None:
        self.reader, self.head, self.devices = reader, head, devices
        self.read = 0
        """Tokens read so far."""

    def prefix(self, ids: Ids) -> Prefix:
        """Read what all texts of later calls begin with."""
        self.read += len(ids) * self.reader.along_trees
        with torch.no_grad(), self.devices.precision.autocast():
            return self.reader.prefix(ids)

    def __call__(self, texts: Sequence[Scored], prefix: Prefix) -> list[float]:
        """The sum of log-probabilities, in nats, of each text's scored ids; all begin with the prefix."""
        most = self.reader.longest
        alone = [text for text in texts if most is not None and len(text.ids) - 1 > most]
        if not alone:
            return self._sums(texts, prefix)
        together = [text for text in texts if text not in alone]
        found = dict(zip(together, self._sums(together, prefix), strict=True)) if together else {}
        for text in alone:
            found[text] = self._sums([text], Prefix(text.ids[:0]))[0]
        return [found[text] for text in texts]

    def _sums(self, texts: Sequence[Scored], prefix: Prefix) -> list[float]:
        common = len(prefix.ids)
        tree = TokenTree.of([text.ids[:-1] for text in texts], common)
        self.read += len(tree.ids_T)
        # The token before each scored one predicts it.
        place_N = np.concatenate(
            [path[text.start - 1 - common :] for path, text in zip(tree.paths, texts, strict=True)]
        )
        target_N = np.concatenate([text.ids[text.start :] for text in texts])
        with torch.no_grad(), self.devices.precision.autocast():
            logprob_N = self._logprobs(self.reader.states(tree, prefix), place_N, target_N)
        ends = np.cumsum([text.count for text in texts])[:-1]
        return [float(part.sum()) for part in np.split(logprob_N, ends)]

    def _logprobs(self, state_TD: torch.Tensor, place_N: Ids, target_N: Ids) -> Any:
        """(N,) float64; a place that predicts several targets meets the head once."""
        unique_U, which_N = np.unique(place_N, return_inverse=True)
        found_N = np.empty(len(place_N))
        device, step = state_TD.device, max(1, LOGITS // self.head.vocabulary)
        for begin in range(0, len(unique_U), step):
            places = torch.from_numpy(unique_U[begin : begin + step]).to(device)
            logits_UV = self.head.logits(state_TD.index_select(0, places))
            part = np.flatnonzero((which_N >= begin) & (which_N < begin + step))
            rows, targets = (torch.from_numpy(one[part]).to(device) for one in (which_N - begin, target_N))
            found = logits_UV[rows, targets] - logits_UV.logsumexp(dim=-1)[rows]
            found_N[part] = found.double().cpu().numpy()
        return found_N


@contextmanager
def scoring(model: Any, devices: Devices, vectors: Vectors | None = None) -> Iterator[Scorer]:
    """A scorer of the model as it is now, with whatever adapter is active, in evaluation mode while the block lasts."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Each new length would be compiled again.
        with torch.compiler.set_stance("force_eager"), devices.precision.autocast():
            head = Head.of(model)
            with reading(model, vectors) as reader:
                yield Scorer(reader, head, devices)
    finally:
        for module, training in modes:
            module.training = training
