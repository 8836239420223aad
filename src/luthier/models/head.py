"""The head of a causal language model: what turns a hidden state into logits, found out once and proved.

The decoder runs without its head, so that logits are computed only where a target is. What the model's own forward
does to them besides (a scale, a soft cap) is read from its config, and held against that forward: an architecture that
does something else is refused, not trained wrongly. This module knows nothing of targets, losses or training.

Shapes: N positions, D model width, V vocabulary, R rows of the weight that are trained alone, T tokens of the proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from luthier.errors import RequestError
from luthier.models import adapters

PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Types in which a weight is what it says, neither packed nor quantised."""

TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2
"""How far logits of the two ways may differ, as a share of the largest; the second where either is half precision."""

STRETCH = 50.0
"""The size that logits are brought to in the proof: a soft cap leaves those of a new model nearly as they are."""


@dataclass(frozen=True, eq=False)
class Head:
    """logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap), without the tanh where softcap is 0.

    Holds the model's own parameters, so it follows them while they train; make a new one when adapters are switched.
    """

    weight_VD: torch.Tensor | None = None
    bias_V: torch.Tensor | None = None
    rows_R: torch.Tensor | None = None
    """Ids of the rows of weight_VD for which patch_RD stands in."""
    patch_RD: torch.Tensor | None = None
    module: nn.Module | None = None
    """What to call where there is no plain weight: LoRA on the head, or a quantised head."""
    scale: float = 1.0
    softcap: float = 0.0

    @classmethod
    def of(cls, model: Any) -> Head:
        """The head of a model of transformers, with or without a PEFT wrapper, proved on a few tokens.

        Raises RequestError naming the architecture where the model's own logits are not those of its decoder and this
        head. Reads the device.
        """
        bare = adapters.bare(model)
        module = bare.get_output_embeddings()
        if module is None:
            raise _refused(bare, "has no language-model head")
        config = bare.config.get_text_config()
        cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
        head = cls(**_parts(module), scale=_scale(config), softcap=float(cap or 0.0))
        _prove(head, bare)
        return head

    @property
    def vocabulary(self) -> int:
        """How many tokens have a logit."""
        return len(self.weight_VD) if self.weight_VD is not None else int(cast(Any, self.module).out_features)

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """(N, V) logits by ordinary autograd, in float32 or wider; (..., D) gives (..., V)."""
        if self.module is not None:
            logits_NV = self.module(hidden_ND)
        else:
            weight_VD = self.weight().to(hidden_ND.dtype)
            bias_V = None if self.bias_V is None else self.bias_V.to(hidden_ND.dtype)
            logits_NV = F.linear(hidden_ND, weight_VD, bias_V)
        logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)) * self.scale
        return self.softcap * torch.tanh(logits_NV / self.softcap) if self.softcap else logits_NV

    def weight(self) -> torch.Tensor:
        """(V, D) the weight in force, differentiable. Raises TypeError where there is no plain one."""
        if self.weight_VD is None:
            raise TypeError("this head has no plain weight")
        if self.rows_R is None or self.patch_RD is None:
            return self.weight_VD
        return self.weight_VD.index_copy(0, self.rows_R.to(self.weight_VD.device), self.patch_RD.to(self.weight_VD))


def body(model: Any) -> Any:
    """The decoder without its head: its `last_hidden_state` (B, L, D) is what the head reads. Adapters stay in it."""
    bare = adapters.bare(model)
    return bare.base_model if bare.base_model is not bare else bare.get_decoder()


