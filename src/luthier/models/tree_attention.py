"""Attention over a token tree: every token looks back along its own text, and at a beginning that was read before.

The decoder sees one line of tokens without padding. The attention function registered here with transformers gathers,
for each branch of the tree, the keys of the tokens before it; branches of like length are one product. Keys and values
of what all texts begin with are kept from a pass of their own, one copy a layer.

This module knows nothing of decoders, questions and scores; `tree_reading` calls the decoder.

Shapes: H query heads, G key and value heads, T tokens of the line, R branches of a group, N new tokens of a branch,
K tokens on its path, P tokens of the prefix, D head width or model width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from luthier.models import adapters
from luthier.models.attention import packed_attention
from luthier.models.token_tree import Branch, Ids, TokenTree

ATTENTION = "luthier_tree"
"""The name under which transformers knows the attention function."""

SHORT = 512
"""On a processor, branches up to this many tokens go through the plain formula, which is the faster one there."""


@dataclass
class Prefix:
    """What all texts begin with, and its keys and values (G, P, D) in each layer, by the layer's number.

    They belong to one state of the weights: a prefix is worth nothing after an adapter is switched.
    """

    ids: Ids
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a layer asks of its attention, beside being causal. `window` counts the token itself."""

    scale: float
    window: int | None
    softcap: float | None


@dataclass(frozen=True)
class _Group:
    """Branches of like length: places of their queries and keys, padded with place 0, and how many keys go before."""

    query_RN: torch.Tensor
    key_RK: torch.Tensor
    before_R: torch.Tensor
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def hidden(self, prefix: int, window: int | None) -> torch.Tensor:
        """(R, N, K) True where a query may not look, or (R, N, P + K) with a window. Made once for all its layers.

        Without a window every query sees the whole prefix.
        """
        if window not in self.masks:
            (_, new), keys = self.query_RN.shape, self.key_RK.shape[1]
            device = self.key_RK.device
            place_RN1 = (self.before_R[:, None] + torch.arange(new, device=device))[..., None]
            distance_RNK = place_RN1 - torch.arange(0 if window is None else -prefix, keys, device=device)
            behind_RNK = distance_RNK < 0
            self.masks[window] = behind_RNK if window is None else behind_RNK | (distance_RNK >= window)
        return self.masks[window]


@dataclass(frozen=True)
class Look:
    """What a layer needs to know of the line: the groups, where each token's output lies in theirs, the prefix."""

    groups: list[_Group]
    place_T: torch.Tensor
    prefix: Prefix
    keep: bool
    """Keep this line's own keys and values as the prefix of later ones."""

    @classmethod
    def of(cls, tree: TokenTree, prefix: Prefix, device: torch.device, keep: bool = False) -> Look:
        groups: list[_Group] = []
        place_T = np.empty(len(tree.ids_T), np.int64)
        begin = 0
        for branches in alike(tree.branches):
            new, keys = max(branch.length for branch in branches), max(len(branch.path) for branch in branches)
            query_RN, key_RK = (np.zeros((len(branches), width), np.int64) for width in (new, keys))
            for row, branch in enumerate(branches):
                query_RN[row, : branch.length] = branch.path[-branch.length :]
                key_RK[row, : len(branch.path)] = branch.path
                place_T[branch.path[-branch.length :]] = begin + row * new + np.arange(branch.length)
            before_R = np.array([len(branch.path) - branch.length for branch in branches])
            query, key, before = (torch.from_numpy(part).to(device) for part in (query_RN, key_RK, before_R))
            groups.append(_Group(query, key, before))
            begin += query_RN.size
        return cls(groups, torch.from_numpy(place_T).to(device), prefix, keep)


def alike(branches: list[Branch]) -> Iterator[list[Branch]]:
    """Branches in groups whose shortest has at least four fifths of the longest, in new tokens and in keys."""
    group: list[Branch] = []
    for branch in sorted(branches, key=lambda branch: (-branch.length, -len(branch.path))):
        if group and (branch.length < 0.8 * group[0].length or len(branch.path) < 0.8 * len(group[0].path)):
            yield group
            group = []
        group.append(branch)
    if group:
        yield group


