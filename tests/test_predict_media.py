"""`predict` with pictures, recordings and videos: what they are by their bytes, what is asked, and what is said."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from luthier import predict_chat, verbs
from luthier.data.mediakind import media_kind
from luthier.evaluate.generate import Decoding, Generator, prompt_of
from luthier.models.chat import ChatTemplate
from luthier.models.senses.spelling import Speller
from luthier.models.senses.supply import Supply
from luthier.recipefile import read_tree, resolve
from luthier.rundir import RunDir
from luthier.runtime.devices import Devices
from luthier.schema import Message, Part
from luthier.stages.chat_prepare import build_chat_model
from support import films, seeing
from support.sightings import picture

RECIPE = """
model: {base: BASE, max_tokens: 900, lora: {r: 4}}
data: {sources: {shown: {path: TABLE}}, train: [shown], validation_fraction: 0.3, frames: {rate: 2.0}}
task: TASK
train: {max_steps: 1, batch_size: 2, micro_batch_size: 1, feature_store: "off"}
evaluate: {resamples: 20, samples: 0}
"""


def trained(folder: Path, base: str, task: str) -> Path:
    """A finished run on six pictures."""
    folder.mkdir(exist_ok=True)
    lines = []
    for number in range(6):
        picture(40, 44, number).save(folder / f"{number}.png")
        said = {"title": f"one {number}", "category": "two", "price": 7 + number}
        asked = [{"type": "image", "image": f"{number}.png"}, {"type": "text", "text": "What is it?"}]
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": "green blue"}]
        lines.append({"messages": turns} if "chat" in task else {"image": f"{number}.png", **said})
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = RECIPE.replace("BASE", f'"{base}"').replace("TABLE", str(folder / "rows.jsonl")).replace("TASK", task)
    (folder / "recipe.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_CACHE", str(folder / "cache"))
        verbs.run(folder / "recipe.yaml", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("chat"), "toy:phi4-multimodal", "{kind: chat}")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_chat, "ANSWER_TOKENS", 5)


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Path]:
    """Files whose names say nothing."""
    picture(50, 40, 9).save(tmp_path / "a", "PNG")
    soundfile.write(tmp_path / "b", np.random.default_rng(1).normal(0, 0.1, 12000), 16000, format="FLAC")
    (tmp_path / "c").write_bytes(films.film(15))
    (tmp_path / "d").write_text("What is one?")
    return {"image": tmp_path / "a", "audio": tmp_path / "b", "video": tmp_path / "c", "text": tmp_path / "d"}


def direct(run: Path, parts: list[Part]) -> str:
    """The answer of the run's model to one question, without `predict`."""
    recipe = resolve(read_tree(RunDir(run).recipe), [])
    devices = Devices("float32")
    base, model = build_chat_model(recipe, devices, recipe.seed)
    model.load(run / "stages/main/adapter")
    assert base.senses is not None
    supply, template = Supply(base.senses, seeing.SOURCE), ChatTemplate.of(base.tokenizer)
    prompt = prompt_of(template, [Message("user", tuple(parts))], None, Speller(base.senses, supply.source))
    return Generator(model.language_model, template, devices, supply=supply)([prompt], Decoding(5))[0].text


@pytest.mark.parametrize(
    ("kind", "asked"),
    [("image", "Describe the image."), ("audio", "Transcribe the recording."), ("video", "Describe the video.")],
)
def test_a_medium_is_told_by_its_bytes_and_asked_about(
    run: Path, given: dict[str, Path], kind: Any, asked: str
) -> None:
    data = given[kind].read_bytes()
    assert media_kind(data) == kind
    [said] = verbs.predict(run, [given[kind]])
    assert set(said) == {"input", "answer", "stopped", "tokens", "stage"}
    assert said["answer"] == direct(run, [Part(kind, media=seeing.kept(data)), Part("text", asked)])
    [other] = verbs.predict(run, [given[kind]], "What is one?")
    assert other["answer"] == direct(run, [Part(kind, media=seeing.kept(data)), Part("text", "What is one?")])


