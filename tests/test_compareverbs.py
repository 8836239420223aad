"""`luthier compare` on real runs of a toy: different data, two seeds, a probe, prompts, blind votes."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier import comparemodels, verbs
from luthier.compareverbs import CACHE, CompareRequest, compare
from luthier.errors import ExistsError, RequestError
from luthier.files import read_json, read_jsonl, write_jsonl
from support.chats import WORDS

RECIPE = """
name: small
seed: SEED
model: {base: "toy:llama", max_tokens: 256, lora: {r: 4, dropout: 0.1}}
data: DATA
task: {kind: chat}
train: {max_steps: 6, batch_size: 8, micro_batch_size: 4, learning_rate: 3.0e-3, log_every: 1, save_every: 50}
evaluate: {resamples: 50, samples: 0}
"""
OWN = "{sources: {chats: {path: FILE}}, train: [chats], test: [], validation_fraction: 0.2}"
TESTED = "{sources: {chats: {path: FILE}, held: {path: HELD}}, train: [chats], test: [held], validation_fraction: 0.0}"


def write_chats(path: Path, count: int, seed: int, order: Any) -> Path:
    rng = random.Random(seed)
    lines = []
    for number in range(count):
        words = rng.choices(WORDS, k=rng.randint(6, 9))
        turns = [("human", f"{' '.join(words)} {seed}-{number}"), ("gpt", " ".join(order(words)))]
        lines.append({"conversations": [{"from": who, "value": text} for who, text in turns]})
    write_jsonl(path, lines)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs on different data (a, b), and two seeds of one recipe (one, two)."""
    folder = tmp_path_factory.mktemp("compare")
    one = write_chats(folder / "one.jsonl", 60, 3, reversed)
    other = write_chats(folder / "other.jsonl", 60, 4, sorted)
    held = write_chats(folder / "held.jsonl", 24, 5, reversed)
    found = {}
    for name, data, seed, file in (
        ("a", OWN, 17, one),
        ("b", OWN, 17, other),
        ("one", TESTED, 1, one),
        ("two", TESTED, 2, one),
    ):
        data = data.replace("FILE", str(file)).replace("HELD", str(held))
        recipe = folder / f"{name}.yaml"
        recipe.write_text(RECIPE.replace("DATA", data).replace("SEED", str(seed)))
        found[name] = folder / name
        verbs.run(recipe, found[name])
    return found


