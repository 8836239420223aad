"""Learned tokens sit in spare rows of the embedding, with the same ids wherever the tokenizer goes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from luthier.errors import RequestError
from luthier.models.load import Base, load_base
from luthier.models.tokens import add_learned_tokens, answer_ids, initialise_learned_tokens, soft_prompt_names
from luthier.recipe_model import LearnedTokens, ModelConfig

SETTINGS = LearnedTokens(soft_prompt=4)


@pytest.fixture
def base() -> Base:
    return load_base(ModelConfig(base="toy:phi4-multimodal"))


def test_new_ids_follow_the_vocabulary_and_the_matrix_keeps_its_size(base):
    before, rows = len(base.tokenizer), base.model.get_input_embeddings().weight.shape[0]
    ids = add_learned_tokens(base.tokenizer, base.model, SETTINGS)
    assert list(ids) == ["<|verdict|>", *soft_prompt_names(SETTINGS)]
    assert sorted(ids.values()) == list(range(before, before + 5))
    assert base.model.get_input_embeddings().weight.shape[0] == rows
    for name, index in ids.items():
        assert base.tokenizer.encode(f"a{name}b", add_special_tokens=False).count(index) == 1


def test_the_media_tokens_of_the_family_stay(base):
    add_learned_tokens(base.tokenizer, base.model, SETTINGS)
    assert {"<|audio|>", "<|image|>", "<|verdict|>"} <= set(base.tokenizer.all_special_tokens)


def test_adding_twice_gives_the_same_ids(base):
    assert add_learned_tokens(base.tokenizer, base.model, SETTINGS) == add_learned_tokens(
        base.tokenizer, base.model, SETTINGS
    )


def test_a_reloaded_tokenizer_gives_the_same_ids(base, tmp_path: Path):
    ids = add_learned_tokens(base.tokenizer, base.model, SETTINGS)
    base.tokenizer.save_pretrained(str(tmp_path))
    loaded = AutoTokenizer.from_pretrained(str(tmp_path))
    assert {name: loaded.convert_tokens_to_ids(name) for name in ids} == ids
    assert add_learned_tokens(loaded, base.model, SETTINGS) == ids
    text = "Why? <|learned_0|><|learned_1|><|audio|><|end|><|assistant|><|verdict|>"
    assert loaded.encode(text) == base.tokenizer.encode(text)


@pytest.mark.parametrize("count", [127, 128, 300])
def test_no_room_is_refused_before_the_matrix_would_grow(base, count):
    spare = base.model.get_input_embeddings().weight.shape[0] - len(base.tokenizer)
    assert spare == 128
    if count < spare:
        assert len(add_learned_tokens(base.tokenizer, base.model, LearnedTokens(soft_prompt=count))) == spare
        return
    with pytest.raises(RequestError, match="no room") as refusal:
        add_learned_tokens(base.tokenizer, base.model, LearnedTokens(soft_prompt=count))
    assert refusal.value.mend


def test_the_readout_may_not_be_a_token_of_the_soft_prompt(base):
    with pytest.raises(RequestError, match="share an id"):
        add_learned_tokens(base.tokenizer, base.model, LearnedTokens(readout="<|learned_0|>", soft_prompt=1))


def test_rows_begin_near_the_mean_of_words_of_judgement(base):
    weight = base.model.get_input_embeddings().weight
    before = weight.detach().clone()
    ids = add_learned_tokens(base.tokenizer, base.model, SETTINGS)
    initialise_learned_tokens(base.tokenizer, base.model, ids, seed=5)
    new = sorted(ids.values())
    untouched = [i for i in range(len(weight)) if i not in new]
    assert torch.equal(weight[untouched], before[untouched])
    words = [i for word in ("pass", "fail", "score", "grade") for i in base.tokenizer.encode(word)]
    mean, spread = before[words].mean(0), before[words].std()
    offsets = weight[new].detach() - mean
    assert float(offsets.std()) == pytest.approx(0.1 * float(spread), rel=0.3)
    assert len({tuple(row.tolist()) for row in weight[new]}) == len(new)


def test_rows_are_a_function_of_the_seed(base):
    ids = add_learned_tokens(base.tokenizer, base.model, SETTINGS)
    rows = []
    for seed in (5, 5, 6):
        torch.rand(3)
        initialise_learned_tokens(base.tokenizer, base.model, ids, seed)
        rows.append(base.model.get_input_embeddings().weight[sorted(ids.values())].detach().clone())
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_answers_are_single_tokens(base):
    found = answer_ids(base.tokenizer, {"pass": "1", "fail": "0"})
    assert base.tokenizer.convert_ids_to_tokens([found["pass"], found["fail"]]) == ["1", "0"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"pass": "very good", "fail": "0"}, "task.answers.pass"),
        ({"pass": "1", "fail": "10"}, "task.answers.fail"),
        ({"pass": "", "fail": "0"}, "0 tokens"),
        ({"pass": "1", "fail": "1"}, "same token"),
    ],
)
def test_other_answers_are_refused(base, answers, message):
    with pytest.raises(RequestError, match=message):
        answer_ids(base.tokenizer, answers)
