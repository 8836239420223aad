"""Answers: held against a forward pass a token; company, cache, settings of the base and modes change none of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from luthier.errors import RequestError
from luthier.evaluate.generate import Decoding, Generator, prompt_ids
from luthier.models import adapters
from luthier.models.chat import ChatTemplate
from luthier.models.supervise import render_rows
from luthier.runtime.devices import Devices
from luthier.schema import Row
from support import chats
from support.templates import FAMILIES, family

TOKENS = 10
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"base": "toy:gemma2"},
    "mistral": {"base": "toy:mistral"},
    "nf4": {"quantization": "nf4"},
    "full": {"tuning": "full"},
}


def generator(batch_size: int = 8, **model: Any) -> Generator:
    """A toy whose adapter does something."""
    made = chats.recipe()
    made.model = replace(made.model, **model)
    base, learner = chats.model_of(made)
    with torch.no_grad():
        torch.manual_seed(3)
        for name, weight in learner.tuned():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    return Generator(learner.language_model, ChatTemplate.of(base.tokenizer), Devices("float32"), batch_size)


def questions(template: ChatTemplate, count: int = 7) -> list[list[int]]:
    """Prompts of varied length, longer than the toys' sliding window among them."""
    return [prompt_ids(template, item.row.messages[:-1]) for item in chats.chats(count, longest=30)]


def slowly(answering: Generator, prompt: list[int], tokens: int) -> list[int]:
    """The reference: the whole text through the model for every token."""
    ids = torch.tensor([prompt])
    model = answering.model.eval()
    for _ in range(tokens):
        with torch.no_grad():
            logits_V = model(input_ids=ids, use_cache=False).logits[0, -1]
        ids = torch.cat([ids, logits_V.argmax().view(1, 1)], dim=1)
        if int(ids[0, -1]) in answering.stops:
            break
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_of_a_batch_is_answered_as_alone_and_as_without_a_cache(kind: str) -> None:
    answering = generator(**KINDS[kind])
    prompts = questions(answering.template)
    assert len({len(prompt) for prompt in prompts}) > 4, "padding must matter"
    together = answering(prompts, Decoding(TOKENS))
    assert together == [answering([prompt], Decoding(TOKENS))[0] for prompt in prompts]
    assert together == replace(answering, batch_size=3)(prompts, Decoding(TOKENS))
    assert [answer.ids for answer in together] == [slowly(answering, prompt, TOKENS) for prompt in prompts]
    assert len({tuple(answer.ids) for answer in together}) > 3


def test_packed_attention_answers_as_plain_attention_does() -> None:
    packed, plain = generator(), generator()
    adapters.bare(plain.model).set_attn_implementation("eager")
    prompts = questions(packed.template)
    assert packed(prompts, Decoding(TOKENS)) == plain(prompts, Decoding(TOKENS))


@pytest.mark.parametrize("whose", ["template", "tokenizer", "base"])
def test_an_answer_ends_with_the_stop_token_of_template_tokenizer_or_base(whose: str) -> None:
    answering = generator()
    prompts = questions(answering.template)
    free = answering(prompts, Decoding(TOKENS))
    assert not any(answer.stopped for answer in free)
    stop = free[0].ids[3]
    if whose == "template":
        answering = replace(answering, template=replace(answering.template, stop=stop))
    elif whose == "tokenizer":
        answering.template.tokenizer.eos_token = answering.template.tokenizer.convert_ids_to_tokens(stop)
    else:
        adapters.bare(answering.model).generation_config.eos_token_id = [stop]
    assert stop in answering.stops
    for answer, longer in zip(answering(prompts, Decoding(TOKENS)), free, strict=True):
        place = longer.ids.index(stop) + 1 if stop in longer.ids else TOKENS
        assert answer.ids == longer.ids[:place]
        assert answer.stopped == (stop in longer.ids)
        words = answer.ids[:-1] if answer.stopped else answer.ids
        assert answer.text == answering.template.tokenizer.decode(words, skip_special_tokens=True)


def test_the_settings_that_a_base_brings_play_no_part_and_stay() -> None:
    answering = generator()
    prompts = questions(answering.template)
    before = answering(prompts, Decoding(TOKENS))
    settings = adapters.bare(answering.model).generation_config
    settings.repetition_penalty, settings.do_sample, settings.no_repeat_ngram_size = 9.0, True, 1
    assert answering(prompts, Decoding(TOKENS)) == before
    assert adapters.bare(answering.model).generation_config is settings


def test_drawing_follows_from_its_seed_and_leaves_other_random_numbers_alone() -> None:
    answering = generator()
    prompts = questions(answering.template)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    drawn = answering(prompts, Decoding(TOKENS, temperature=1.0, seed=5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert answering(prompts, Decoding(TOKENS, temperature=1.0, seed=5)) == drawn
    assert answering(prompts, Decoding(TOKENS, temperature=1.0, seed=6)) != drawn
    greedy = answering(prompts, Decoding(TOKENS))
    assert greedy != drawn
    assert answering(prompts, Decoding(TOKENS, temperature=1.0, top_p=1e-6)) == greedy


def test_a_model_in_training_answers_without_dropout_checkpoints_and_compiler_and_goes_on_training() -> None:
    answering = generator()
    prompts = questions(answering.template)
    expected = answering(prompts, Decoding(TOKENS))
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    bare = adapters.bare(answering.model)
    adapters.checkpoint_activations(bare)
    for layer in bare.model.layers:
        layer.compile(dynamic=True, backend=backend)
    answering.model.train()
    assert answering(prompts, Decoding(TOKENS)) == expected
    assert answering.model.training
    assert not compiled


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_question_is_asked_with_the_ids_that_its_lesson_begins_with(name: str) -> None:
    tokenizer = family(name)
    template = ChatTemplate.of(tokenizer)
    rows: list[Row] = [item.row for item in chats.chats(8) if item.row.messages[0].role == "user"]
    for row, lesson in zip(rows, render_rows(template, rows), strict=True):
        prompt = prompt_ids(template, row.messages[:-1])
        begin, _ = lesson.answers[-1]
        assert list(lesson.ids[: len(prompt)]) == prompt
        assert len(prompt) <= begin < len(lesson.ids)
        assert prompt.count(tokenizer.bos_token_id) <= 1


@pytest.mark.parametrize(("prompts", "tokens"), [([[5], []], 3), ([[5]], 0)])
def test_what_cannot_be_answered_is_refused(prompts: list[list[int]], tokens: int) -> None:
    with pytest.raises(RequestError, match="nothing to answer"):
        generator()(prompts, Decoding(tokens))


def test_no_prompts_have_no_answers() -> None:
    assert generator()([], Decoding(3)) == []


def test_a_prompt_that_stretches_positions_changes_no_other_answer() -> None:
    answering = generator(base="toy:phi3-vision")
    limit = answering.model.get_base_model().config.rope_parameters["original_max_position_embeddings"]
    short = questions(answering.template, 3)
    long = (short[0] * limit)[: limit + 5]
    found = answering([*short, long], Decoding(TOKENS))
    assert [answer.ids for answer in found[:3]] == [slowly(answering, prompt, TOKENS) for prompt in short]
