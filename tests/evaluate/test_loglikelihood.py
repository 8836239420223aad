"""Log-likelihoods: strings are cut as lm-evaluation-harness cuts them, and sums are those of a full forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from luthier.evaluate import loglikelihood
from luthier.evaluate.loglikelihood import Request, Scored, beginning, encode, encode_answers, scoring
from luthier.models.chat import ChatTemplate, load_tokenizer
from luthier.models.load import load_base
from luthier.models.text_base import load_text_base
from luthier.models.token_tree import Ids
from luthier.models.toys import TOYS
from luthier.recipe_model import ModelConfig
from luthier.runtime.devices import Devices
from luthier.schema import Message, Part
from support import chats
from support.templates import FAMILIES, family


def model_of(name: str) -> Any:
    config = ModelConfig(base=name)
    return load_base(config).model if TOYS[name].hears else load_text_base(config).model


def plainly(model: Any, text: Scored) -> float:
    """The reference: the whole text through the whole model."""
    ids = torch.from_numpy(text.ids)[None]
    with torch.no_grad():
        logprobs_LV = model(input_ids=ids, use_cache=False).logits[0, text.start - 1 : -1].double().log_softmax(-1)
    return float(logprobs_LV.gather(1, ids[0, text.start :, None]).sum())


def texts(rng: np.random.Generator, items: int = 5, stem: int = 0, vocabulary: int = 600) -> list[Scored]:
    """For each of some questions, four options: two of one token, two of several, two with one beginning."""
    first = rng.integers(0, vocabulary, stem)
    found = []
    for _ in range(items):
        question = np.concatenate([first, rng.integers(0, vocabulary, int(rng.integers(1, 70)))])
        long = rng.integers(0, vocabulary, 6)
        for tail in ([4], [9], long, np.append(long[:3], [7, 7])):
            found.append(Scored(np.concatenate([question, tail]).astype(np.int64), len(question)))
    return found


def score(model: Any, found: list[Scored], common: int | None = None) -> tuple[list[float], int]:
    """What a scorer says, and how many tokens it read."""
    shared: Ids = beginning(found) if common is None else found[0].ids[:common]
    with scoring(model, Devices("float32")) as scorer:
        return scorer(found, scorer.prefix(shared)), scorer.read


@pytest.mark.parametrize("stem", [0, 60])
@pytest.mark.parametrize("name", TOYS)
def test_log_likelihoods_are_those_of_the_full_forward_pass(name: str, stem: int) -> None:
    model, found = model_of(name), texts(np.random.default_rng(1), stem=stem)
    sums, read = score(model, found)
    assert sums == pytest.approx([plainly(model, text) for text in found], abs=1e-5)
    assert score(model, found, common=0)[0] == pytest.approx(sums, abs=1e-5)
    questions = {text.ids[: text.start].tobytes(): text.start for text in found}
    # The last token of a text is not read; the long options add five tokens and one to each question.
    assert read == sum(questions.values()) + 6 * len(questions) - stem * (len(questions) - 1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 2), min_size=1, max_size=6), st.lists(st.integers(0, 2), min_size=1, max_size=4)
        ),
        min_size=1,
        max_size=8,
    )
)
def test_any_texts_are_scored_as_alone(pairs: list[tuple[list[int], list[int]]]) -> None:
    model = model_of("toy:qwen2")
    found = [Scored(np.array(context + tail, np.int64), len(context)) for context, tail in pairs]
    assert score(model, found)[0] == pytest.approx([plainly(model, text) for text in found], abs=1e-5)


def test_neither_company_nor_the_size_of_a_pass_changes_a_log_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    model, found = model_of("toy:gemma2"), texts(np.random.default_rng(2))
    together, _ = score(model, found)
    assert [score(model, [text])[0][0] for text in found] == pytest.approx(together, abs=1e-5)
    assert score(model, found[::-1])[0][::-1] == pytest.approx(together, abs=1e-5)
    monkeypatch.setattr(loglikelihood, "LOGITS", 1)
    assert score(model, found)[0] == pytest.approx(together, abs=1e-5)


@pytest.mark.parametrize("kind", ["lora", "full", "nf4"])
def test_the_adapter_in_force_is_scored_and_training_goes_on(kind: str) -> None:
    made = chats.recipe()
    made.model.tuning, made.model.quantization = ("full" if kind == "full" else "lora"), ("nf4" * (kind == "nf4"))
    _, learner = chats.model_of(made)
    with torch.no_grad():
        torch.manual_seed(3)
        for name, weight in learner.tuned():
            if kind == "full" or "lora_B" in name:
                weight.add_(torch.randn_like(weight), alpha=0.2)
    model, found = learner.language_model.train(), texts(np.random.default_rng(3), stem=5)
    sums, _ = score(model, found)
    assert all(module.training for module in model.modules() if isinstance(module, torch.nn.Dropout))
    model.eval()
    assert sums == pytest.approx([plainly(model, text) for text in found], abs=2e-5)
    if kind != "full":
        with model.disable_adapter():
            assert score(model, found)[0] != pytest.approx(sums, abs=0.1)


def test_weights_are_read_again_at_every_call() -> None:
    model, found = model_of("toy:llama"), texts(np.random.default_rng(4), stem=8)
    before, _ = score(model, found)
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight.mul_(-1)
    after, _ = score(model, found)
    assert after != pytest.approx(before, abs=1e-3)
    assert after == pytest.approx([plainly(model, text) for text in found], abs=1e-5)


def test_texts_beyond_the_length_where_positions_stretch_are_read_alone() -> None:
    model = model_of("toy:phi3")
    config = model.config
    half = config.hidden_size // config.num_attention_heads // 2
    config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 1.0,
        "short_factor": [1.0] * half,
        "long_factor": [3.0] * half,
        "original_max_position_embeddings": 40,
    }
    config.original_max_position_embeddings = 40
    model = type(model)(config).eval()
    found = texts(np.random.default_rng(5), items=8, stem=10)
    assert min(len(text.ids) for text in found) < 30 < 50 < max(len(text.ids) for text in found)
    sums, _ = score(model, found)
    assert sums == pytest.approx([plainly(model, text) for text in found], abs=1e-5)


def test_what_is_scored_is_never_part_of_the_common_beginning() -> None:
    one, other = (Scored(np.array(ids), start) for ids, start in (([1, 2, 3, 4], 3), ([1, 2, 3, 5], 2)))
    assert beginning([one, other]).tolist() == [1]
    assert beginning([one]).tolist() == [1, 2]


def harness(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], int]:
    """A second implementation of how lm-evaluation-harness cuts: whole ids, and the count of the context's."""

    def ids(text: str) -> list[int]:
        begun = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        return tokenizer.encode(text, **({"add_special_tokens": False} if begun else {}))

    if not context:
        tail = tokenizer.encode(continuation, add_special_tokens=False)
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        return (tail, 1) if tail[0] == first else ([first, *tail], 1)
    blanks = len(context) - len(context.rstrip())
    if blanks:
        context, continuation = context[:-blanks], context[-blanks:] + continuation
    return ids(context + continuation), len(ids(context))


