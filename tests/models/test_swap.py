"""Adapters that take turns on one base: each is all that is there, and none leaves a trace."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.errors import CheckpointError
from luthier.files import read_json, write_json
from luthier.models import adapters
from luthier.models.families import parameters_digest
from luthier.models.swap import Seat, read_weights
from luthier.models.text_base import load_text_base
from luthier.models.tokens import add_text_tokens
from support.text_cases import CASES, attached, config_of, logits, train, write_base

pytest.importorskip("bitsandbytes")
MERGED = "whole head, tied"


def saved(root: Path, case: str, steps: int = 3) -> tuple[Path, Seat, torch.Tensor, str]:
    """A trained folder of one kind, a base to put it on, and the logits and digest of the model as trained."""
    config = config_of(root, case)
    if not Path(config.base).is_dir():
        write_base(Path(config.base), tied="untied" not in case)
    base, model = attached(config)
    train(model, base, steps)
    folder = root / f"{case} {steps}"
    folder.mkdir()
    adapters.save(model, folder, base.name, base.facts())
    return folder, Seat(partial(load_text_base, config)), logits(model, base), adapters.digest(model)


def tokens_of(folder: Path) -> dict[str, int]:
    return read_json(folder / adapters.FACTS)["added_tokens"]


@pytest.mark.parametrize("case", CASES)
def test_every_kind_sits_as_it_was_trained_and_leaves_no_trace(tmp_path, case):
    folder, seat, trained, digest = saved(tmp_path, case)
    before = parameters_digest(seat.model)
    for _ in range(2):  # put on the bare base, then written over itself
        seat.put(folder, tokens_of(folder))
        assert torch.equal(logits(seat.model, seat.base), trained)
        assert adapters.digest(seat.model) == digest
    seat.clear()
    assert parameters_digest(seat.model) == before
    assert adapters.digest(seat.model) == ""


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_that_rests_leaves_the_base_as_it_is_and_comes_back_whole(tmp_path, case):
    folder, seat, trained, _ = saved(tmp_path, case)
    weights, plain = read_weights(folder), logits(seat.model, seat.base)
    for _ in range(2):
        seat.put(folder, tokens_of(folder), weights)
        assert torch.equal(logits(seat.model, seat.base), trained)
        for _ in range(2):
            seat.rest()
            assert torch.equal(logits(seat.model, seat.base), plain)
    seat.put(folder, tokens_of(folder))
    seat.rest()
    before = parameters_digest(Seat(seat._load).model)
    seat.clear()
    assert parameters_digest(seat.model) == before


def test_checkpoints_of_one_shape_are_written_over_one_another(tmp_path):
    first, seat, trained, _ = saved(tmp_path, "lora", 1)
    second, _, later, _ = saved(tmp_path, "lora", 2)
    names = sorted({name.split(".")[-3] for name in load_file(first / adapters.WEIGHTS)})
    for folder, order in ((first, names), (second, names[::-1])):  # PEFT writes a set, in any order
        write_json(folder / adapters.CONFIG, {**read_json(folder / adapters.CONFIG), "target_modules": order})
    seat.put(first, {})
    model, count = seat.model, sum(1 for _ in seat.model.parameters())
    assert torch.equal(logits(seat.model, seat.base), trained)
    seat.put(second, {})
    assert seat.model is model
    assert sum(1 for _ in model.parameters()) == count
    assert torch.equal(logits(seat.model, seat.base), later)


def test_another_scale_is_another_shape(tmp_path):
    folder, seat, trained, _ = saved(tmp_path, "lora")
    seat.put(folder, {})
    louder = Path(shutil.copytree(folder, tmp_path / "louder"))
    write_json(louder / adapters.CONFIG, {**read_json(louder / adapters.CONFIG), "lora_alpha": 80})
    seat.put(louder, {})
    assert not torch.equal(logits(seat.model, seat.base), trained)
    seat.put(folder, {})
    assert torch.equal(logits(seat.model, seat.base), trained)


def test_control_peft_alone_would_leave_whole_modules_in_the_base(tmp_path):
    """What `clear` is for: taken off by PEFT's own unload, the trained head stays."""
    folder, seat, _, _ = saved(tmp_path, MERGED)
    seat.put(folder, {})
    seat.model.unload()
    assert parameters_digest(seat.base.model) != seat.base.digest


def test_one_base_is_loaded_anew_only_where_added_rows_must_go(tmp_path):
    grown, _, trained, _ = saved(tmp_path, "grown, tied")
    plain, _, later, _ = saved(tmp_path, "lora")
    loads = []

    def load():
        loads.append(1)
        return load_text_base(config_of(tmp_path, "lora"))

    seat = Seat(load)
    seat.put(grown, tokens_of(grown))
    assert len(loads) == 1
    assert torch.equal(logits(seat.model, seat.base), trained)
    seat.put(plain, {})
    assert len(loads) == 2
    assert torch.equal(logits(seat.model, seat.base), later)


@pytest.mark.parametrize("damage", ["fewer", "other names", "other shapes", "torn"])
def test_weights_that_do_not_fit_are_refused_and_the_base_is_alone_again(tmp_path, damage):
    folder, seat, _, _ = saved(tmp_path, "lora")
    weights = load_file(folder / adapters.WEIGHTS)
    first = next(iter(weights))
    if damage == "fewer":
        del weights[first]
    elif damage == "other names":
        weights = {name.replace("model.layers", "layers"): value for name, value in weights.items()}
    elif damage == "other shapes":
        weights[first] = weights[first][:2].clone()
    save_file(weights, folder / adapters.WEIGHTS)
    if damage == "torn":
        whole = (folder / adapters.WEIGHTS).read_bytes()
        (folder / adapters.WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError):
        seat.put(folder, {})
    assert seat.model is seat.base.model
    assert parameters_digest(seat.model) == seat.base.digest


def test_tokens_with_other_ids_are_refused(tmp_path):
    folder, seat, _, _ = saved(tmp_path, "tokens, tied")
    shifted = {name: index + 1 for name, index in tokens_of(folder).items()}
    with pytest.raises(CheckpointError, match="other ids"):
        seat.put(folder, shifted)


def test_a_digest_follows_weights_and_scale_alone(tmp_path):
    config = config_of(tmp_path, "lora")
    write_base(Path(config.base))
    digests = []
    for seed in (0, 0, 1):
        base = load_text_base(config)
        add_text_tokens(base, [], seed)
        digests.append(adapters.digest(adapters.attach(base, config, {}, seed)))
    assert digests[0] == digests[1] != digests[2]
    config.lora.alpha *= 2
    assert adapters.digest(adapters.attach(load_text_base(config), config, {}, 0)) != digests[0]
    assert adapters.digest(load_text_base(config).model) == ""
