"""Training on stored vectors is training on live ones: equal losses, step after step, for every family."""

from __future__ import annotations

import copy

import pytest
import torch

from luthier.models.chat_batches import collate
from luthier.models.senses.store import VectorStore, parts, tuned
from luthier.models.senses.supply import Supply
from support import seeing
from support.seeing import Seeing

STEPS = 5


@pytest.fixture(scope="module", params=seeing.TOYS)
def twin(request):
    """A twin whose encoders and projectors are frozen, and its rows."""
    found = Seeing.of(request.param)
    senses, model = found.supply.senses, found.model.language_model
    frozen = tuple(name for kind in senses.kinds for name in parts(senses, kind))
    for name, weight in model.named_parameters():
        weight.requires_grad_(not name.startswith(frozen))
    return found, found.lessons(seeing.mixed(senses.kinds))


def stores(folder, found, media) -> dict:
    senses = found.supply.senses
    made = {kind: VectorStore(folder, senses, seeing.SOURCE, found.model.language_model, kind) for kind in senses.kinds}
    for kind, store in made.items():
        store.prepare([medium for medium in media if medium.kind == kind])
    return made


def losses(found, lessons, supply) -> tuple[list[float], list[bool]]:
    """Of some steps of plain descent, packed; and whether each pass had media to encode."""
    model = copy.deepcopy(found.model).train()
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.05)
    seen, live = [], []
    for step in range(STEPS):
        batch = collate([lessons[(step + place) % len(lessons)] for place in range(3)], True, 0, supply)
        loss, _ = model.loss(batch, model.step_weights([batch]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(float(loss.detach()))
        live.append(batch.media is not None and bool(batch.media.prepared))
    return seen, live


def test_losses_with_the_store_are_those_without(tmp_path, twin):
    found, lessons = twin
    senses = found.supply.senses
    assert not any(tuned(senses, found.model.language_model, kind) for kind in senses.kinds)
    media = [medium for lesson in lessons for medium in lesson.media]
    expected, live = losses(found, lessons, found.supply)
    assert any(live)
    stored, encoded = losses(found, lessons, Supply(senses, seeing.SOURCE, stores=stores(tmp_path, found, media)))
    assert not any(encoded)
    assert stored == pytest.approx(expected, rel=1e-5)
    assert expected[-1] != pytest.approx(expected[0], rel=1e-2)  # something was learned meanwhile
    # Of a store that a kill cut short what is missing goes live.
    half, encoded = losses(
        found, lessons, Supply(senses, seeing.SOURCE, stores=stores(tmp_path / "b", found, media[::2]))
    )
    assert any(encoded)
    assert half == pytest.approx(expected, rel=1e-5)


def test_training_the_decoder_leaves_the_store_as_it_is(tmp_path, twin):
    found, lessons = twin
    media = [medium for lesson in lessons for medium in lesson.media]
    before = stores(tmp_path, found, media)
    other = copy.deepcopy(found)
    with torch.no_grad():
        for weight in other.model.parameters():
            if weight.requires_grad:
                weight.add_(0.01)
    assert {store.place for store in stores(tmp_path, other, []).values()} == {store.place for store in before.values()}
    for kind in found.supply.senses.kinds:
        with torch.no_grad():
            next(
                weight
                for name, weight in other.model.language_model.named_parameters()
                if name.startswith(parts(found.supply.senses, kind))
            ).add_(0.01)
        assert stores(tmp_path, other, [])[kind].place != before[kind].place