def test_what_cannot_be_read_has_its_reason_and_the_others_go_on(
    run: Path, given: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "torn").write_bytes(given["image"].read_bytes()[:-2000])
    (tmp_path / "page.jpg").write_text("<html>no picture</html>")
    (tmp_path / "noise").write_bytes(b"\xff\x00\xfe" * 50)
    (tmp_path / "nothing").write_bytes(b"")
    picture(2000, 3, 0).save(tmp_path / "line.png")
    names = ["torn", "noise", "nothing", "gone", "line.png"]
    inputs = [*(tmp_path / name for name in names), tmp_path / "page.jpg", given["image"], given["text"]]
    found = list(verbs.predict(run, inputs))
    assert [line["input"] for line in found] == [str(path) for path in inputs]
    errors = [line.get("error", "") for line in found]
    assert errors[0].startswith("unreadable_image")
    assert "neither UTF-8 text" in errors[1]
    assert errors[2:4] == ["it is empty", "No such file or directory"]
    assert "extreme_shape" in errors[4]
    assert errors[5:] == ["", "", ""], "a page is a text, whatever its name"


def test_chats_with_media_beside_them_are_answered(run: Path, given: dict[str, Path], tmp_path: Path) -> None:
    coded = base64.b64encode(given["image"].read_bytes()).decode()
    content = [{"type": "image", "image": "a"}, {"type": "text", "text": "What is one?"}]
    address = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{coded}"}}
    lines: list[Any] = [
        {"messages": [{"role": "user", "content": content}]},
        {"prompt": "What is one?", "image": "a"},
        {"messages": [{"role": "user", "content": [address, content[1]]}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "none.png"}]}]},
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, lines)))
    *found, missing = verbs.predict(run, [tmp_path / "chats.jsonl"])
    part = Part("image", media=seeing.kept(given["image"].read_bytes()))
    assert {line["answer"] for line in found} == {direct(run, [part, Part("text", "What is one?")])}
    assert missing["error"].startswith("missing_media")


def test_a_describe_run_asks_its_own_question_and_reads_the_answer(
    tmp_path: Path, given: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = (
        '{kind: describe, describe: {prompt: "What is sold?", kinds: {title: text, category: category, price: amount}}}'
    )
    run = trained(tmp_path / "described", "toy:qwen2.5-vl", task)
    [said] = verbs.predict(run, [given["image"]])
    part = Part("image", media=seeing.kept(given["image"].read_bytes()))
    assert said["answer"] == direct(run, [part, Part("text", "What is sold?")])
    assert said["fields"] is None
    answer = "Product: a b, Category: two, Full Price: 70"
    monkeypatch.setattr(predict_chat, "answer_chats", lambda *_: iter([{"input": "a", "answer": answer}]))
    [said] = verbs.predict(run, [given["image"]])
    assert said["fields"] == {"title": "a b", "category": "two", "price": "70"}


def test_a_base_that_reads_words_alone_says_so(tmp_path: Path, given: dict[str, Path]) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n}", "completion": "one"}) + "\n" for n in range(6))
    )
    text = RECIPE.replace("BASE", '"toy:llama"').replace("TABLE", str(tmp_path / "rows.jsonl"))
    (tmp_path / "recipe.yaml").write_text(text.replace("TASK", "{kind: chat}"))
    verbs.run(tmp_path / "recipe.yaml", tmp_path / "run")
    [said] = verbs.predict(tmp_path / "run", [given["image"]])
    assert "reads text alone" in said["error"]


@pytest.mark.parametrize(
    "text", ["BMW is a car", "GIF89a is a format", "#EXTM3U\nhttp://x/y", "Ogg OggS", "\ufeffOne?"]
)
def test_a_text_is_no_medium_however_it_begins(text: str) -> None:
    assert media_kind((text + " " * 400).encode()) is None
