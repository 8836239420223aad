"""How a base that sees or hears goes on from prompts with media: one loop for all families, vectors stored or live.

The decoder is given embeddings, as in training: vectors stand where media are, positions are those of each row by
itself and go on after its greatest one. Prompts are padded on the left. The library's `generate` would put media in by
each family's own forward, which knows neither stored vectors nor rows of mixed kinds. Knows nothing of rows and pages.

Shapes: B prompts of one pass, L tokens of the longest, P axes of a position, D model width, K layers that take vectors,
M slots of media, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from luthier.models.head import Head
from luthier.models.senses.laying import decoder_given, lay
from luthier.models.senses.supply import Medium, Supply
from luthier.models.tree_reading import stretches_beyond

Choose = Callable[[torch.Tensor], torch.Tensor]
"""(B, V) logits -> (B,) ids."""


@dataclass(frozen=True)
class Prompt:
    """What a model goes on from: ids with the spellings of media in them, and the media in order."""

    ids: Sequence[int]
    media: tuple[Medium, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Reader:
    """A bare model (adapters stay active in it) that reads prompts and is then told one token after the other."""

    model: Any
    supply: Supply
    pad: int
    head: Head = field(init=False)

    def __post_init__(self) -> None:
        self.head = Head.of(self.model)

    @torch.no_grad()
    def answers(self, prompts: Sequence[Prompt], choose: Choose, stops: Collection[int], most: int) -> list[list[int]]:
        """The ids that follow each prompt: up to the first stop token, or `most`."""
        reading = _Reading(self, prompts)
        logits_BV = reading.prompts()
        ends = torch.tensor(sorted(stops), device=logits_BV.device, dtype=torch.long)
        going_B = torch.ones(len(prompts), dtype=torch.bool, device=logits_BV.device)
        said: list[torch.Tensor] = []
        for number in range(most):
            next_B = choose(logits_BV)
            said.append(next_B)
            going_B &= ~torch.isin(next_B, ends)
            if number + 1 == most or not going_B.any():
                break
            logits_BV = reading.told(next_B)
        found = torch.stack(said, dim=1).tolist()
        return [_until(ids, stops) for ids in found]

    @torch.no_grad()
    def logits(self, prompt: Prompt, answer: Sequence[int]) -> torch.Tensor:
        """(N, V) after the prompt and after each token of an answer to it, read at one go."""
        hidden_1LD = _Reading(self, [Prompt((*prompt.ids, *answer), prompt.media)]).states()
        return self.head.logits(hidden_1LD[0, len(prompt) - 1 :])


def apart(model: Any, prompts: Sequence[Sequence[int] | Prompt], most: int) -> set[int]:
    """Prompts that must be read alone: the longest text of a pass would change how far the others' positions reach."""
    limit = stretches_beyond(model.config.get_text_config())
    return {place for place, prompt in enumerate(prompts) if limit and len(prompt) + most > limit}


def _until(ids: list[int], stops: Collection[int]) -> list[int]:
    end = next((at for at, token in enumerate(ids) if token in stops), len(ids) - 1)
    return ids[: end + 1]


class _Reading:
    """One pass of prompts, and what was said since."""

    def __init__(self, reader: Reader, prompts: Sequence[Prompt]) -> None:
        self.reader, self.asked = reader, prompts
        self.senses = reader.supply.senses
        self.embedding = reader.model.get_input_embeddings()
        self.decoder = self.senses.decoder(reader.model)
        self.device = self.embedding.weight.device
        self.cache: Any = None
        self.last_PB1 = torch.zeros(1, 1, 1, dtype=torch.long)
        """The greatest position of each row."""
        self.width = max(map(len, prompts))
        lengths = torch.tensor([[len(prompt)] for prompt in prompts], device=self.device)
        self.mask_BL = (torch.arange(self.width, device=self.device) >= self.width - lengths).long()
        limit = stretches_beyond(reader.model.config.get_text_config())
        self.limit = limit if limit and len(prompts) == 1 else None
        self.whole: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Embeddings and positions so far, of a text that may outgrow the limit."""

    def prompts(self) -> torch.Tensor:
        """(B, V) logits of the token after each prompt."""
        return self.reader.head.logits(self.states()[:, -1])

    def states(self) -> torch.Tensor:
        """(B, L, D) the decoder's last states over the prompts."""
        rows = [(prompt.ids, prompt.media) for prompt in self.asked]
        laid = lay(self.senses, rows, self.reader.pad, left=True)
        vectors_KMD = None
        if laid.media:
            batch = self.reader.supply.batch(laid.media).to(self.device)
            vectors_KMD = batch.vectors(self.senses, self.reader.model)
        given = decoder_given(self.senses, self.reader.model, laid, vectors_KMD, self.mask_BL)
        positions = given.pop("position_ids")
        return self._decode(given.pop("inputs_embeds"), positions if positions.ndim == 3 else positions[None], **given)

    def told(self, next_B: torch.Tensor) -> torch.Tensor:
        """(B, V) logits of the token after these."""
        self.mask_BL = torch.nn.functional.pad(self.mask_BL, (0, 1), value=1)
        self.last_PB1 = self.last_PB1 + 1
        embeds_B1D, position_PB1 = self.embedding(next_B[:, None]), self.last_PB1
        if self.limit is not None and self.mask_BL.shape[1] == self.limit + 1:
            embeds, positions = zip(*self.whole, (embeds_B1D, position_PB1), strict=True)
            embeds_B1D, position_PB1 = torch.cat(embeds, dim=1), torch.cat(positions, dim=2)
            self.cache = self.limit = None  # what was read before was read by other positions
        return self.reader.head.logits(self._decode(embeds_B1D, position_PB1)[:, -1])

    def _decode(self, embeds_BLD: torch.Tensor, position_PBL: torch.Tensor, **more: Any) -> torch.Tensor:
        self.last_PB1 = position_PBL.amax(dim=(0, 2), keepdim=True).expand(len(position_PBL), -1, -1)
        if self.limit is not None:
            self.whole.append((embeds_BLD, position_PBL))
        given = {"attention_mask": self.mask_BL, "past_key_values": self.cache, "use_cache": True, **more}
        given["position_ids"] = position_PBL[0] if len(position_PBL) == 1 else position_PBL
        found = self.decoder(inputs_embeds=embeds_BLD, **given)
        self.cache = found.past_key_values
        states_BLD: torch.Tensor = found.last_hidden_state
        return states_BLD
