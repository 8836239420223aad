"""The verdict model: a prompt with its medium in, the probability of a pass out, read at one position in one pass.

Three read-outs at the last position: `tokens` (the normalised probability of the two answer tokens), `head` (a
linear head that begins as the difference of the answers' rows), `ordinal` (cumulative logits over the grades).
Only that position goes through a head. Shapes: B rows, L tokens, D model width, V vocabulary, K thresholds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from luthier.errors import CheckpointError
from luthier.models import adapters
from luthier.models.adapters import bare
from luthier.models.batches import Batch
from luthier.models.families import Family
from luthier.models.learner import Learner, StepWeights
from luthier.models.losses import (
    Loss,
    answer_mass,
    ordinal_likelihood,
    ordinal_log_probabilities,
    pairwise_ranking,
    soft_binary_cross_entropy,
)
from luthier.recipe import Scale, TaskConfig

HEAD = "verdict_head.safetensors"


@dataclass(frozen=True)
class Verdicts:
    """What the model says of B answers. The last three are there with the ordinal read-out."""

    p_pass_B: torch.Tensor
    p_panel_B: torch.Tensor | None = None
    p_rater_B: torch.Tensor | None = None
    grade_mean_B: torch.Tensor | None = None


class VerdictHead(nn.Module):
    """Linear score on the read-out state, and ordered thresholds where the read-out is ordinal."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)
        self.first = nn.Parameter(torch.zeros(1)) if levels else None
        self.gaps = nn.Parameter(torch.zeros(levels - 2)) if levels else None

    def thresholds(self) -> torch.Tensor:
        """(K,) increasing thresholds: a first one, and gaps through softplus."""
        assert self.first is not None
        assert self.gaps is not None
        return torch.cat([self.first, self.first + torch.cumsum(nn.functional.softplus(self.gaps) + 1e-4, 0)])

    def initialise(self, direction: torch.Tensor, level_counts: list[int]) -> None:
        """Begin as the answers' difference; thresholds where the recorded levels put them."""
        with torch.no_grad():
            self.score.weight.copy_(direction[None].float())
            self.score.bias.zero_()
            if self.first is not None and self.gaps is not None:
                total = sum(level_counts) + 0.5 * len(level_counts)
                above = [
                    (sum(level_counts[k + 1 :]) + 0.5 * (len(level_counts) - k - 1)) / total
                    for k in range(len(level_counts) - 1)
                ]
                places = [-math.log(p / (1 - p)) for p in above]
                self.first.fill_(places[0])
                gaps = torch.tensor([max(b - a, 1e-3) for a, b in itertools.pairwise(places)])
                self.gaps.copy_(torch.log(torch.expm1(gaps)))


