"""Last states of the texts of a token tree, each token read once where the architecture allows it.

Where texts also meet outside of attention (state-space layers, attention of an own kind) they are read whole, in
padded batches; so are those with media on bases that place them otherwise than words (mRoPE, deepstack, pictures that
look both ways). Which of the two is right is proved on a few tokens before it is used. This module knows nothing of
questions, heads and scores.

Shapes: T tokens of the line, B texts of a batch, L tokens of the longest, D model width, K layers that
take vectors, M vectors, N some of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from luthier.models import adapters, quantized
from luthier.models.attention import why_not_apart
from luthier.models.head import body
from luthier.models.senses.base import Medium, Senses
from luthier.models.senses.laying import decoder_given, lay
from luthier.models.token_tree import Ids, TokenTree
from luthier.models.tree_attention import Look, Prefix, alike, looking_along_trees

TOLERANCE, ROUGH_TOLERANCE = 1e-4, 3e-2
"""How far states of the two ways may differ in the proof, as a share of the largest; the second in half precision and
on int8 weights."""


class Vectors(Protocol):
    """Positions that are vectors and no tokens, on a base that sees or hears: ids from `first` on number them."""

    @property
    def senses(self) -> Senses: ...

    @property
    def first(self) -> int:
        """The first id that is no token."""
        ...

    def read(self, ids: Ids) -> tuple[Ids, tuple[Medium, ...]]:
        """A text's ids with slots in place of numbers, and its media."""
        ...

    def rows(self, number_N: Ids) -> torch.Tensor:
        """(N, D) the vectors of these numbers, where there is one layer of them."""
        ...

    def vectors(self, media: Iterable[Medium]) -> torch.Tensor | None:
        """(K, M, D) of some media, end to end; None for none."""
        ...


class TreeReader:
    """A causal decoder, plain or under PEFT, in one state of its weights. Made by `reading`."""

    def __init__(self, model: Any, vectors: Vectors | None = None) -> None:
        self.model, self.vectors = model, vectors
        self.bare = adapters.bare(model)
        self.embedding = self.bare.get_input_embeddings()
        self.decoder = body(model) if vectors is None else vectors.senses.decoder(self.bare)
        self.along_trees = False
        """Whether every token is read once; else texts are read whole."""
        self.longest = stretches_beyond(self.bare.config.get_text_config())
        """Texts beyond this many tokens change the positions of all that is read with them; None: there is no such."""

    def prefix(self, ids: Ids) -> Prefix:
        """What all texts of later trees begin with, read once."""
        found = Prefix(ids)
        if len(ids) and self.along_trees and not self._whole(ids):
            self._read_tree(TokenTree.of([ids]), found, keep=True)
        return found

    def states(self, tree: TokenTree, prefix: Prefix) -> torch.Tensor:
        """(T, D) last states of the tree's tokens; its texts begin with the prefix."""
        if self.along_trees and not self._whole(prefix.ids) and not self._whole(tree.ids_T):
            return self._read_tree(tree, prefix)
        return self._read_whole(tree, prefix)

    def _whole(self, ids: Ids) -> bool:
        """Whether there are media among these that a tree cannot place."""
        vectors = self.vectors
        return vectors is not None and not vectors.senses.plain and bool((ids >= vectors.first).any())

    def _read_tree(self, tree: TokenTree, prefix: Prefix, keep: bool = False) -> torch.Tensor:
        device = self.embedding.weight.device
        found: torch.Tensor = self.decoder(
            **self._in_line(tree.ids_T[None]),
            position_ids=torch.from_numpy(tree.position_T)[None].to(device),
            # An empty mask of four dimensions is passed on as it is.
            attention_mask=torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device),
            use_cache=False,
            tree_look=Look.of(tree, prefix, device, keep),
        ).last_hidden_state[0]
        return found

    def _read_whole(self, tree: TokenTree, prefix: Prefix) -> torch.Tensor:
        """Padding stands on the right, where no token of a causal model sees it."""
        found_TD: torch.Tensor | None = None
        for branches in alike(tree.branches):
            texts = [np.concatenate([prefix.ids, tree.ids_T[branch.path]]) for branch in branches]
            states_BLD = self.decoder(**self._side_by_side(texts), use_cache=False).last_hidden_state
            if found_TD is None:
                found_TD = states_BLD.new_empty(len(tree.ids_T), states_BLD.shape[-1])
            for row, (text, branch) in enumerate(zip(texts, branches, strict=True)):
                places = torch.from_numpy(branch.path[-branch.length :]).to(found_TD.device)
                found_TD[places] = states_BLD[row, len(text) - branch.length : len(text)]
        assert found_TD is not None
        return found_TD

    def _side_by_side(self, texts: list[Ids]) -> dict[str, Any]:
        """What the decoder is given for texts padded on the right."""
        if self.vectors is not None:
            senses, rows = self.vectors.senses, [self.vectors.read(text) for text in texts]
            vectors_KMD = self.vectors.vectors(medium for _, media in rows for medium in media)
            if vectors_KMD is not None:
                vectors_KMD = vectors_KMD.to(self.embedding.weight.device)
            return decoder_given(senses, self.bare, lay(senses, rows, 0), vectors_KMD)
        ids_BL = np.zeros((len(texts), max(map(len, texts))), np.int64)
        for row, text in enumerate(texts):
            ids_BL[row, : len(text)] = text
        return {"input_ids": torch.from_numpy(ids_BL).to(self.embedding.weight.device)}

    def _in_line(self, ids_1T: Ids) -> dict[str, torch.Tensor]:
        """What the decoder is given for a line of tokens, and of vectors where these are no more than that."""
        device = self.embedding.weight.device
        if self.vectors is None:
            return {"input_ids": torch.from_numpy(ids_1T).to(device)}
        given_1T = ids_1T >= self.vectors.first
        embeds_1TD = self.embedding(torch.from_numpy(np.where(given_1T, 0, ids_1T)).to(device))
        if given_1T.any():
            embeds_1TD[torch.from_numpy(given_1T).to(device)] = self.vectors.rows(ids_1T[given_1T]).to(embeds_1TD)
        return {"inputs_embeds": embeds_1TD}


