"""The chat learner: a causal language model whose head is applied only where something is learned.

Shapes: B lines, L tokens a line, D model width, N positions that predict a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from luthier.models import adapters
from luthier.models.attention import ATTENTION, packed_kwargs
from luthier.models.chat_batches import ChatBatch
from luthier.models.head import Head, body
from luthier.models.learner import Learner, StepWeights
from luthier.models.losses import Loss
from luthier.models.text_base import BaseFacts
from luthier.models.token_loss import TokenTargets, token_cross_entropy


class ChatModel(Learner):
    """A language model that learns the answers of chats. Its loss is the mean over the target weights of a step."""

    def __init__(self, language_model: Any, facts: BaseFacts, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.language_model = language_model
        self.facts = facts
        self.label_smoothing = label_smoothing
        self.head = Head.of(language_model)
        self.keeps_rows = adapters.bare(language_model).config._attn_implementation == ATTENTION
        """Whether attention was told to keep rows apart (`use_packed_attention`); else rows must be padded."""

    def hidden_ND(self, batch: ChatBatch) -> torch.Tensor:
        """The decoder's last states at the positions that predict a target."""
        device, width = batch.input_ids_BL.device, batch.input_ids_BL.shape[1]
        # Rows are padded on the right and attention is causal: no token sees the padding, and no mask is needed.
        more = packed_kwargs(batch.lengths if batch.packed else [width], device) if self.keeps_rows else {}
        hidden_BLD = body(self.language_model)(
            input_ids=batch.input_ids_BL, position_ids=batch.position_ids_BL, **{"use_cache": False, **more}
        ).last_hidden_state
        found: torch.Tensor = hidden_BLD.flatten(0, 1).index_select(0, batch.place_N)
        return found

    def step_weights(self, group: Sequence[ChatBatch]) -> StepWeights:
        return StepWeights(sum(batch.total for batch in group))

    def loss(self, batch: ChatBatch, weights: StepWeights) -> tuple[torch.Tensor, Loss]:
        targets = TokenTargets(batch.target_N, batch.weight_N, total=batch.total)
        found = token_cross_entropy(self.hidden_ND(batch), self.head, targets, self.label_smoothing)
        return found.sum / weights.main, found

    @torch.no_grad()
    def row_losses(self, batch: ChatBatch) -> list[Loss]:
        """The loss of each row of a batch by itself, without label smoothing."""
        hidden_ND = self.hidden_ND(batch)
        found: list[Loss] = []
        begin = 0
        for count in batch.learned:
            part = slice(begin, begin + count)
            weight_N = batch.weight_N[part]
            targets = TokenTargets(batch.target_N[part], weight_N, total=batch.totals[len(found)])
            found.append(token_cross_entropy(hidden_ND[part], self.head, targets))
            begin += count
        return found

    def save(self, folder: Path) -> None:
        """The adapter in PEFT's format, and what it says of its base."""
        adapters.save(self.language_model, folder, self.facts.name, self.facts)

    def load(self, folder: Path) -> None:
        """Put a saved adapter back. Raises CheckpointError for one of another make, or of another base."""
        adapters.restore(self.language_model, folder, self.facts)


def compile_layers(model: Any) -> None:
    """Compile the decoder's layers in place (names of parameters stay), for passes of any length."""
    # The decoder's layers are the longest list of modules there is.
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    for layer in max(lists, key=len):
        layer.compile(dynamic=True)