REQUESTS = [
    ("Question: Which planet is nearest?\nAnswer:", " Mercury"),
    ("Question: Which planet is nearest?\nAnswer: ", "Mercury"),
    ("The answer is\n\n", " B"),
    ("", "Thank you for your question."),
    ("<|bos|>The weather was", " cold"),
    ("a", "b"),
]


@pytest.mark.parametrize("name", ["toy", "llama3", "phi3", "mistral"])
def test_strings_are_cut_as_the_harness_cuts_them(name: str) -> None:
    tokenizer = load_tokenizer("toy:llama") if name == "toy" else family(name)
    found = encode([Request(*pair) for pair in REQUESTS], tokenizer)
    assert [(text.ids.tolist(), text.start) for text in found] == [harness(tokenizer, *pair) for pair in REQUESTS]


@settings(max_examples=150, deadline=None)
@given(st.text(" ab\nAn", min_size=0, max_size=8), st.text(" abswer", min_size=1, max_size=6))
def test_any_strings_are_cut_as_the_harness_cuts_them(context: str, continuation: str) -> None:
    tokenizer = family("llama3")
    if context and not context.rstrip():
        return  # the harness keeps such a context in two halves of nothing
    (text,) = encode([Request(context, continuation)], tokenizer)
    assert (text.ids.tolist(), text.start) == harness(tokenizer, context, continuation)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_an_answer_in_a_chat_is_scored_from_its_first_token(name: str) -> None:
    template = ChatTemplate.of(family(name))
    turns = [Message("user", (Part("text", "Which one?"),)), Message("assistant", (Part("text", "B two"),))]
    text = template.write([template.turn(turn) for turn in turns]).text
    at = text.rindex("B two")
    (found,) = encode_answers([Request(text[:at], "B two")], template.tokenizer)
    assert template.tokenizer.decode(found.ids[found.start :]).strip() == "B two"


@pytest.mark.parametrize("name", ["toy:qwen2", "toy:llama"])
def test_a_tokenizer_that_ends_every_text_cuts_as_one_that_does_not(name: str) -> None:
    plain, ending = load_tokenizer(name), load_tokenizer(name)
    first = f"{plain.bos_token} " if plain("a")["input_ids"][0] == plain.bos_token_id else ""
    ends = [(token, plain.convert_tokens_to_ids(token)) for token in {plain.bos_token, plain.eos_token} - {None}]
    ending.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first}$A {plain.eos_token}", special_tokens=ends
    )
    assert ending("a")["input_ids"][-1] == plain.eos_token_id
    asked = [Request("Question: is it?\nAnswer:", " yes, it is"), Request("", "so"), Request("One ", "two")]
    for one, other in zip(encode(asked, plain), encode(asked, ending), strict=True):
        assert (one.ids.tolist(), one.start) == (other.ids.tolist(), other.start)
