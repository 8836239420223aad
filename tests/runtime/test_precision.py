"""Which number format is in force where, and loss scaling on a processor (its arithmetic is the GPU's)."""

from __future__ import annotations

import json

import pytest
import torch

from luthier.errors import CheckpointError, RequestError
from luthier.runtime.precision import FIRST_SCALE, LOWEST_SCALE, LossScale, Precision, resolve_precision

CPU = torch.device("cpu")


def halved() -> Precision:
    """float16 as on a GPU, with the scaler's state on the CPU."""
    return Precision(torch.float16, CPU, scaler=LossScale(CPU))


def step(precision: Precision, weight: torch.nn.Parameter, gradient: float) -> None:
    """One backward pass whose gradient leaves float16 (65504) as inf, as it would on a GPU."""
    optimizer = torch.optim.SGD([weight], lr=1.0)
    weight.grad = None
    precision.scale(weight.sum() * gradient).backward()
    weight.grad = weight.grad.half().float()
    precision.unscale(optimizer)


def test_float16_on_a_processor_becomes_float32_and_one_note_names_it():
    found = resolve_precision("float16", "cpu")
    assert found.dtype == torch.float32
    assert "float16 becomes float32" in found.note
    assert found.scaler is None


def test_an_activation_above_65504_overflows_in_float16_and_not_in_what_is_in_force():
    layer = torch.nn.Linear(8, 8, bias=False)
    torch.nn.init.constant_(layer.weight, 200.0)
    input_BD = torch.full((1, 8), 100.0)
    with torch.autocast("cpu", torch.float16):
        assert torch.isinf(layer(input_BD)).all()
    with resolve_precision("float16", CPU).autocast():
        assert torch.isfinite(layer(input_BD)).all()


@pytest.mark.parametrize(("dtype", "computed"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_passes_run_in_the_format_that_is_asked_for(dtype, computed):
    found = resolve_precision(dtype, CPU)
    with found.autocast():
        assert torch.nn.Linear(4, 4)(torch.ones(1, 4)).dtype == computed
    assert found.note == ""


def test_a_gpu_that_only_emulates_bfloat16_is_refused_with_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    with pytest.raises(RequestError, match="Old GPU has no bfloat16") as error:
        resolve_precision("bfloat16", "cuda")
    assert "float16 or float32" in error.value.mend


def test_without_scaling_the_loss_and_the_gradients_stay_as_they_are():
    weight = torch.nn.Parameter(torch.ones(3))
    step(resolve_precision("float32", CPU), weight, 0.5)
    assert weight.grad.tolist() == [0.5] * 3


def test_scaling_keeps_a_gradient_that_float16_would_lose():
    weight = torch.nn.Parameter(torch.ones(3))
    assert torch.tensor(2.0**-26).half() == 0
    step(halved(), weight, 2.0**-26)
    assert weight.grad.tolist() == [2.0**-26] * 3


def test_an_overflow_halves_the_scale_until_the_gradient_fits():
    precision, weight = halved(), torch.nn.Parameter(torch.ones(3))
    scales = []
    for _ in range(5):
        step(precision, weight, 6.0)
        scales.append((precision.scaler.handled.item(), precision.state()["scale"]))
    assert scales == [
        (True, 2.0**15),
        (True, 2.0**14),
        (True, 2.0**13),
        (False, 2.0**13),
        (False, 2.0**13),
    ]  # 6 * 2^13 = 49152 fits
    assert weight.grad.tolist() == [6.0] * 3


def test_a_gradient_that_overflows_at_every_scale_is_not_handled_at_the_lowest():
    precision, weight = halved(), torch.nn.Parameter(torch.ones(3))
    handled = []
    while not handled or handled[-1]:
        step(precision, weight, float("inf"))
        handled.append(precision.scaler.handled.item())
    assert len(handled) == 17
    assert FIRST_SCALE * 0.5**16 == LOWEST_SCALE


def test_the_scale_grows_again_after_2000_steps_without_overflow_across_a_checkpoint():
    precision, weight = halved(), torch.nn.Parameter(torch.ones(1))
    step(precision, weight, 3.0)  # 3 * 2^16 overflows
    for _ in range(1500):
        step(precision, weight, 0.1)
    resumed = halved()
    resumed.load(json.loads(json.dumps(precision.state())))
    for one in (precision, resumed):
        for _ in range(499):
            step(one, weight, 0.1)
        assert one.state()["scale"] == 2.0**15
        step(one, weight, 0.1)
        assert one.state()["scale"] == 2.0**16
    assert resumed.state() == precision.state()


def test_a_checkpoint_with_a_scale_does_not_resume_without_one_nor_the_reverse():
    plain, scaled = resolve_precision("float32", CPU), halved()
    assert plain.state() == {}
    plain.load({})
    with pytest.raises(CheckpointError, match="has the loss scale of float16, and this run computes in float32"):
        plain.load(scaled.state())
    with pytest.raises(CheckpointError, match="lacks the loss scale"):
        scaled.load({})
