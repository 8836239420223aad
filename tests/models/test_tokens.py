"""New tokens sit in spare rows of the embedding, with the same ids wherever the tokenizer goes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from luthier.errors import RequestError
from luthier.models.load import Base, load_base
from luthier.models.text_base import TextBase, load_text_base
from luthier.models.tokens import (
    add_learned_tokens,
    add_text_tokens,
    answer_ids,
    initialise_learned_tokens,
    soft_prompt_names,
)
from luthier.recipe_model import LearnedTokens, ModelConfig
from support.text_cases import write_base

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


@pytest.fixture
def text_base() -> TextBase:
    return load_text_base(ModelConfig(base="toy:llama"))


def test_added_tokens_take_spare_rows_and_every_other_row_stays(text_base):
    before = text_base.model.get_input_embeddings().weight.detach().clone()
    ids = add_text_tokens(text_base, ["<|a|>", "<|b|>"], 0)
    after = text_base.model.get_input_embeddings().weight.detach()
    assert ids == {"<|a|>": 640, "<|b|>": 641} == text_base.added_tokens
    assert not text_base.grown
    assert text_base.tokenizer.encode("x<|a|>y").count(640) == 1
    others = [row for row in range(768) if row not in ids.values()]
    assert torch.equal(after[others], before[others])
    mean, spread = before[:640].mean(0), before[:640].std()
    assert float((after[[640, 641]] - mean).std()) == pytest.approx(0.1 * float(spread), rel=0.3)
    assert not torch.equal(after[640], after[641])


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("count", [129, 130, 200])
def test_29_a_matrix_grows_to_whole_blocks_never_shrinks_and_keeps_its_rows(tmp_path, untied, count):
    base = load_text_base(ModelConfig(base=str(write_base(tmp_path, tied=not untied))))
    parts = (base.model.get_input_embeddings(), base.model.get_output_embeddings())
    before = [part.weight.detach().clone() for part in parts]
    ids = add_text_tokens(base, [f"<|many_{i}|>" for i in range(count)], 0)
    rows = 768 + 64 * -(-(count - 128) // 64)
    assert sorted(ids.values()) == list(range(640, 640 + count))
    assert base.grown == range(768, rows)
    assert base.model.config.vocab_size == rows
    for part, old in zip((base.model.get_input_embeddings(), base.model.get_output_embeddings()), before, strict=True):
        assert part.weight.shape[0] == rows
        assert torch.equal(part.weight[:640], old[:640])
    assert (base.model.lm_head.weight is base.model.get_input_embeddings().weight) is not untied


def test_29_a_tokenizer_shorter_than_its_matrix_leaves_the_matrix_alone(text_base):
    assert len(text_base.tokenizer) < text_base.model.config.vocab_size
    add_text_tokens(text_base, ["<|a|>"], 0)
    add_text_tokens(text_base, [], 0)
    assert text_base.model.get_input_embeddings().weight.shape[0] == text_base.model.config.vocab_size == 768


def test_a_token_that_is_there_already_keeps_id_and_row_and_stays_a_word(text_base):
    word = text_base.tokenizer.convert_ids_to_tokens(300)
    before, row = text_base.tokenizer.encode(f"a {word}s"), text_base.model.lm_head.weight[300].detach().clone()
    assert add_text_tokens(text_base, [word, "<|end|>"], 0) == {word: 300, "<|end|>": 636}
    assert torch.equal(text_base.model.lm_head.weight[300], row)
    assert text_base.tokenizer.encode(f"a {word}s") == before


def test_rows_of_added_tokens_follow_from_the_seed():
    rows = []
    for seed in (1, 1, 2):
        base = load_text_base(ModelConfig(base="toy:llama"))
        torch.rand(5)
        add_text_tokens(base, [f"<|many_{i}|>" for i in range(140)], seed)
        rows.append(base.model.get_input_embeddings().weight[640:].detach().clone())
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
