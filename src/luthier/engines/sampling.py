"""The next token: the likeliest, or drawn as `Sampling` says. Knows no model.

Shapes: V tokens of the vocabulary.
"""

from __future__ import annotations

import torch

from luthier.engines.base import Sampling
from luthier.errors import RequestError

_COLDEST = 1e-30
"""Below it the smallest numbers of float32 begin, and then 0, which nothing can be divided by."""


class Chooser:
    """Chooses the tokens of one answer. The same seed draws the same tokens from the same logits on one device.

    Raises RequestError for settings that leave nothing to draw from.
    """

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        for wrong, what, mend in (
            (
                sampling.max_new_tokens < 1,
                f"max_new_tokens is {sampling.max_new_tokens}",
                "let an answer have 1 or more",
            ),
            (not 0 <= sampling.temperature <= 100, f"temperature is {sampling.temperature}", "give 0 to 100"),
            (not 0 < sampling.top_p <= 1, f"top_p is {sampling.top_p}", "give more than 0, at most 1"),
            (sampling.top_k < 0, f"top_k is {sampling.top_k}", "give 0 for all tokens, or how many"),
        ):
            if wrong:
                raise RequestError(f"sampling: {what}", mend)
        self._sampling = sampling
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % 2**63)

    def __call__(self, logits_V: torch.Tensor) -> int:
        """The next token."""
        if self._sampling.temperature == 0:
            return int(logits_V.argmax())
        probability_V = probabilities(logits_V, self._sampling)
        return int(torch.multinomial(probability_V, 1, generator=self._generator))


def probabilities(logits_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """(V,) with what each token is drawn: temperature first, then the `top_k` likeliest, then of these the likeliest
    that together have `top_p` (Holtzman et al. 2020, arXiv 1904.09751); the likeliest token always stays."""
    # From the likeliest on, which stays 0: a temperature near 0 makes the others -inf, and nothing inf - inf.
    scaled_V = (logits_V.float() - logits_V.max()) / max(sampling.temperature, _COLDEST)
    count = min(sampling.top_k or len(scaled_V), len(scaled_V))
    if count == len(scaled_V) and sampling.top_p == 1:
        return torch.softmax(scaled_V, -1)
    value_K, token_K = torch.topk(scaled_V, count)
    share_K = torch.softmax(value_K, -1)
    share_K[torch.cumsum(share_K, -1) - share_K >= sampling.top_p] = 0.0
    return torch.zeros_like(scaled_V).scatter_(0, token_K, share_K / share_K.sum())
