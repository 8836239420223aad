"""Chats answered while somebody waits: held against the library's own generation, token for token."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from luthier.engines.base import ChatRequest, Piece, Sampling, ServedModel
from luthier.engines.conversations import MOST, Conversations
from luthier.engines.finding import find_models
from luthier.engines.torch_chat import TorchChat
from luthier.errors import CheckpointError, RequestError
from luthier.evaluate.generate import Decoding, Generator, prompt_ids
from luthier.files import read_json, sha256_file, write_json
from luthier.models import adapters
from luthier.models.chat import ChatTemplate
from luthier.models.families import PHI4_MULTIMODAL
from luthier.models.text_base import TextBase, load_text_base
from luthier.recipe_model import ModelConfig
from luthier.runtime.devices import Devices
from luthier.schema import Message, Part
from support.chatrun import chat_run
from support.chats import turn

GREEDY = Sampling(max_new_tokens=24, temperature=0)
QUESTIONS = ("the pass score?", "green blue red, and a long one " * 6, "漢 🎻")


def louder(folder: Path, scale: float) -> None:
    """An adapter of a few steps, made to say something else than its base: one direction, so many times as strong."""
    path = folder / adapters.WEIGHTS
    weights = load_file(str(path))
    save_file({name: w * scale if "lora_B" in name else w for name, w in weights.items()}, str(path))
    if (folder / "MANIFEST.json").is_file():
        manifest = read_json(folder / "MANIFEST.json")
        manifest["files"][path.name] |= {"sha256": sha256_file(path), "size": path.stat().st_size}
        write_json(folder / "MANIFEST.json", manifest)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = chat_run(tmp_path_factory.mktemp("torch-chat"))
    louder(found / "stages/main/adapter", 30)
    louder(found / "stages/main/checkpoints/step-000005", -60)
    return found


@pytest.fixture(scope="module")
def engine(run: Path) -> Iterator[TorchChat]:
    made = TorchChat(find_models([run]))
    yield made
    made.close()


def ask(engine: TorchChat, model: str, *texts: str, sampling: Sampling = GREEDY) -> list[Piece]:
    messages = [turn("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]
    return list(engine.stream(ChatRequest(model, messages, sampling)))


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def plain(run: Path, folder: str | None) -> Any:
    """What somebody without this package has: the base and plain PEFT."""
    from peft import PeftModel

    base = load_text_base(ModelConfig(base="toy:llama"))
    model = base.model if folder is None else PeftModel.from_pretrained(base.model, run / "stages/main" / folder)
    return base, model.eval()


ADAPTERS = {
    "run/main": "adapter",
    "run/main@step-000010": "checkpoints/step-000010",
    "run/main@step-000005": "checkpoints/step-000005",
    "base:toy:llama": None,
}


@pytest.mark.parametrize("model", ADAPTERS)
def test_greedy_answers_are_those_of_transformers_and_of_our_generator(
    engine: TorchChat, run: Path, model: str
) -> None:
    base, tuned = plain(run, ADAPTERS[model])
    template = ChatTemplate.of(base.tokenizer)
    generate = Generator(tuned, template, Devices("float32"))
    for question in QUESTIONS:
        prompt = prompt_ids(template, [turn("user", question)])
        [answer] = generate([prompt], Decoding(GREEDY.max_new_tokens))
        out = tuned.generate(
            input_ids=torch.tensor([prompt]), do_sample=False, max_new_tokens=24, eos_token_id=generate.stops
        )
        assert out[0, len(prompt) :].tolist() == answer.ids
        pieces = ask(engine, model, question)
        assert text_of(pieces) == answer.text
        assert pieces[-1] == Piece(
            pieces[-1].text, "stop" if answer.stopped else "length", len(prompt), len(answer.ids)
        )
        assert all(piece.finish == "" and piece.text for piece in pieces[:-1])


def test_models_take_turns_and_none_leaves_a_trace(engine: TorchChat) -> None:
    first = {model.id: text_of(ask(engine, model.id, QUESTIONS[0])) for model in engine.models()}
    assert len(set(first.values())) >= 3, "adapters must matter"
    for name in [*first, *reversed(first)]:
        assert text_of(ask(engine, name, QUESTIONS[0])) == first[name]


@pytest.mark.parametrize("name", ["run/main", "base:toy:llama"])
def test_the_next_turn_reads_only_what_is_new_and_is_answered_as_if_it_had_read_all(
    engine: TorchChat, run: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    read: list[tuple[int, int]] = []
    begin = Conversations.begin

    def noted(self: Conversations, model: str, ids: Sequence[int], config: Any) -> Any:
        reading = begin(self, model, ids, config)
        read.append((len(ids), len(ids) - len(reading.ids)))
        return reading

    monkeypatch.setattr(Conversations, "begin", noted)
    forgetful = TorchChat(find_models([run]))
    said = ["the pass score? " * 10]
    for more in ("and a grade?", "what now " * 10, "long"):
        forgetful._conversations.clear()
        answer = text_of(ask(forgetful, name, *said))
        ask(engine, "run/main@step-000010", *said)  # another adapter's turn in between
        assert text_of(ask(engine, name, *said)) == answer
        said += [answer, more]
    alone, with_another = read[::3], read[2::3]
    assert all(new == whole for whole, new in alone)
    for (before, _), (whole, new) in pairwise(with_another):
        assert new <= whole - before, "the question before is not read again"


@pytest.mark.parametrize("base", ["toy:gemma2", "toy:mistral", "toy:qwen3"])
def test_bases_that_look_back_on_a_window_answer_every_turn_as_if_it_were_the_first(base: str) -> None:
    model = ServedModel("base", "chat", base)
    engine, forgetful = TorchChat([model]), TorchChat([model])
    said = ["the pass score?"]
    for more in ("and now?", "one two three " * 12, "green", "long"):  # beyond the window from the third turn on
        forgetful._conversations.clear()
        answer = ask(forgetful, "base", *said)
        assert text_of(ask(engine, "base", *said)) == text_of(answer)
        said += [text_of(answer), more]
    assert text_of(ask(engine, "base", *said[:3])) == text_of(ask(forgetful, "base", *said[:3]))


def test_a_conversation_that_branches_off_or_was_cut_off_is_answered_as_a_new_one(
    engine: TorchChat, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = TorchChat(find_models([run]))
    expected = {q: text_of(ask(fresh, "run/main", q)) for q in ("one two three", "one two four", "one")}
    for question, answer in [*expected.items(), *reversed(expected.items())]:
        assert text_of(ask(engine, "run/main", question)) == answer
    started = engine.stream(ChatRequest("run/main", [turn("user", "one two three")], GREEDY))
    next(started)
    started.close()
    assert text_of(ask(engine, "run/main", "one two four")) == expected["one two four"]
    layer = engine._bases[next(iter(engine._bases))].model.model.layers[0]
    with monkeypatch.context() as patch:  # a pass that dies behind its first attention
        patch.setattr(layer.mlp, "forward", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ask(engine, "run/main", "one two four five")
    assert text_of(ask(engine, "run/main", "one two four")) == expected["one two four"]


def test_few_conversations_are_kept(engine: TorchChat) -> None:
    for model in engine.models():
        ask(engine, model.id, "one")
    assert len(engine._conversations._kept) == MOST


def test_the_same_seed_draws_the_same_answer_and_none_another(engine: TorchChat) -> None:
    def drawn(seed: int | None) -> str:
        return text_of(ask(engine, "run/main", "one", sampling=Sampling(20, 1.5, 1.0, seed=seed)))

    ask(engine, "run/main", "another")
    assert drawn(5) == drawn(5)
    assert len({drawn(5), drawn(6), drawn(None), drawn(None)}) == 4


def test_an_answer_ends_before_a_stop_text_that_spans_its_pieces(engine: TorchChat) -> None:
    sampling = Sampling(24, 1.0, 1.0, seed=11)
    whole = text_of(ask(engine, "base:toy:llama", "one", sampling=sampling))
    assert len(whole) > 12
    stop = whole[7:10]
    pieces = ask(engine, "base:toy:llama", "one", sampling=replace(sampling, stop=("never", stop)))
    assert text_of(pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish == "stop"
    assert pieces[-1].completion_tokens < 24


def test_a_stop_token_ends_an_answer_and_is_not_shown(engine: TorchChat, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(engine, "run/main", "one")
    base = engine._bases[next(iter(engine._bases))]
    ids = base.template.tokenizer(text_of(ask(engine, "run/main", "one")), add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(base, "stops", base.stops | {ids[0]})
    [last] = ask(engine, "run/main", "one")
    assert last == Piece("", "stop", last.prompt_tokens, 1)


def test_an_answer_that_nobody_wants_ends_between_two_tokens(engine: TorchChat) -> None:
    cancel = Event()
    pieces = engine.stream(ChatRequest("run/main", [turn("user", "one")], replace(GREEDY, max_new_tokens=500)), cancel)
    found = [next(pieces)]
    cancel.set()
    found += pieces
    assert found[-1].finish == "cancelled"
    assert found[-1].completion_tokens <= 4
    [never] = engine.stream(ChatRequest("run/main", [turn("user", "one")], GREEDY), cancel)
    assert (never.finish, never.completion_tokens) == ("cancelled", 0)


def test_questions_that_cannot_be_asked_are_refused_before_the_first_piece(engine: TorchChat) -> None:
    picture = Message("user", (Part("image", media="sha256:0"), Part("text", "what is it?")))
    for messages, reason in (
        ([turn("user", "one two " * 5000)], "reads 8,192 together with the answer"),
        ([], "no question"),
        ([turn("user", "one"), turn("assistant", "two")], "no question"),
        ([picture], "toy:llama reads text alone"),
    ):
        with pytest.raises(RequestError, match=reason):
            next(engine.stream(ChatRequest("run/main", messages, GREEDY)))
    with pytest.raises(RequestError, match="is not served here"):
        next(engine.stream(ChatRequest("run/other", [turn("user", "one")], GREEDY)))
    longest = replace(GREEDY, max_new_tokens=10**6)
    [*_, last] = ask(engine, "base:toy:llama", "one two " * 2720, sampling=longest)
    assert last.finish == "length"
    assert last.prompt_tokens + last.completion_tokens == 8192


@pytest.mark.parametrize("harm", ["byte", "base"])
def test_an_adapter_that_was_changed_or_is_of_another_base_is_refused(run: Path, tmp_path: Path, harm: str) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    folder = copy / "stages/main/checkpoints/step-000010"
    if harm == "byte":
        data = bytearray((folder / adapters.WEIGHTS).read_bytes())
        data[-1] ^= 1
        (folder / adapters.WEIGHTS).write_bytes(data)
    else:
        write_json(folder / adapters.FACTS, {**read_json(folder / adapters.FACTS), "weights_sha256": "0" * 64})
        manifest = read_json(folder / "MANIFEST.json")
        size = (folder / adapters.FACTS).stat().st_size
        manifest["files"][adapters.FACTS] |= {"sha256": sha256_file(folder / adapters.FACTS), "size": size}
        write_json(folder / "MANIFEST.json", manifest)
    engine = TorchChat(find_models([copy]))
    with pytest.raises(CheckpointError, match="step-000010"):
        ask(engine, "copy/main@step-000010", "one")
    assert ask(engine, "copy/main", "one")[-1].finish, "the others are still there"


def test_a_swap_takes_no_more_than_50_ms(engine: TorchChat) -> None:
    names = ["run/main", "run/main@step-000005", "base:toy:llama"]
    base = engine._bases[next(iter(engine._bases))]
    models = {model.id: model for model in engine.models()}
    for name in names:
        base.put_on(models[name])
    seconds = []
    for name in names * 3:
        begin = time.perf_counter()
        base.put_on(models[name])
        seconds.append(time.perf_counter() - begin)
    assert sorted(seconds)[len(seconds) // 2] < 0.05


def test_adapters_with_tokens_of_their_own_take_turns_with_others(tmp_path: Path) -> None:
    names = [f"<|many_{n}|>" for n in range(130)]  # more than the toy has spare rows for
    found = chat_run(tmp_path, more=f"stages: {{plain: {{}}, added: {{model: {{added_tokens: {names}}}}}}}\n")
    models = [model for model in find_models([found]) if model.step is None]
    question = "the <|many_3|> score?"
    alone = {model.id: ask(TorchChat([model]), model.id, question) for model in models}
    assert len({pieces[-1].prompt_tokens for pieces in alone.values()}) == 2
    engine = TorchChat(models)
    for name in [*alone, *reversed(alone), *alone]:
        assert ask(engine, name, question) == alone[name]


MULTIMODAL = ServedModel("base:toy:phi4-multimodal", "chat", "toy:phi4-multimodal")


def shown(kind: str, number: int) -> Any:
    if kind == "image":
        rng = np.random.default_rng(number)
        return Image.fromarray(rng.integers(0, 256, (40, 70, 3), dtype=np.uint8))
    time_L = np.arange(14_000) / 16_000
    return (0.3 * np.sin(2 * np.pi * 300 * (number + 1) * time_L)).astype(np.float32)


def natively(base: TextBase, medium: Any) -> tuple[dict[str, torch.Tensor], int, int]:
    """What the model's own forward pass is given for a medium, how many placeholders it takes, and their id."""
    senses: Any = base.senses
    if isinstance(medium, np.ndarray):
        mel_TF = PHI4_MULTIMODAL.mel(senses.extractor, medium)
        count = PHI4_MULTIMODAL.sound_tokens(base.model, len(mel_TF))
        given = {"audio_input_features": mel_TF[None], "audio_embed_sizes": torch.tensor([count])}
        return given, count, base.model.config.audio_config.audio_token_id
    given = dict(senses.images([medium], return_tensors="pt"))
    del given["num_img_tokens"]
    return given, senses.prepare("image", medium).slots, base.model.config.vision_config.image_token_id


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_pictures_and_sound_are_read_as_the_models_own_forward_pass_reads_them(kind: Any) -> None:
    engine = TorchChat([MULTIMODAL])
    assert engine.models()[0].reads == ("text", "image", "audio")
    base = load_text_base(ModelConfig(base="toy:phi4-multimodal"))
    question = Message("user", (Part(kind, media="m"), Part("text", "what is it?")))
    mark = {"image": "<|image|>", "audio": "<|audio|>"}[kind]
    prompt = prompt_ids(ChatTemplate.of(base.tokenizer), [turn("user", f"{mark}what is it?")])
    answers = []
    for number in range(4):
        medium = shown(kind, number)
        given, count, token = natively(base, medium)
        ids = [one for id_ in prompt for one in [id_] * (count if id_ == token else 1)]
        for _ in range(6):
            with torch.no_grad():
                logits_V = base.model(input_ids=torch.tensor([ids]), **given, use_cache=False).logits[0, -1]
            ids.append(int(logits_V.argmax()))
        request = ChatRequest(MULTIMODAL.id, [question], Sampling(6, 0), {"m": medium})
        for _ in range(2):  # the second time from what was kept
            pieces = list(engine.stream(request))
            assert text_of(pieces) == base.tokenizer.decode(ids[-6:], skip_special_tokens=True)
            assert pieces[-1].prompt_tokens == len(ids) - 6
        answers.append(tuple(ids[-6:]))
    assert len(set(answers)) > 1, "what is shown must matter"
    again = [question, turn("assistant", "a tone"), turn("user", "and now?")]
    assert list(engine.stream(ChatRequest(MULTIMODAL.id, again, Sampling(6, 0), {"m": medium})))[-1].finish


def test_media_that_do_not_go_with_their_question_are_refused() -> None:
    engine = TorchChat([MULTIMODAL])
    sound, picture = np.ones(8000, np.float32), Image.new("RGB", (30, 30))
    words = Part("text", "what?")
    for parts, media, reason in (
        ((Part("image", media="a"), Part("video", media="b"), words), {"a": picture, "b": sound}, "is not video"),
        ((Part("image", media="a"), words), {}, "was not given"),
        ((Part("image", media="a"), Part("text", "<|image|>")), {"a": picture}, "in its words"),
        ((*(Part("image", media="a"),) * 81, words), {"a": picture}, "80 at most"),
    ):
        with pytest.raises(RequestError, match=reason):
            next(engine.stream(ChatRequest(MULTIMODAL.id, [Message("user", parts)], GREEDY, media)))