def _parts(module: nn.Module) -> dict[str, Any]:
    """The tensors of a head module, under the names of the fields of Head, or the module itself."""
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    if isinstance(module, ModulesToSaveWrapper) and not module.disable_adapters:
        return _parts(module.modules_to_save[module.active_adapters[0]])
    if isinstance(module, TrainableTokensWrapper):
        layer, names = module.token_adapter, module.token_adapter.active_adapters
        if _is_plain(layer.base_layer) and len(names) == 1 and not (layer.merged or layer.disable_adapters):
            weight_VD = layer.base_layer.weight
            rows_R = torch.tensor(layer.token_indices[names[0]], device=weight_VD.device)
            # PEFT leaves the bias out of a head whose rows are trained.
            return {"weight_VD": weight_VD, "rows_R": rows_R, "patch_RD": layer.trainable_tokens_delta[names[0]]}
    if _is_plain(module):
        return {"weight_VD": module.weight, "bias_V": module.bias}
    return {"module": module}


def _is_plain(module: nn.Module) -> bool:
    """A Linear layer that is nothing more: its subclasses hold packed weights, or do more than a product."""
    return type(module) is nn.Linear and module.weight.dtype in PLAIN


def _scale(config: Any) -> float:
    """What logits are multiplied by, from every name that architectures have for it."""
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"):  # Cohere, Falcon-H1, Muse
        value = getattr(config, name, None)
        scale *= value if isinstance(value, (int, float)) else 1.0
    value = getattr(config, "logits_scaling", None) or 1.0
    return float(scale * value if config.model_type.startswith("hyperclovax") else scale / value)  # else Granite


def _prove(head: Head, bare: Any) -> None:
    """Hold decoder and head against the model's own forward, with hidden states stretched so that a cap shows."""
    vocabulary = bare.get_input_embeddings().weight.shape[0]
    start = vocabulary // 2
    ids_1T = torch.arange(start, min(start + 3, vocabulary), device=bare.get_input_embeddings().weight.device)[None]
    decoder = body(bare)
    with _evaluating(bare), _autocast(bare), torch.no_grad():
        hidden_1TD = decoder(input_ids=ids_1T, use_cache=False).last_hidden_state
        gain = STRETCH / (float(_uncapped(head, hidden_1TD).abs().max()) or STRETCH)  # a new head may be all zeros

        def stretch(_module: Any, _inputs: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state * gain
            return output

        hook = decoder.register_forward_hook(stretch)
        try:
            theirs_1TV = bare(input_ids=ids_1T, use_cache=False).logits
        finally:
            hook.remove()
        ours_1TV = head.logits(hidden_1TD * gain)
    half = min(torch.finfo(hidden_1TD.dtype).bits, torch.finfo(theirs_1TV.dtype).bits) < 32
    limit = HALF_TOLERANCE if half else TOLERANCE
    if theirs_1TV.shape[-1] != head.vocabulary:
        raise _refused(bare, f"has logits for {theirs_1TV.shape[-1]} tokens, and a head for {head.vocabulary}")
    difference = float((ours_1TV - theirs_1TV).abs().max()) / (float(theirs_1TV.abs().max()) or 1.0)
    if not difference <= limit:  # NaN is refused too
        raise _refused(bare, f"does more to its logits than its head and config say (they differ by {difference:.1e})")


def _uncapped(head: Head, hidden_1TD: torch.Tensor) -> torch.Tensor:
    """Logits before the soft cap, which would hide how large they are."""
    return Head(head.weight_VD, head.bias_V, head.rows_R, head.patch_RD, head.module, head.scale).logits(hidden_1TD)


def _refused(bare: Any, reason: str) -> RequestError:
    return RequestError(f"model.base: {type(bare).__name__} {reason}", "take a base of another architecture")


def _autocast(bare: Any) -> torch.autocast:
    """The autocast in force, or one that lets a model in half precision run with parts trained in float32."""
    device = bare.get_input_embeddings().weight.device.type
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, torch.get_autocast_dtype(device))
    halves = {parameter.dtype for parameter in bare.parameters()} & {torch.bfloat16, torch.float16}
    return torch.autocast(device, torch.bfloat16 if torch.bfloat16 in halves else torch.float16, enabled=bool(halves))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and each back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