def content(folders: Any) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def plain_losses(run: Path, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Nats of the last answer of each row, by plain transformers and PEFT."""
    from peft import PeftModel

    from luthier.models.toys import build_toy

    base, tokenizer, _ = build_toy("toy:llama")
    model = PeftModel.from_pretrained(base, run / "stages/main/adapter").eval()
    found = {}
    for row in rows:
        turns = [{"role": turn["role"], "content": turn["content"][0]["text"]} for turn in json.loads(row["messages"])]
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        asked = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt")["input_ids"]
        begin = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
        end = ids.shape[1]  # the template of the toy writes nothing behind an answer's stop token
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        chosen = torch.log_softmax(logits[begin - 1 : end - 1].double(), -1)
        found[row["id"]] = -float(chosen.gather(1, ids[0, begin:end, None]).sum())
    return found


def test_runs_of_different_data_refuse_their_losses_and_meet_on_a_probe(runs, tmp_path, monkeypatch) -> None:
    import pyarrow.parquet as pq

    before = content([runs["a"], runs["b"]])
    found = compare(CompareRequest([runs["a"], runs["b"]], out=tmp_path / "page.html"))
    assert content([runs["a"], runs["b"]]) == before
    assert found["losses"]["classes"] == [["a"], ["b"]]
    assert any("training rows" in line and "tokens and mask" in line for line in found["refused"])
    held_out = [{line["id"] for line in read_jsonl(runs[n] / "stages/main/predictions.jsonl")} for n in ("a", "b")]
    assert not held_out[0] & held_out[1]
    probe = found["probe"]
    assert probe["n"] == probe["rows"] == len(held_out[0] | held_out[1])
    page = (tmp_path / "page.html").read_text()
    assert "Loss on one fixed probe" in page
    assert "What is not compared" in page

    table = [
        row for n in ("a", "b") for path in (runs[n] / "data").glob("rows-*") for row in pq.read_table(path).to_pylist()
    ]
    rows = [row for row in table if row["id"] in held_out[0] | held_out[1]]
    cached = sorted((tmp_path / CACHE).glob("*.jsonl"))
    assert len(cached) == 2
    sizes = {line["id"]: line["target_bytes"] for line in read_jsonl(cached[0])}
    for name, run in zip(("a", "b"), probe["measures"][0]["runs"], strict=True):
        reference = plain_losses(runs[name], rows)
        bits = sum(reference.values()) / torch.log(torch.tensor(2.0)).item() / sum(sizes.values())
        assert run["value"] == pytest.approx(bits, rel=1e-5)

    monkeypatch.setattr(comparemodels, "_load", lambda *_: pytest.fail("a model was loaded again"))
    again = compare(CompareRequest([runs["a"], runs["b"]], out=tmp_path / "again.html"))
    assert again["probe"] == probe


def test_two_seeds_of_one_recipe_cannot_be_told_apart_and_no_model_is_loaded(runs, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(comparemodels, "ask", lambda *_: pytest.fail("a model was loaded"))
    found = compare(CompareRequest([runs["one"], runs["two"]], out=tmp_path / "page.html"))
    assert "one and two cannot be told apart" in found["headline"][0]
    assert found["losses"] == {"classes": [["one", "two"]], "reasons": []}
    assert found["refused"] == []
    assert found["probe"]["n"] == 24
    scores = read_json(runs["one"] / "stages/main/scores.json")
    assert found["probe"]["measures"][0]["runs"][0]["value"] == pytest.approx(scores["bits_per_byte"]["value"])
    assert "Training loss of one, two" in (tmp_path / "page.html").read_text()


def test_a_probe_of_ones_own_leaves_out_what_was_trained_on(runs, tmp_path) -> None:
    seen = read_jsonl(runs["a"].parent / "one.jsonl")[:10]
    fresh = read_jsonl(write_chats(tmp_path / "fresh.jsonl", 8, 9, reversed))
    write_jsonl(tmp_path / "probe.jsonl", [*seen, *fresh])
    request = CompareRequest([runs["one"], runs["b"]], probe=tmp_path / "probe.jsonl", out=tmp_path / "page.html")
    found = compare(request)
    assert found["probe"]["trained"] == {"one": 10}
    assert found["probe"]["n"] == 8
    assert "8-9" not in found["probe"]["flips"][0]["fixed"]["items"][0]["text"]
    assert found["probe"]["flips"][0]["fixed"]["items"][0]["text"].startswith("user: ")
    write_jsonl(tmp_path / "seen.jsonl", seen)
    with pytest.raises(RequestError, match="every row of it"):
        compare(CompareRequest([runs["one"], runs["b"]], probe=tmp_path / "seen.jsonl", out=tmp_path / "other.html"))


def test_prompts_are_answered_as_predict_answers_them_and_ballots_hide_by_whom(runs, tmp_path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one two three"}\nnot json\n{"prompt": "green blue"}\n')
    found = compare(CompareRequest([runs["a"], runs["b"]], prompts=prompts, out=tmp_path / "page.html"))
    assert [one["question"] for one in found["answers"]] == ["one two three", "green blue"]
    for name in ("a", "b"):
        predicted = [line["answer"] for line in verbs.predict(runs[name], [prompts]) if "answer" in line]
        assert [one["answers"][name] for one in found["answers"]] == predicted

    request = CompareRequest([runs["a"], runs["b"]], prompts=prompts, blind=True, swap=True, out=tmp_path / "vote.html")
    hidden = compare(request)
    assert hidden["answers"] == []
    key = read_json(tmp_path / "vote.key.json")
    assert {one["first_run"] for one in key["ballots"]} == {"a", "b"}
    assert len(key["ballots"]) == 4
    votes = [{"page": key["page"], "ballot": one["id"], "choice": "first"} for one in key["ballots"]]
    write_jsonl(tmp_path / "votes.jsonl", votes)
    counted = compare(
        CompareRequest(
            [runs["a"], runs["b"]],
            votes=[tmp_path / "votes.jsonl"],
            key=tmp_path / "vote.key.json",
            out=tmp_path / "counted.html",
        )
    )
    assert counted["votes"]["first"]["value"] == 1.0
    assert set(counted["votes"]["standings"]) == {"a", "b"}
    assert "Blind votes" in (tmp_path / "counted.html").read_text()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"blind": True}, "there are no answers to hide"),
        ({"swap": True}, "only ballots are shown twice"),
        ({"votes": [Path("v.jsonl")]}, "go together"),
        ({"key": Path("k.json")}, "go together"),
        ({"stage": "late"}, "stage late is not finished"),
        ({"probe": Path("nowhere.jsonl")}, "nowhere.jsonl: is not there"),
        ({"prompts": Path("nowhere.txt")}, "nowhere.txt: is not there"),
    ],
)
def test_words_that_do_not_go_together_are_refused(runs, tmp_path, words, reason) -> None:
    with pytest.raises(RequestError, match=reason):
        compare(CompareRequest([runs["a"], runs["b"]], out=tmp_path / "page.html", **words))
    assert not (tmp_path / "page.html").exists()


def test_nothing_is_overwritten_and_nothing_is_added_to_a_run(runs, tmp_path) -> None:
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(ExistsError):
        compare(CompareRequest([runs["one"], runs["two"]], out=tmp_path / "page.html"))
    with pytest.raises(RequestError, match="to which nothing is added"):
        compare(CompareRequest([runs["one"], runs["two"]], out=runs["one"] / "page.html"))


def test_the_command_line_gives_one_object_and_a_free_name(runs, tmp_path, luthier) -> None:
    for name in ("compare.html", "compare-2.html"):
        done = luthier("compare", runs["one"], runs["two"], "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["page"] == name
        assert (tmp_path / name).is_file()
        assert "bits a byte" in done.stderr
    done = luthier("compare", runs["one"], cwd=tmp_path)
    assert done.returncode == 2
    assert "name two or more runs" in done.stderr


def test_verdict_runs_write_no_text(finished, tmp_path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(finished, other)
    found = compare(CompareRequest([finished, other], out=tmp_path / "page.html"))
    accuracy = found["verdicts"]["measures"][0]
    assert accuracy["pairs"][0]["p"] == 1.0
    assert "cannot be told apart" in accuracy["pairs"][0]["verdict"]
    with pytest.raises(RequestError, match="verdict runs write no text"):
        compare(CompareRequest([finished, other], prompts=tmp_path / "page.html", out=tmp_path / "b.html"))