@contextmanager
def looking_along_trees(model: Any) -> Iterator[None]:
    """Switch a causal decoder, plain or under PEFT, to this attention while the block lasts.

    Calls that are not told of a tree are answered as before.
    """
    AttentionInterface.register(ATTENTION, tree_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    bare = adapters.bare(model)
    before = bare.config.get_text_config()._attn_implementation
    bare.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        bare.set_attn_implementation(before)


def tree_attention(
    module: torch.nn.Module,
    query_1HTD: torch.Tensor,
    key_1GTD: torch.Tensor,
    value_1GTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it; returns (1, T, H, D) and no weights."""
    look: Look | None = options.pop("tree_look", None)
    if look is None:
        return packed_attention(module, query_1HTD, key_1GTD, value_1GTD, attention_mask, **options)
    query_HTD, key_GTD, value_GTD = query_1HTD[0], key_1GTD[0], value_1GTD[0]
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if look.keep:
        look.prefix.layers[layer] = (key_GTD, value_GTD)
    beginning = None if look.keep else look.prefix.layers.get(layer)
    scale = options.get("scaling")
    scale = query_HTD.shape[-1] ** -0.5 if scale is None else scale
    rule = _Rule(scale, options.get("sliding_window"), options.get("softcap"))
    outs = [_attend(group, query_HTD, key_GTD, value_GTD, beginning, rule).flatten(1, 2) for group in look.groups]
    out_HTD = torch.cat(outs, dim=1).index_select(1, look.place_T)
    return out_HTD.transpose(0, 1)[None], None


def _attend(
    group: _Group,
    query_HTD: torch.Tensor,
    key_GTD: torch.Tensor,
    value_GTD: torch.Tensor,
    beginning: tuple[torch.Tensor, torch.Tensor] | None,
    rule: _Rule,
) -> torch.Tensor:
    """(H, R, N, D) of one group."""
    query_HRND = query_HTD[:, group.query_RN]
    key_GRKD, value_GRKD = key_GTD[:, group.key_RK], value_GTD[:, group.key_RK]
    length = 0
    if beginning is not None:
        rows, length = len(group.key_RK), beginning[0].shape[1]
        key_GRKD, value_GRKD = (
            torch.cat([first[:, None].expand(-1, rows, -1, -1), own], dim=2)
            for first, own in zip(beginning, (key_GRKD, value_GRKD), strict=True)
        )
    hidden_RNK = group.hidden(length, rule.window)
    if rule.softcap is None and (query_HRND.shape[2] > SHORT or query_HTD.device.type != "cpu"):
        times = query_HRND.shape[0] // key_GRKD.shape[0]
        seen_RNK = functional.pad(~hidden_RNK, (key_GRKD.shape[2] - hidden_RNK.shape[2], 0), value=True)
        return functional.scaled_dot_product_attention(
            query_HRND.transpose(0, 1),
            key_GRKD.repeat_interleave(times, dim=0).transpose(0, 1),
            value_GRKD.repeat_interleave(times, dim=0).transpose(0, 1),
            attn_mask=seen_RNK[:, None],
            scale=rule.scale,
        ).transpose(0, 1)
    return _by_formula(query_HRND * rule.scale, key_GRKD, value_GRKD, hidden_RNK, rule.softcap)


def _by_formula(
    query_HRND: torch.Tensor,
    key_GRKD: torch.Tensor,
    value_GRKD: torch.Tensor,
    hidden_RNK: torch.Tensor,
    softcap: float | None,
) -> torch.Tensor:
    """(H, R, N, D) by the plain formula; heads that share keys are one product. The mask is of the last keys."""
    (heads, rows, new, width), (groups, _, keys, _) = query_HRND.shape, key_GRKD.shape
    times = heads // groups
    query_GRMD = query_HRND.view(groups, times, rows, new, width).transpose(1, 2).reshape(groups, rows, times * new, -1)
    scores = query_GRMD @ key_GRKD.transpose(2, 3)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.view(groups, rows, times, new, keys)
    scores[..., keys - hidden_RNK.shape[2] :].masked_fill_(hidden_RNK[:, None], -torch.inf)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value_GRKD.dtype)
    out_GRMD = weights.view(groups, rows, times * new, keys) @ value_GRKD
    return out_GRMD.view(groups, rows, times, new, -1).transpose(1, 2).reshape(heads, rows, new, -1)