@contextmanager
def reading(model: Any, vectors: Vectors | None = None) -> Iterator[TreeReader]:
    """A reader of the model as it is now, with whatever adapter is active, while the block lasts."""
    reader = TreeReader(model, vectors)
    with ExitStack() as stack:
        if not why_not_apart(adapters.bare(model)):
            stack.enter_context(looking_along_trees(model))
            reader.along_trees = _proved(reader)
            if not reader.along_trees:
                stack.close()
        yield reader


def _proved(reader: TreeReader) -> bool:
    """Whether two texts with one beginning have the states along a tree that they have when they are read whole."""
    count = reader.embedding.weight.shape[0]
    texts = [np.array(numbers) % count for numbers in ([5, 11, 3, 7], [5, 11, 2])]
    tree = TokenTree.of(texts, 1)
    with torch.no_grad():
        theirs_TD = reader._read_whole(tree, Prefix(texts[0][:1]))
        reader.along_trees = True
        ours_TD = reader.states(tree, reader.prefix(texts[0][:1]))
    exact = theirs_TD.dtype == reader.embedding.weight.dtype == torch.float32
    # int8 layers round what goes in to 8 bits, so the last bit of a state decides about a 127th of it.
    exact = exact and quantized.kind_of(reader.bare) != "int8"
    limit = TOLERANCE if exact else ROUGH_TOLERANCE
    return bool((ours_TD - theirs_TD).abs().max() <= limit * theirs_TD.abs().max())


def stretches_beyond(config: Any) -> int | None:
    """The length beyond which rotary positions are stretched to fit the longest text of a pass; None: never.

    LongRoPE (arXiv 2402.13753) and dynamic NTK scaling choose their frequencies by the longest text.
    """
    found = getattr(config, "rope_parameters", None) or {}
    kinds = [found] if "rope_type" in found else [kind for kind in found.values() if isinstance(kind, dict)]
    lengths = [
        kind.get("original_max_position_embeddings") or config.max_position_embeddings
        for kind in kinds
        if kind.get("rope_type") in ("longrope", "dynamic")
    ]
    return min(lengths, default=None)
