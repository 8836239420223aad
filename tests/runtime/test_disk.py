"""Room on the disk, asked for before anything is loaded."""

from __future__ import annotations

import itertools

import pytest
import torch

from luthier.errors import RequestError
from luthier.recipe_train import OPTIMIZERS, TrainConfig
from luthier.runtime import disk
from luthier.runtime.checkpoints import Checkpoints
from luthier.runtime.disk import STATE_BYTES, check_room, most_checkpoints, planned_bytes
from luthier.train.optim import make_optimizer
from support.tiny import Tiny, Training

HERE = [name for name in OPTIMIZERS if not name.startswith("paged")]


def test_every_optimizer_has_its_bytes():
    assert sorted(STATE_BYTES) == sorted(OPTIMIZERS)


@pytest.mark.parametrize("name", HERE)
def test_the_bytes_of_a_state_are_those_that_the_optimizer_keeps(name):
    made = Tiny()
    made.layer = torch.nn.Linear(4096, 8, bias=False)  # a matrix of LoRA
    try:
        optimizer = make_optimizer(made, TrainConfig(optimizer=name), 1e-3)
    except RequestError as error:
        pytest.skip(str(error))
    made.layer.weight.grad = torch.ones_like(made.layer.weight)
    optimizer.step()
    tensors = [v for v in itertools.chain(*(s.values() for s in optimizer.state.values())) if torch.is_tensor(v)]
    # 8-bit states share one table of 256 levels; it does not grow.
    kept = sum(v.numel() * v.element_size() for v in tensors if "8bit" not in name or v.numel() != 256)
    counted = STATE_BYTES[name] * made.layer.weight.numel()
    assert kept <= 1.1 * counted
    assert kept >= 0.5 * counted


def test_room_is_refused_by_folder_need_and_free_before_anything_is_loaded(tmp_path, monkeypatch):
    one, count = planned_bytes(40_000_000, "adamw"), most_checkpoints(2, keep_best=True)
    need = count * (1.1 * (40e6 + 80e6) + disk._BESIDE)
    monkeypatch.setattr(disk, "free_bytes", lambda _: int(need) + 10)
    check_room(tmp_path, one, count)
    monkeypatch.setattr(disk, "free_bytes", lambda _: int(need) - 10)
    with pytest.raises(
        RequestError, match=r"room for 4 checkpoints is needed, 532\.2 MB; 532\.2 MB are free"
    ) as caught:
        check_room(tmp_path, one, count)
    assert str(tmp_path) in str(caught.value)
    check_room(tmp_path, one, most_checkpoints(2, keep_best=False))
    check_room(tmp_path, planned_bytes(40_000_000, "adamw_8bit"), count)


@pytest.mark.parametrize("keep_best", [True, False])
@pytest.mark.parametrize("keep", [2, 3, 4])
def test_never_do_more_checkpoints_lie_there_than_were_counted(tmp_path, monkeypatch, keep, keep_best):
    """Whatever becomes the best: the most that lie there is counted when a save has been sealed and nothing dropped."""
    seen = []
    rotate = Checkpoints._rotate

    def counted(self: Checkpoints) -> None:
        seen.append(len(self.steps()))
        rotate(self)

    monkeypatch.setattr(Checkpoints, "_rotate", counted)
    made = Training(1)
    for number, improves in enumerate(list(itertools.product([True, False], repeat=8))[31::37]):
        found, best = Checkpoints(tmp_path / f"{number}", "toy", keep, keep_best=keep_best), 0
        for step, better in enumerate(improves, 1):
            best = step if better else best
            made.state |= {"step": step, "best_step": best}
            found.save(made.learner, made.optimizer, made.state)
    assert max(seen) == most_checkpoints(keep, keep_best)
