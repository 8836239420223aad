"""Packed rows: rows laid end to end in one line, and attention that cannot cross from one into the next.

A line of T tokens holds rows of known lengths; `packed_kwargs` tells the decoder those lengths, on the host as
well as on the device, so that no layer reads a device tensor. The attention function registered here with
transformers then attends within each row: with one variable-length kernel where a GPU has it, else row by row
with torch's fused attention. No mask of T x T is ever built.

This module knows nothing of batches, losses or training. It refuses architectures whose rows also meet outside
of attention (state-space and linear layers), or whose attention it would have to guess (sinks, chunks).

Shapes: B lines, H query heads, G key and value heads, T tokens of a line, L tokens of a row, D head width.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import varlen
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from luthier.errors import RequestError

ATTENTION = "luthier_packed"
"""The name under which transformers knows the attention function."""

HALF = (torch.float16, torch.bfloat16)

SHORT = 512
"""Tokens of a short row on a processor (0.7 ms beside torch's 4.1 at 100, 13 beside 18 at 512, slower at 1,024)."""


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Where the rows of a line end: `lengths` on the host, `borders` (int32, rows + 1, from 0 to T) on the device.

    Sum and maximum are kept apart from the lengths: a compiled step that reads only these two fits any rows.
    """

    lengths: tuple[int, ...]
    borders: torch.Tensor
    total: int
    longest: int


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a layer asks of its attention, beside being causal. `window` counts the token itself."""

    scale: float
    window: int | None
    softcap: float | None
    dropout: float


def use_packed_attention(model: Any) -> None:
    """Switch a causal decoder of transformers, plain or under PEFT, to attention that keeps rows apart.

    Calls without `packed_kwargs` (generation with a cache, left padding) are then those of transformers' own
    "sdpa", or the plain formula where the layer caps its scores. Raises RequestError for an architecture whose
    rows cannot be kept apart by attention alone.
    """
    AttentionInterface.register(ATTENTION, packed_attention)
    # transformers builds this mask only for calls without rows: a mask of four dimensions is passed on as it is.
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    reason = why_not_apart(model)
    if not reason:
        model.set_attn_implementation(ATTENTION)
        if model.config.get_text_config()._attn_implementation != ATTENTION:
            reason = "does not take its attention from transformers' interface"
    if reason:
        raise RequestError(
            f"{model.config.get_text_config().model_type} {reason}: packed rows would read one another",
            "set train.packing: false",
        )


def why_not_apart(model: Any) -> str:
    """Why attention alone cannot keep the rows of a line apart in this architecture; "" where it can."""
    config = model.config.get_text_config()
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    foreign = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if foreign or getattr(model, "_is_stateful", False):
        return f"has layers that carry state across rows ({', '.join(sorted(foreign)) or 'state-space layers'})"
    if not model._supports_attention_backend or not (model._supports_sdpa or capped):
        return "has an attention of its own"
    return ""


def packed_kwargs(lengths: Sequence[int], device: torch.device | str) -> dict[str, Any]:
    """What to add to the decoder's call so that it knows the rows of its lines (B, T).

    `lengths` sum to T. Lines of one row each, padded on the right, are `packed_kwargs([T], device)`: a token
    never sees the padding behind it. The caller gives position ids that restart at each row. Sets `use_cache` to
    False, and `attention_mask` to an empty stand-in that keeps transformers from reading the position ids on the host.
    """
    if not lengths or min(lengths) < 1:
        raise RequestError(f"row lengths {list(lengths)}: a row has one token or more", "leave empty rows out")
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return {
        "packed_rows": PackedRows(
            tuple(lengths), ends.to(device, non_blocking=True), total=sum(lengths), longest=max(lengths)
        ),
        "attention_mask": torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device),
        "use_cache": False,
    }


