"""The chat learner: a causal language model whose head is applied only where something is learned.

A base that sees or hears is always given embeddings, rows of text alone included: there is one path, whether vectors of
media come from its encoders or were stored.

Shapes: B lines, L tokens a line, D model width, N positions that predict a target, M slots of media, K layers that take
vectors.
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
from luthier.models.senses.base import Senses
from luthier.models.text_base import BaseFacts
from luthier.models.token_loss import TokenTargets, token_cross_entropy
from luthier.models.tree_reading import stretches_beyond


class ChatModel(Learner):
    """A language model that learns the answers of chats. Its loss is the mean over the target weights of a step."""

    def __init__(
        self, language_model: Any, facts: BaseFacts, label_smoothing: float = 0.0, senses: Senses | None = None
    ) -> None:
        super().__init__()
        self.language_model = language_model
        self.facts = facts
        self.label_smoothing = label_smoothing
        self.senses = senses
        self.head = Head.of(language_model)
        text = adapters.bare(language_model).config.get_text_config()
        self.keeps_rows = text._attn_implementation == ATTENTION
        """Whether attention was told to keep rows apart (`use_packed_attention`); else rows must be padded."""
        self.alone_beyond = stretches_beyond(text) or 0
        """By `Layout.alone_beyond`."""

    def train(self, mode: bool = True) -> ChatModel:
        """As of any module; encoders and projectors that are not tuned stay in evaluation mode."""
        super().train(mode)
        if mode and self.senses is not None:
            _rest(adapters.bare(self.language_model), self.senses)
        return self

    def hidden_ND(self, batch: ChatBatch) -> torch.Tensor:
        """The decoder's last states at the positions that predict a target."""
        device, width = batch.input_ids_BL.device, batch.input_ids_BL.shape[1]
        # Rows are padded on the right and attention is causal: no token sees the padding, and no mask is needed.
        more = packed_kwargs(batch.lengths if batch.packed else [width], device) if self.keeps_rows else {}
        if self.senses is None:
            decoder, given = body(self.language_model), {"input_ids": batch.input_ids_BL}
        else:
            bare = adapters.bare(self.language_model)
            decoder, given = self.senses.decoder(bare), self._embedded(bare, self.senses, batch)
        hidden_BLD = decoder(
            position_ids=batch.position_ids_BL, **{"use_cache": False, **more, **given}
        ).last_hidden_state
        found: torch.Tensor = hidden_BLD.flatten(0, 1).index_select(0, batch.place_N)
        return found

    def _embedded(self, bare: Any, senses: Senses, batch: ChatBatch) -> dict[str, Any]:
        """What the decoder is given in place of ids: the vectors of media stand where their slots are."""
        embeds_BLD = bare.get_input_embeddings()(batch.input_ids_BL)
        vectors_KMD = None
        slot_BL = torch.zeros_like(batch.input_ids_BL, dtype=torch.bool) if batch.seen_BL is None else batch.seen_BL
        if batch.media is not None and batch.slot_M is not None:
            vectors_KMD = batch.media.vectors(senses, bare)
            assert vectors_KMD is not None
            rows_MD = vectors_KMD[0].to(embeds_BLD.dtype)
            embeds_BLD = embeds_BLD.flatten(0, 1).index_copy(0, batch.slot_M, rows_MD).view_as(embeds_BLD)
        return {"inputs_embeds": embeds_BLD, **senses.decoder_inputs(bare, embeds_BLD, slot_BL, vectors_KMD)}

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

    @torch.no_grad()
    def log_likelihoods(self, batch: ChatBatch) -> torch.Tensor:
        """(N,) of the targets, by the adapters that are in force now."""
        logits_NV = Head.of(self.language_model).logits(self.hidden_ND(batch))
        return torch.log_softmax(logits_NV, -1).gather(1, batch.target_N[:, None])[:, 0]

    def save(self, folder: Path) -> None:
        """The adapter in PEFT's format, and what it says of its base."""
        adapters.save(self.language_model, folder, self.facts.name, self.facts)

    def load(self, folder: Path) -> None:
        """Put a saved adapter back. Raises CheckpointError for one of another make, or of another base."""
        adapters.restore(self.language_model, folder, self.facts)


def _rest(bare: Any, senses: Senses) -> None:
    """Put the encoders and projectors that have no tuned weight into evaluation mode."""
    for name in {name for kind in senses.kinds for name in (*senses.encoders[kind], *senses.projectors[kind])}:
        if not any(weight.requires_grad for its, weight in bare.named_parameters() if its.startswith(name)):
            for its, module in bare.named_modules():
                if its.startswith(name):
                    module.training = False


def compile_layers(model: Any) -> None:
    """Compile the decoder's layers in place (names of parameters stay), for passes of any length."""
    # The decoder's layers are the longest list of modules there is.
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    for layer in max(lists, key=len):
        layer.compile(dynamic=True)