class VerdictModel(Learner):
    """A language model that hears and sees, and the read-out of its verdict."""

    def __init__(self, language_model: Any, family: Family, task: TaskConfig, answers: dict[str, int]) -> None:
        super().__init__()
        self.language_model = language_model
        self.family, self.task = family, task
        self.answers = (answers["pass"], answers["fail"])
        levels = level_count(task.scale) if task.readout == "ordinal" else 0
        width = bare(language_model).config.hidden_size
        self.head = VerdictHead(width, levels) if task.readout != "tokens" else None

    def initialise_head(self, level_counts: list[int]) -> None:
        """Set the head from the answers' rows of the language model's own head (see `VerdictHead.initialise`)."""
        if self.head is not None:
            rows = bare(self.language_model).get_output_embeddings().weight
            self.head.initialise(rows[self.answers[0]] - rows[self.answers[1]], level_counts)

    def state_BD(self, batch: Batch) -> torch.Tensor:
        """The hidden state at each row's read-out position."""
        model = bare(self.language_model)
        embeds = model.get_input_embeddings()(batch.input_ids_BL)
        for group in batch.media:
            values = group.values if group.encoded else self.family.encode_sound(model, group.values)
            rows_GS = group.rows_G[:, None].expand_as(group.place_GS)
            embeds = embeds.index_put((rows_GS, group.place_GS), values.to(embeds.dtype))
        positions = torch.arange(embeds.shape[1], device=embeds.device)[None]
        # Padding is on the right and attention is causal: no token sees it, and no mask is needed.
        hidden = model.model(inputs_embeds=embeds, position_ids=positions, use_cache=False).last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)
        state: torch.Tensor = hidden[rows, batch.readout_B]
        return state

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(score (B,), state (B, D)). The score is the logit of a pass, or the ordinal score, in float32.

        bfloat16 has 3 digits: read in it, probabilities fall on steps and AUROC is full of ties.
        """
        state = self.state_BD(batch)
        with torch.autocast(state.device.type, enabled=False):
            if self.head is not None:
                return self.head.score(state.float())[:, 0], state
            rows = bare(self.language_model).get_output_embeddings().weight[list(self.answers)].float()
            logits = state.float() @ rows.T
            return logits[:, 0] - logits[:, 1], state

    def step_weights(self, group: Sequence[Batch]) -> StepWeights:
        """The rows of a step, each counted as it weighs, and its pairs."""
        return StepWeights(sum(batch.weight for batch in group), float(sum(len(batch.pairs) for batch in group)))

    def save(self, folder: Path) -> None:
        """The adapter in PEFT's format, and the head beside it where there is one."""
        adapters.save(self.language_model, folder, bare(self.language_model).name_or_path)
        if self.head is not None:
            tensors = {
                name: value.detach().cpu().contiguous() for name, value in sorted(self.head.state_dict().items())
            }
            save_file(tensors, str(folder / HEAD))

    def load(self, folder: Path) -> None:
        """Put a saved adapter and head back. Raises CheckpointError where they are of another make."""
        adapters.restore(self.language_model, folder)
        if self.head is not None:
            if not (folder / HEAD).is_file():
                raise CheckpointError(f"{folder}: has no {HEAD}", "use the task.readout that it was trained with")
            try:
                self.head.load_state_dict(load_file(str(folder / HEAD)))
            except RuntimeError as error:
                raise CheckpointError(
                    f"{folder / HEAD}: is the head of another read-out", "use the task.readout that it was trained with"
                ) from error

    def loss(self, batch: Batch, weights: StepWeights) -> tuple[torch.Tensor, Loss]:
        """(this micro-batch's share of the step's loss, (sum, weight) of the main term)."""
        score, state = self(batch)
        if self.task.readout == "ordinal":
            assert self.head is not None
            main = ordinal_likelihood(score, self.head.thresholds(), batch.level_B, batch.weight_B)
        else:
            main = soft_binary_cross_entropy(score, batch.target_B, batch.weight_B)
        total = main.sum / weights.main
        if self.head is None and self.task.mass_weight:
            logits = bare(self.language_model).get_output_embeddings()(state)
            mass = answer_mass(logits, self.answers, batch.weight_B)
            total = total + self.task.mass_weight * mass.sum / weights.main
        if weights.pairs:
            total = total + self.task.ranking_weight * pairwise_ranking(score, batch.pairs).sum / weights.pairs
        return total, main

    @torch.no_grad()
    def verdicts(self, batch: Batch) -> Verdicts:
        """Probabilities of the recipe's event, in float64 from float32 scores."""
        score, _ = self(batch)
        if self.task.readout != "ordinal":
            return Verdicts(torch.sigmoid(score.double()))
        assert self.head is not None
        scale = self.task.scale
        levels = torch.tensor(grade_levels(scale), dtype=torch.float64, device=score.device)
        p_level = torch.softmax(ordinal_log_probabilities(score, self.head.thresholds()).double(), -1)
        panel = p_level[:, levels >= scale.pass_mark - 1e-9].sum(-1)
        half_below = p_level[:, levels >= scale.pass_mark - scale.step - 1e-9].sum(-1)
        # Two raters one step of theirs apart: the grade between them is one vote for and one against.
        rater = (panel + half_below) / 2
        event = panel if self.task.event == "panel" else rater
        return Verdicts(event, panel, rater, (p_level * levels).sum(-1))


def level_count(scale: Scale) -> int:
    """How many grades the scale has."""
    return round((scale.maximum - scale.minimum) / scale.step) + 1


def grade_levels(scale: Scale) -> list[float]:
    """The grades of the scale in order."""
    return [scale.minimum + scale.step * k for k in range(level_count(scale))]