def packed_attention(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BGTD: torch.Tensor,
    value_BGTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it; returns (B, T, H, D) and no weights.

    Raises RequestError where the rows got lost on the way, or do not fill the line.
    """
    rows: PackedRows | None = options.pop("packed_rows", None)
    scale = options.get("scaling")
    rule = _Rule(
        query_BHTD.shape[-1] ** -0.5 if scale is None else scale,
        options.get("sliding_window"),
        options.get("softcap"),
        options.get("dropout", 0.0),
    )
    if rows is None:
        if attention_mask is not None and attention_mask.numel() == 0:
            raise RequestError(f"{type(module).__name__} was not told the rows of its line", "set train.packing: false")
        if rule.softcap is None:
            return AttentionInterface()["sdpa"](module, query_BHTD, key_BGTD, value_BGTD, attention_mask, **options)
        return _capped(query_BHTD, key_BGTD, value_BGTD, attention_mask, rule).transpose(1, 2), None
    if not rows.total == query_BHTD.shape[2] == key_BGTD.shape[2]:
        raise RequestError(
            f"rows of {rows.total} tokens in a line of {query_BHTD.shape[2]} that attends to {key_BGTD.shape[2]}",
            "give the lengths of exactly these rows, and no cache",
        )
    if rows.longest < rows.total and _fits_one_kernel(query_BHTD, value_BGTD, rule):
        return _in_one_kernel(query_BHTD, key_BGTD, value_BGTD, rows, rule), None
    return _row_by_row(query_BHTD, key_BGTD, value_BGTD, rows, rule), None


def _row_by_row(
    query_BHTD: torch.Tensor, key_BGTD: torch.Tensor, value_BGTD: torch.Tensor, rows: PackedRows, rule: _Rule
) -> torch.Tensor:
    """(B, T, H, D). Splits rather than slices: the gradient of a slice would be a whole line of zeros for each row."""
    queries, keys, values = (part.split(rows.lengths, dim=2) for part in (query_BHTD, key_BGTD, value_BGTD))
    outs = [_row(query, key, value, rule) for query, key, value in zip(queries, keys, values, strict=True)]
    return torch.cat([out_BHLD.transpose(1, 2) for out_BHLD in outs], dim=1)


def _row(query_BHLD: torch.Tensor, key_BGLD: torch.Tensor, value_BGLD: torch.Tensor, rule: _Rule) -> torch.Tensor:
    """Causal attention of one row to itself, (B, H, L, D)."""
    length = query_BHLD.shape[2]
    allowed_LL = None
    if rule.window is not None and length > rule.window:
        ones_LL = torch.ones(length, length, dtype=torch.bool, device=query_BHLD.device)
        allowed_LL = ones_LL.tril().triu(1 - rule.window)
    if rule.softcap is not None:
        return _capped(query_BHLD, key_BGLD, value_BGLD, allowed_LL, rule)
    if rule.dropout == 0.0 and length <= SHORT and query_BHLD.device.type == "cpu" and query_BHLD.dtype not in HALF:
        return _short(query_BHLD, key_BGLD, value_BGLD, allowed_LL, rule.scale)
    # In full precision or with a mask, shared heads would send torch to its unfused formula on a GPU.
    shared = allowed_LL is None and query_BHLD.dtype in HALF
    if not shared:
        key_BGLD, value_BGLD = _for_each_head(query_BHLD, key_BGLD, value_BGLD)
    return functional.scaled_dot_product_attention(
        query_BHLD,
        key_BGLD,
        value_BGLD,
        attn_mask=allowed_LL,
        dropout_p=rule.dropout,
        is_causal=allowed_LL is None,
        scale=rule.scale,
        enable_gqa=shared,
    )


def _short(
    query_BHLD: torch.Tensor,
    key_BGLD: torch.Tensor,
    value_BGLD: torch.Tensor,
    allowed_LL: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """The plain formula: on a processor it is up to six times as fast as torch's blocked kernel on short rows.

    Heads that share keys are one product, so no key is repeated; scores of H x L x L are kept for backward.
    """
    heads, (groups, length) = query_BHLD.shape[1], key_BGLD.shape[1:3]
    query_BGTD = query_BHLD.reshape(-1, groups, heads // groups * length, query_BHLD.shape[-1])
    scores_BHLL = (query_BGTD @ (key_BGLD * scale).transpose(2, 3)).view(-1, heads, length, length)
    if allowed_LL is None:
        allowed_LL = torch.ones(length, length, dtype=torch.bool, device=query_BHLD.device).tril()
    weights_BHLL = torch.softmax(scores_BHLL.masked_fill(~allowed_LL, -torch.inf), dim=-1)
    out_BGTD = weights_BHLL.view(-1, groups, heads // groups * length, length) @ value_BGLD
    return out_BGTD.view(-1, heads, length, value_BGLD.shape[-1])


def _capped(
    query_BHLD: torch.Tensor,
    key_BGLD: torch.Tensor,
    value_BGLD: torch.Tensor,
    allowed: torch.Tensor | None,
    rule: _Rule,
) -> torch.Tensor:
    """Attention with scores held between -softcap and softcap (Gemma 2, 2024, section 2), (B, H, L, D).

    No fused kernel of torch caps scores, so those of a row exist whole: H x L x L. `allowed` is True where a
    query may look; without it attention is causal.
    """
    assert rule.softcap is not None
    key_BHLD, value_BHLD = _for_each_head(query_BHLD, key_BGLD, value_BGLD)
    scores = query_BHLD @ key_BHLD.transpose(2, 3) * rule.scale
    scores = rule.softcap * torch.tanh(scores / rule.softcap)
    if allowed is None:
        queries, keys = scores.shape[-2:]  # with a cache there are more keys, and the last query sees all of them
        allowed = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril(keys - queries)
    # The lowest number rather than -inf: a query on left padding has nothing to look at, and must not become NaN.
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value_BHLD.dtype)
    return functional.dropout(weights, rule.dropout) @ value_BHLD


def _for_each_head(
    query_BHLD: torch.Tensor, key_BGLD: torch.Tensor, value_BGLD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values repeated for every query head of their group."""
    times = query_BHLD.shape[1] // key_BGLD.shape[1]
    if times == 1:
        return key_BGLD, value_BGLD
    return key_BGLD.repeat_interleave(times, dim=1), value_BGLD.repeat_interleave(times, dim=1)


@cache
def _flash_kernel() -> Any:
    """flash-attn's variable-length function, or None where it is not installed."""
    try:
        return importlib.import_module("flash_attn").flash_attn_varlen_func
    except ImportError:
        return None


def _fits_one_kernel(query_BHTD: torch.Tensor, value_BGTD: torch.Tensor, rule: _Rule) -> bool:
    """Whether a GPU kernel takes the whole line: one line, half precision, Ampere or later, heads of one fit width.

    flash-attn also knows dropout, capped scores and widths to 256; torch's own kernel knows none of these on every
    such GPU, and shares key heads from torch 2.12 on.
    """
    width = query_BHTD.shape[-1]
    if not query_BHTD.is_cuda or value_BGTD.dtype not in HALF or len(query_BHTD) > 1:
        return False
    if width % 8 or width != value_BGTD.shape[-1] or torch.cuda.get_device_capability(query_BHTD.device) < (8, 0):
        return False
    if _flash_kernel() is not None:
        return width <= 256
    shares_heads = "enable_gqa" in signature(varlen.varlen_attn).parameters
    return width <= 192 and shares_heads and rule.softcap is None and rule.dropout == 0.0


def _in_one_kernel(
    query_BHTD: torch.Tensor, key_BGTD: torch.Tensor, value_BGTD: torch.Tensor, rows: PackedRows, rule: _Rule
) -> torch.Tensor:
    """(1, T, H, D) from one call for all rows."""
    # Normed queries and keys come out of autocast in full precision; the kernels want one type.
    query, key, value = (part[0].transpose(0, 1).to(value_BGTD.dtype) for part in (query_BHTD, key_BGTD, value_BGTD))
    # Both kernels count the tokens before the query's own.
    window = (-1 if rule.window is None else rule.window - 1, 0)
    borders, longest = rows.borders, rows.longest
    flash = _flash_kernel()
    if flash is None:
        out: Any = varlen.varlen_attn(
            query,
            key,
            value,
            borders,
            borders,
            longest,
            longest,
            scale=rule.scale,
            window_size=window,
            enable_gqa=True,
        )
    else:
        out = flash(
            query,
            key,
            value,
            borders,
            borders,
            longest,
            longest,
            dropout_p=rule.dropout,
            softmax_scale=rule.scale,
            causal=True,
            window_size=window,
            softcap=rule.softcap or 0.0,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
    return out.unsqueeze(0)
