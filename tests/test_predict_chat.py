"""A small chat run as a person meets it: sample answers before and after training, and `predict` with what it made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from luthier import predict_chat, verbs
from luthier.data.table import read_table
from luthier.errors import RequestError
from luthier.evaluate.generate import Decoding, Generator, prompt_ids
from luthier.files import read_json, read_jsonl, verify_folder, write_json
from luthier.models.chat import ChatTemplate
from luthier.models.lessons import Lessons
from luthier.recipe import Recipe
from luthier.recipefile import read_tree, resolve
from luthier.rundir import RunDir
from luthier.stages.chat_prepare import PreparedChat, prepare_chat
from luthier.stages.chat_samples import ask_after, ask_before
from support import chats

RECIPE = """
model: {base: "toy:llama", max_tokens: 120, lora: {r: 4}}
data: {sources: {chats: {path: chats.jsonl}}, train: [chats], validation_fraction: 0.3}
task: {kind: chat}
train: {max_steps: 4, batch_size: 4, micro_batch_size: 2, learning_rate: 0.02}
evaluate: {resamples: 20, samples: 3, sample_tokens: 8}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished chat run. Tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("chat")
    lines = [{"messages": [{"role": m.role, "content": m.text} for m in item.row.messages]} for item in chats.chats(40)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "recipe.yaml").write_text(RECIPE.replace("chats.jsonl", str(folder / "chats.jsonl")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_CACHE", str(folder / "cache"))
        verbs.run(folder / "recipe.yaml", folder / "run")
    return folder / "run"


def prepared(run: Path, folder: Path) -> tuple[RunDir, Recipe, PreparedChat]:
    """A copy of the run with its stage's model as it was before training."""
    copy = RunDir(shutil.copytree(run, folder / "copy"))
    recipe = resolve(read_tree(copy.recipe), [])
    (copy.stage("main").path / "samples.jsonl").unlink(missing_ok=True)
    return copy, recipe, prepare_chat(copy, "main", recipe)


def test_the_first_held_out_questions_are_answered_before_and_after(run: Path, tmp_path: Path) -> None:
    copy, recipe, ready = prepared(run, tmp_path)
    stage = copy.stage("main")
    path = stage.path / "samples.jsonl"
    ask_before(ready, copy, stage, recipe)
    untrained = path.read_bytes()
    ready.model.load(stage.adapter)
    ask_before(ready, copy, stage, recipe)
    assert path.read_bytes() == untrained, "what was answered before training is written once"
    ask_after(ready, copy, stage, recipe)
    done = path.read_bytes()
    ask_after(ready, copy, stage, recipe)
    assert path.read_bytes() == done, "a judgement that was cut off can be made again"
    rows = {item.row.id: item.row for item in read_table(copy.data).rows}
    assert ready.held_out is not None
    samples, template = read_jsonl(path), ChatTemplate.of(ready.base.tokenizer)
    assert [sample["id"] for sample in samples] == ready.held_out.names[:3]
    generate = Generator(ready.model.language_model, template, ready.devices)
    for sample, early in zip(samples, [json.loads(line) for line in untrained.splitlines()], strict=True):
        row = rows[sample["id"]]
        assert [turn["text"] for turn in sample["turns"]] == [message.text for message in row.messages[:-1]]
        assert (sample["source"], sample["reference"]) == ("chats", row.messages[-1].text)
        assert early["after"] is None
        assert sample["before"] == early["before"]
        [answer] = generate([prompt_ids(template, row.messages[:-1])], Decoding(8))
        assert sample["after"] == {"text": answer.text, "stopped": answer.stopped, "tokens": len(answer.ids)}
    assert any(sample["before"] != sample["after"] for sample in samples)


@pytest.mark.parametrize("key", ["samples", "sample_tokens"])
def test_no_samples_leave_no_file(run: Path, tmp_path: Path, key: str) -> None:
    copy, recipe, ready = prepared(run, tmp_path)
    setattr(recipe.evaluate, key, 0)
    ask_before(ready, copy, copy.stage("main"), recipe)
    ask_after(ready, copy, copy.stage("main"), recipe)
    assert not (copy.stage("main").path / "samples.jsonl").exists()


def test_a_shortened_row_is_asked_for_the_last_answer_that_it_kept(run: Path, tmp_path: Path) -> None:
    copy, recipe, ready = prepared(run, tmp_path)
    assert ready.held_out is not None
    rows = read_table(copy.data).rows
    place = next(at for at, number in enumerate(ready.held_out.numbers) if len(rows[number].row.messages) > 3)
    lesson, number = ready.held_out[place], int(ready.held_out.numbers[place])
    row = rows[number].row
    first = next(at for at, message in enumerate(row.messages) if message.role == "assistant")
    kept = len(prompt_ids(ChatTemplate.of(ready.base.tokenizer), row.messages[: first + 2])) - 1
    short = type(lesson)(lesson.id, lesson.ids_L[:kept], lesson.weight_L[:kept])
    ready.held_out = Lessons.of([short], [number])
    ask_before(ready, copy, copy.stage("main"), recipe)
    [sample] = read_jsonl(copy.stage("main").path / "samples.jsonl")
    assert sample["reference"] == row.messages[first].text
    assert len(sample["turns"]) == first


def test_scores_have_the_losses_of_every_source(run: Path) -> None:
    scores = read_json(run / "stages/main/scores.json")
    assert set(scores["sources"]) == {"chats"}
    assert scores["sources"]["chats"] == {key: scores[key] for key in ("loss", "before.loss", "gain.loss")}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_chat, "ANSWER_TOKENS", 6)


def test_texts_and_chats_are_answered_in_order_and_bad_ones_say_why(run: Path, tmp_path: Path, short: None) -> None:
    (tmp_path / "a.txt").write_text("\ufeffthe pass score?\n")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("Gr\u00fc\u00dfe".encode("latin-1"))
    asked = [{"role": "user", "content": "the pass score?"}]
    lines: list[Any] = [
        {"prompt": "the pass score?"},
        {"messages": asked},
        {"messages": [*asked, {"role": "assistant", "content": "long"}]},
        {"conversations": [{"from": "human", "value": "the pass score?"}, {"from": "gpt", "value": "long"}]},
        {"prompt": "the pass score?", "prompt_id": "1", "messages": asked},
        {"prompt": "the pass score?", "completion": "long"},
        {"messages": [{"role": "assistant", "content": "long"}]},
        {"messages": [{"role": "wizard", "content": "long"}]},
        [1],
        {"foo": 1},
        {"messages": [{"role": "user", "content": "one two " * 9000}]},
    ]
    (tmp_path / "c.jsonl").write_text("\n\n".join(map(json.dumps, lines)) + '\n\n{"prompt": \n')
    names = ["a.txt", "empty.txt", "latin.txt", "missing.txt", "c.jsonl"]
    found = list(verbs.predict(run, [tmp_path / name for name in names]))
    places = [f"c.jsonl:{number}" for number in range(1, 2 * len(lines) + 2, 2)]
    assert [Path(one["input"]).name for one in found] == [*names[:4], *places]
    answered, errors = [found[0], *found[4:10]], [*found[1:4], *found[10:]]
    for one in answered:
        assert set(one) == {"input", "answer", "stopped", "tokens", "stage"}
        assert {key: one[key] for key in ("answer", "stopped", "tokens")} == {
            key: found[0][key] for key in ("answer", "stopped", "tokens")
        }, "the same question has the same answer, however it was written"
        assert one["stage"] == "main"
        assert one["stopped"] or one["tokens"] == 6
    for one, reason in zip(
        errors,
        ("empty", "UTF-8", "No such file", "no question", "wizard", "list", "no format", "tokens", "not JSON"),
        strict=True,
    ):
        assert set(one) == {"input", "error"}
        assert reason in one["error"]


def test_a_question_alone_is_answered_as_the_trained_model_does(run: Path, tmp_path: Path, short: None) -> None:
    [found] = verbs.predict(run, [], "green blue red")
    _, _, ready = prepared(run, tmp_path)
    ready.model.load(run / "stages/main/adapter")
    template = ChatTemplate.of(ready.base.tokenizer)
    prompt = template.tokenizer("<|user|>green blue red<|end|><|assistant|>", add_special_tokens=False)["input_ids"]
    [answer] = Generator(ready.model.language_model, template, ready.devices)([prompt], Decoding(6))
    assert found == {
        "input": "--question",
        "answer": answer.text,
        "stopped": answer.stopped,
        "tokens": len(answer.ids),
        "stage": "main",
    }


def test_a_request_without_one_meaning_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nothing to answer"):
        list(verbs.predict(run, [], ""))
    (tmp_path / "q.txt").write_text("one")
    (tmp_path / "q.jsonl").write_text('{"prompt": "one"}')
    found = list(verbs.predict(run, [tmp_path / "q.txt", tmp_path / "q.jsonl"], "two"))
    assert [set(line) for line in found] == [{"input", "error"}] * 2
    assert all("--question is asked about pictures" in line["error"] for line in found)


def test_a_finished_run_is_not_written_to_and_another_base_is_refused(run: Path, tmp_path: Path, short: None) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    before = sorted((item, item.stat().st_mtime_ns) for item in copy.rglob("*"))
    list(verbs.predict(copy, [], "one"))
    assert sorted((item, item.stat().st_mtime_ns) for item in copy.rglob("*")) == before
    assert verify_folder(copy / "stages/main/adapter") is None
    facts = read_json(copy / "stages/main/adapter/adapter_base.json")
    write_json(copy / "stages/main/adapter/adapter_base.json", {**facts, "weights_sha256": "0" * 64})
    with pytest.raises(Exception, match="trained on other weights"):
        list(verbs.predict(copy, [], "one"))
