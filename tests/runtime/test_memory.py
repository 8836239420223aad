"""Memory that is used, free and alive: beside a container's files, a child process, and tensors of known size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from luthier.runtime import memory
from luthier.runtime.live_bytes import LiveBytes, place_without_values, without_values
from support.children import environment

CPU = torch.device("cpu")
HOLES = """
import sys
import torch
from luthier.runtime.memory import return_freed_memory, used_memory
if sys.argv[1] == "yes":
    assert return_freed_memory()
cpu = torch.device("cpu")
big = [torch.ones(2**22) for _ in range(2)]  # 16 MiB: freed, it teaches glibc to keep blocks of that size
del big
before = used_memory(cpu)
blocks = [torch.ones(2**18) for _ in range(200)]  # 1 MiB each
full = used_memory(cpu)
del blocks[::2]
print(full - before, full - used_memory(cpu))
"""


def test_the_peak_is_never_below_what_is_used() -> None:
    assert 0 < memory.used_memory(CPU) < 1.01 * memory.measured_peak(CPU)  # the kernel counts pages by the handful
    assert memory.free_memory(CPU) > 0


@pytest.mark.parametrize(("limit", "free"), [("1000\n", 1000 - 700 + 200), ("600\n", 100), ("max\n", sys.maxsize)])
def test_a_containers_limit_bounds_what_is_free_and_dropped_file_pages_do_not_count(
    limit: str, free: int, tmp_path: Path
) -> None:
    names = [tmp_path / name for name in ("memory.max", "memory.current", "memory.stat")]
    for path, text in zip(names, (limit, "700\n", "anon 500\ninactive_file 200\n"), strict=True):
        path.write_text(text)
    assert memory._room_of(*names) == free


def test_without_a_container_there_is_no_limit(tmp_path: Path) -> None:
    assert memory._room_of(*(tmp_path / name for name in "abc")) == sys.maxsize


def test_the_smallest_room_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_machine", lambda: 500)
    monkeypatch.setattr(memory, "_room_of", lambda limit, *_: 300 if "limit_in_bytes" in limit.name else 400)
    assert memory.free_memory(CPU) == 300


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc of glibc")
def test_freed_blocks_between_others_are_given_back_only_when_asked_for() -> None:
    def freed(asked: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", HOLES, asked], env=environment(), capture_output=True, text=True, check=True
        )
        taken, back = map(int, done.stdout.split())
        return back / taken

    assert freed("yes") == pytest.approx(0.5, abs=0.1)
    assert freed("no") < 0.1


def test_bytes_count_from_the_making_of_a_tensor_to_its_end_and_views_are_free() -> None:
    foreign = torch.ones(50)
    with LiveBytes() as live:
        _other = foreign.view(5, 10)  # made before, and not counted
        first = torch.ones(1000)
        view = first[10:].view(9, 110)
        assert live.now == 4000
        second = view.double()
        assert live.now == live.peak == 4000 + 7920
        del first
        assert live.now == 4000 + 7920
        del view
        assert (live.now, live.peak) == (7920, 4000 + 7920)
        second.add_(1)
        live.forget_peak()
        assert live.peak == 7920


def passes(live: LiveBytes, width: int) -> tuple[list[int], list[torch.Tensor]]:
    """Bytes alive at some places of a training step, and what it trained."""
    found = [live.now]
    model = torch.nn.Sequential(torch.nn.Linear(width, 300), torch.nn.GELU(), torch.nn.Linear(300, 7))
    parameters = list(model.parameters())
    live.follow(parameters)
    found.append(live.now)
    loss = model(torch.ones(50, width)).square().mean()
    found.append(live.now)
    loss.backward()
    found += [live.now, live.peak, live.gradients, live.gradients_at_peak]
    return found, [*parameters, loss]


def test_a_step_without_values_has_the_bytes_of_a_real_one() -> None:
    with LiveBytes() as live:
        real, _ = passes(live, 200)
    with without_values() as live:
        fake, tensors = passes(live, 200)
        assert float(tensors[-1].detach()) == 0.0
    assert fake == real
    assert real[5] == sum(p.numel() for p in tensors[:-1]) * 4


def test_a_model_is_placed_without_values_and_what_was_one_stays_one() -> None:
    with torch.device("meta"):
        model = torch.nn.ModuleDict({"a": torch.nn.Embedding(10, 4), "b": torch.nn.Linear(4, 10, bias=False)})
        model.register_buffer("c", torch.ones(3))
    model["b"].weight = model["a"].weight
    model["a"].weight.requires_grad_(False)
    with without_values() as live:
        place_without_values(model, CPU)
        assert live.now == 10 * 4 * 4 + 3 * 4
    assert model["a"].weight is model["b"].weight
    assert not model["a"].weight.requires_grad
    assert model["b"].weight.device == CPU
