"""An adapter says what it is made for, and is refused anywhere else."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from luthier.errors import RequestError
from luthier.files import atomic_folder
from luthier.models import package
from luthier.models.families import parameters_digest
from luthier.models.load import load_base


def test_a_package_comes_back_from_disk_equal(bench, tmp_path):
    about = bench({"model.learned_tokens.soft_prompt": 2}, rows=2).about
    about.calibration = {"temperature": 1.25}
    with atomic_folder(tmp_path / "adapter", {}) as folder:
        about.write(folder)
    found = package.Package.read(tmp_path / "adapter")
    assert found == about
    package.check(found, about.base_sha256, about.learned_tokens, tmp_path)


def test_a_package_says_what_it_was_made_for(bench):
    one = bench({"task.readout": "ordinal", "task.event": "panel"}, rows=2)
    about = one.about
    assert (about.base, about.tuning, about.readout, about.event) == ("toy:phi4-multimodal", "lora", "ordinal", "panel")
    assert about.answers == dict(zip(("pass", "fail"), one.model.answers, strict=True))
    assert about.base_sha256 == load_base(one.recipe.model).digest
    assert about.learned_tokens == {"<|verdict|>": one.base.tokenizer.convert_tokens_to_ids("<|verdict|>")}


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.norm.weight",
        "model.embed_tokens_extend.audio_embed.encoder.encoder_embedding.global_mean",
    ],
)
def test_a_base_of_other_weights_is_refused(bench, recipe_of, tmp_path, name):
    about = bench(rows=2).about
    base = load_base(recipe_of({}).model)
    package.check(about, base.digest, about.learned_tokens, tmp_path)
    with torch.no_grad():
        base.model.state_dict()[name].view(-1)[-1].add_(1e-3)
    with pytest.raises(RequestError, match="other weights") as refusal:
        package.check(about, parameters_digest(base.model), about.learned_tokens, tmp_path)
    assert refusal.value.mend


def test_a_base_of_another_type_is_refused(bench, recipe_of, tmp_path):
    about = bench(rows=2).about
    base = load_base(recipe_of({"model.dtype": "bfloat16"}).model)
    with pytest.raises(RequestError, match="other weights"):
        package.check(about, base.digest, about.learned_tokens, tmp_path)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"<|verdict|>": 641, "<|learned_0|>": 640}, "had id 640 and has 641 here"),
        ({"<|verdict|>": 640}, "learned tokens"),
        ({}, "learned tokens"),
        ({"<|verdict|>": 640, "<|learned_0|>": 641, "<|learned_1|>": 642}, "learned tokens"),
        ({"<|grade|>": 640, "<|learned_0|>": 641}, "learned tokens"),
    ],
)
def test_other_token_ids_are_refused(bench, tmp_path, tokens, message):
    about = bench({"model.learned_tokens.soft_prompt": 1}, rows=2).about
    assert about.learned_tokens == {"<|verdict|>": 640, "<|learned_0|>": 641}
    with pytest.raises(RequestError, match=message):
        package.check(about, about.base_sha256, tokens, tmp_path)


def test_tuning_does_not_change_what_the_base_was(bench, tmp_path):
    one = bench({"model.tuning": "full"}, rows=2)
    before = dataclasses.replace(one.about)
    one.train(1)
    assert one.about == before
    assert one.about.base_sha256 == load_base(one.recipe.model).digest


def test_a_folder_without_a_package_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"verdict\.json"):
        package.Package.read(tmp_path)
