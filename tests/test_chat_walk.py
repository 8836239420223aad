"""A chat run by the command line: its folder, kill -9 and a move to another place, and the proof on the run at hand."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.files import sha256_file
from support.chats import WORDS
from support.children import environment

STEPS = 12
RECIPE = """
name: small-chats
model: {base: "toy:llama", max_tokens: 256, lora: {r: 4, dropout: 0.1}}
data:
  sources: {chats: {path: CHATS}}
  train: [chats]
  test: []
  validation_fraction: 0.15
task: {kind: chat}
train: {max_steps: 12, batch_size: 8, micro_batch_size: 2, learning_rate: 3.0e-3, log_every: 1, save_every: 2}
evaluate: {resamples: 50, samples: 1, sample_tokens: 4}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    rng = random.Random(3)
    with (folder / "chats.jsonl").open("w") as stream:
        for number in range(120):
            words = rng.choices(WORDS, k=rng.randint(1, 9))
            turns = [("human", f"{' '.join(words)} {number}"), ("gpt", " ".join(reversed(words)))]
            stream.write(json.dumps({"conversations": [{"from": who, "value": text} for who, text in turns]}) + "\n")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("CHATS", str(folder / "chats.jsonl")))
    return path


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "luthier.cli", "run", str(recipe), "--out", str(out), *more]


def call(recipe: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(recipe, out, *more), capture_output=True, text=True, timeout=240, env=environment(), check=False
    )


@pytest.fixture(scope="module")
def untouched(recipe, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("untouched") / "run"
    done = call(recipe, out)
    assert done.returncode == 0, done.stderr
    return out


def adapter(run: Path) -> str:
    return sha256_file(run / "stages" / "main" / "adapter" / "adapter_model.safetensors")


def test_a_run_leaves_what_the_contract_names(untouched):
    stage = untouched / "stages" / "main"
    metrics = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    assert {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "seconds"} <= set(metrics[0])
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    scores = json.loads((stage / "scores.json").read_text())
    assert scores["gain.loss"]["value"] == pytest.approx(scores["before.loss"]["value"] - scores["loss"]["value"])
    assert set(scores.pop("sources")) == {"chats"}
    assert all({"value", "ci", "n"} <= set(score) for score in scores.values())
    items = [json.loads(line) for line in (stage / "predictions.jsonl").read_text().splitlines()]
    total, weight = sum(item["nll"] for item in items), sum(item["weight"] for item in items)
    assert scores["loss"]["value"] == pytest.approx(total / weight)
    assert scores["loss"]["n"] == len(items)
    record = json.loads((stage / "stage.json").read_text())
    assert record["trained"]["learning"]["still"] == []
    assert record["trained"]["effect"] > 0
    assert (untouched / "report.html").is_file()
    assert json.loads((untouched / "run.json").read_text())["status"] == "finished"
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "adapter_base.json"):
        assert (stage / "adapter" / name).is_file()


def test_the_adapter_is_read_by_plain_peft(untouched):
    import torch
    from peft import PeftModel

    from luthier.models.toys import build_toy

    base, tokenizer, _ = build_toy("toy:llama")
    model = PeftModel.from_pretrained(base, untouched / "stages" / "main" / "adapter").eval()
    ids = tokenizer("one two three", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        tuned = model(input_ids=ids).logits
        with model.disable_adapter():
            plain = model(input_ids=ids).logits
    assert not torch.equal(tuned, plain)


def test_killed_moved_and_resumed_it_ends_in_the_same_bytes(recipe, untouched, tmp_path):
    out = tmp_path / "first-place"
    process = subprocess.Popen(command(recipe, out), stderr=subprocess.DEVNULL, env=environment())
    metrics, step = out / "stages" / "main" / "metrics.jsonl", random.Random().randint(1, STEPS - 2)
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and f'"step": {step},' in metrics.read_text()):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(random.random() * 0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    moved = tmp_path / "another" / "place"
    moved.parent.mkdir()
    shutil.move(out, moved)
    done = call(recipe, moved, "--resume", "--verify")
    assert ("proved: from step" in done.stderr) != ("it has no checkpoint yet" in done.stderr)
    assert done.returncode == 0, done.stderr
    assert adapter(moved) == adapter(untouched)
    for name in ("metrics.jsonl", "scores.json", "predictions.jsonl"):
        one, other = ((run / "stages" / "main" / name).read_text() for run in (moved, untouched))
        if name == "metrics.jsonl":
            one, other = (
                json.dumps([{**json.loads(line), "seconds": 0} for line in text.splitlines()]) for text in (one, other)
            )
        assert one == other, name


def test_a_checkpoint_that_another_hand_changed_fails_the_proof(recipe, untouched, tmp_path):
    from luthier.files import MANIFEST, read_json, write_json

    copy = tmp_path / "copy"
    shutil.copytree(untouched, copy)
    stage = copy / "stages" / "main"
    for item in (stage / "adapter", stage / "stage.json"):
        shutil.rmtree(item) if item.is_dir() else item.unlink()
    whole = call(recipe, copy, "--resume", "--verify")
    assert whole.returncode == 0, whole.stderr
    assert "every byte of adapter, optimizer and state is the same" in whole.stderr
    for item in (stage / "adapter", stage / "stage.json"):
        shutil.rmtree(item) if item.is_dir() else item.unlink()
    newest = sorted((stage / "checkpoints").glob("step-*"))[-1]
    state = read_json(newest / "state.json")
    write_json(newest / "state.json", {**state, "tokens": state["tokens"] + 1})
    manifest = read_json(newest / MANIFEST)
    text = (newest / "state.json").read_bytes()
    manifest["files"]["state.json"] |= {"sha256": sha256_file(newest / "state.json"), "size": len(text)}
    write_json(newest / MANIFEST, manifest)
    changed = call(recipe, copy, "--resume", "--verify")
    assert changed.returncode == 1
    assert "state.json: tokens" in changed.stderr


def test_two_stages_that_add_other_tokens_read_their_rows_anew_and_the_second_can_be_proved(recipe, tmp_path):
    from luthier import verbs

    text = recipe.read_text().replace("max_steps: 12", "max_steps: 2").replace("save_every: 2", "save_every: 1")
    two = tmp_path / "two.yaml"
    two.write_text(text + 'stages: {plain: {}, added: {model: {added_tokens: ["green"]}}}\n')
    verbs.run(two, tmp_path / "run")
    folders = sorted(item.name for item in (tmp_path / "run" / "tokens").iterdir())
    assert len([name for name in folders if name.startswith("train-")]) == 2
    for item in ("adapter", "stage.json"):
        path = tmp_path / "run" / "stages" / "added" / item
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    verbs.run(two, tmp_path / "run", resume=True, verify=True)
    assert (tmp_path / "run" / "stages" / "added" / "stage.json").is_file()


def test_verify_without_resume_is_a_wrong_request(recipe, tmp_path):
    done = call(recipe, tmp_path / "out", "--verify")
    assert done.returncode == 2
    assert "--resume" in done.stderr
    assert not (tmp_path / "out").exists()
