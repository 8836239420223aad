"""What pictures take of memory is foretold: by the media of a pass, and by whether their encoder is tuned."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from luthier.data.mediasource import Facts
from luthier.models.chat import load_tokenizer
from luthier.models.chat_batches import ChatFeed
from luthier.models.senses.base import SENSES
from luthier.models.senses.supply import Supply
from luthier.models.text_base import senses_without_weights
from luthier.models.toys import TOYS, build_toy
from luthier.runtime.memory_estimate import MemoryEstimate
from luthier.runtime.precision import resolve_precision
from luthier.schema import Message, Part
from luthier.stages.chat_cost import feed_load, memory_of, sample_feed
from support import chats
from support.sightings import facts_of, picture

SEEING = sorted(name for name in TOYS if "large" not in name and build_toy(name)[0].config.model_type in SENSES)


class Pictures:
    """A source whose references are widths."""

    def facts(self, kind: str, reference: str) -> Facts:
        return facts_of(self.load(kind, reference))

    def load(self, kind: str, reference: str) -> Any:
        return picture(int(reference), 60)


def feed_of(name: str, pictures: int, **model: Any) -> tuple[Any, Any, ChatFeed]:
    made = chats.recipe(name, batch_size=2, micro_batch_size=2)
    made.model.max_tokens = 4096
    for key, value in model.items():
        setattr(made.model, key, value)
    tokenizer = load_tokenizer(name)
    rows = []
    for number in range(4):
        parts = [*(Part("image", media=str(70 + 10 * place)) for place in range(pictures)), Part("text", "what is it?")]
        rows.append(chats.row(number, Message("user", tuple(parts)), chats.turn("assistant", "a red one")))
    senses = senses_without_weights(made.model, tokenizer)
    assert senses is not None
    feed = sample_feed(made, tokenizer, rows, Supply(senses, Pictures()))  # type: ignore[arg-type]
    assert feed is not None
    return made, tokenizer, feed


def estimate(name: str, pictures: int, **model: Any) -> MemoryEstimate:
    made, tokenizer, feed = feed_of(name, pictures, **model)
    precision = resolve_precision("float32", torch.device("cpu"))
    return memory_of(made, tokenizer, feed, feed_load(feed, 1), precision)


def media_of(found: MemoryEstimate) -> int:
    return sum(part.bytes for part in found.parts if part.name == "media")


@pytest.mark.parametrize("name", SEEING)
def test_pictures_are_counted_and_those_of_a_tuned_encoder_more(name: str) -> None:
    frozen = media_of(estimate(name, 2))
    tuned = media_of(estimate(name, 2, train_encoder=True, train_projector=True))
    assert media_of(estimate(name, 0)) == 0
    assert 0 < frozen < tuned
    assert media_of(estimate(name, 4, train_encoder=True, train_projector=True)) > 1.5 * tuned


def test_what_backward_holds_of_a_tuned_encoder_is_what_a_real_pass_holds() -> None:
    from luthier.models.text_base import load_text_base
    from luthier.recipe_model import ModelConfig
    from luthier.runtime.live_bytes import LiveBytes

    name = "toy:qwen2-vl"
    base = load_text_base(ModelConfig(base=name))
    _, _, feed = feed_of(name, 2, train_encoder=True, train_projector=True)
    largest = feed_load(feed, 1).largest
    media = [medium for row in largest for medium in feed.lessons[row].media]
    assert feed.supply is not None
    batch = feed.supply.batch(media)
    for weight in base.senses.encoders["image"] + base.senses.projectors["image"]:
        for parameter_name, parameter in base.model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or parameter_name.startswith(weight))
    with LiveBytes() as live:
        vectors = base.senses.encode(base.model, batch.prepared)
        held = live.now
    assert len(vectors) == len(batch.prepared)
    assert media_of(estimate(name, 2, train_encoder=True, train_projector=True)) == pytest.approx(held, rel=0.1)
