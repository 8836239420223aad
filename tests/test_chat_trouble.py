"""Chat recipes that cannot work are told before anything is trained, all at once, with a mend each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import Interrupted, RecipeError, RequestError
from luthier.recipefile import load_recipe, stage_recipes
from luthier.rundir import RunDir
from luthier.stages.preflight import look_ahead, look_at_rows
from support.chats import WORDS
from support.children import ROOT, environment

RECIPE = """
name: trouble
model: {base: "toy:llama", max_tokens: 256}
data:
  sources: {chats: {path: CHATS}, others: {path: OTHERS}}
  train: [chats]
  test: [others]
task: {kind: chat}
train: {max_steps: 2, batch_size: 4, micro_batch_size: 2}
"""


def write(path: Path, count: int, words: str) -> Path:
    with path.open("w") as stream:
        for number in range(count):
            asked = f"{words} {WORDS[number % len(WORDS)]} {WORDS[number // len(WORDS)]} {number}"
            turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": f"answer {number}"}]
            stream.write(json.dumps({"conversations": turns}) + "\n")
    return path


@pytest.fixture
def recipe(tmp_path) -> Path:
    chats, others = write(tmp_path / "chats.jsonl", 30, "one two"), write(tmp_path / "others.jsonl", 5, "three green")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("CHATS", str(chats)).replace("OTHERS", str(others)))
    return path


def stages(recipe: Path, *sets: str):
    return stage_recipes(load_recipe(recipe, sets))


def run(recipe: Path, out: Path, *sets: str) -> subprocess.CompletedProcess[str]:
    words = [word for item in sets for word in ("--set", item)]
    command = [sys.executable, "-m", "luthier.cli", "run", str(recipe), "--out", str(out), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment(), check=False)


def test_what_can_be_known_of_all_stages_is_told_at_once_and_nothing_is_trained(recipe, tmp_path):
    text = recipe.read_text() + (
        "stages:\n"
        "  first: {model: {lora: {target_modules: nothing_like_this}}, train: {optimizer: paged_adamw}}\n"
        "  second: {model: {base: /nowhere/at/all}}\n"
    )
    recipe.write_text(text)
    done = run(recipe, tmp_path / "run")
    assert done.returncode == 2
    for part in ("stage first", "nothing_like_this", "q_proj", "no GPU", "stage second", "/nowhere/at/all"):
        assert part in done.stderr, part
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").glob("stages/*/checkpoints"))
    assert not (tmp_path / "run" / "data").exists(), "told before the data were read"


def test_numbers_that_make_no_sense_are_told_at_once(recipe, tmp_path):
    sets = ["train.learning_rate=-1", "train.optimizer=sgd", "train.schedule=step", "model.lora.dropout=1.5"]
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, sets)
    assert len(caught.value.problems) == 4
    for key in ("train.learning_rate", "train.optimizer", "train.schedule", "model.lora.dropout"):
        assert key in str(caught.value)


def test_a_base_without_a_tokenizer_or_with_a_template_without_roles_is_refused(recipe, tmp_path):
    from luthier.models.toys import write_toy

    write_toy("toy:llama", tmp_path / "whole")
    assert look_ahead(stages(recipe, f"model.base={tmp_path / 'whole'}")) == []
    bare = tmp_path / "bare"
    write_toy("toy:llama", bare)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    [line] = look_ahead(stages(recipe, f"model.base={bare}"))
    assert "the tokenizer of" in line
    assert "mend:" in line
    mute = tmp_path / "mute"
    write_toy("toy:llama", mute)
    for name in ("chat_template.jinja",):
        (mute / name).write_text("{{ 'nothing of what was said' }}")
    [line] = look_ahead(stages(recipe, f"model.base={mute}"))
    assert "cannot write one question" in line


def test_a_split_without_rows_is_named(recipe, tmp_path):
    from luthier.data.building.build import build
    from luthier.stages.sources import table_request

    build(table_request(stages(recipe)), tmp_path / "table")
    assert look_at_rows(stages(recipe), tmp_path / "table") == []
    sets = ("train.select=best", "data.validation_fraction=0.001", "data.train=[others]", "data.test=[chats]")
    lines = look_at_rows(stages(recipe, *sets), tmp_path / "table")
    assert len(lines) == 3
    for part in ("train.select: there is no validation row", "data.test: chats has no row", "data.train: no row"):
        assert any(part in line for line in lines), part


def test_rows_that_are_all_too_long_are_told_with_the_first_of_them(recipe, tmp_path):
    done = run(recipe, tmp_path / "run", "model.max_tokens=8")
    assert done.returncode == 2
    assert "max_tokens is 8" in done.stderr


def test_a_missing_tracker_is_told_with_the_line_that_installs_it(recipe, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lines = look_ahead(stages(recipe, "track.trackers=[wandb,tensorboard]"))
    assert any("pip install 'luthier[wandb]'" in line for line in lines)
    assert any("pip install 'luthier[tensorboard]'" in line for line in lines)


def test_a_disk_without_room_for_the_checkpoints_of_all_stages_is_told_before_training(recipe, tmp_path, monkeypatch):
    from luthier import verbs
    from luthier.runtime import disk

    alone, both = stages(recipe), stages(with_stages(recipe, "{one: {}, two: {train: {optimizer: adafactor}}}"))
    monkeypatch.setattr(disk, "free_bytes", lambda path: 5_000_000)
    assert look_ahead(alone, tmp_path / "run") == look_ahead(both, None) == []
    [line] = look_ahead(both, tmp_path / "run")
    assert line.startswith(f"stage one, two: {tmp_path / 'run'}: room for 6 checkpoints is needed")
    for number in range(2):
        (tmp_path / "run" / "stages" / "one" / "checkpoints" / f"step-00000{number}").mkdir(parents=True)
    assert look_ahead(both, tmp_path / "run") == [], "what is there already needs no room"
    with pytest.raises(RecipeError, match="room for 6 checkpoints"):
        verbs.run(with_stages(recipe, "{one: {}, two: {}}"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def with_stages(recipe: Path, text: str) -> Path:
    path = recipe.with_name("stages.yaml")
    path.write_text(f"{recipe.read_text()}stages: {text}\n")
    return path


STARTS = """{
  first: {},
  second: {
    start_from: first,
    model: {base: "toy:qwen2", dtype: bfloat16, modules_to_save: [lm_head], added_tokens: [<x>], quantization: int8,
      lora: {r: 8, alpha: 8, dropout: 0.5, use_rslora: true, use_dora: true, target_modules: all-linear}}},
  third: {start_from: first, model: {tuning: full, lora: {r: 8}}},
}"""


def test_a_stage_that_cannot_start_from_another_is_told_key_by_key(recipe):
    with pytest.raises(RecipeError) as caught:
        load_recipe(with_stages(recipe, STARTS))
    lines = caught.value.problems
    keys = [line.partition(":")[0].removeprefix("stages.second.model.") for line in lines]
    lora = ["lora.r", "lora.alpha", "lora.use_rslora", "lora.use_dora", "lora.target_modules"]
    same = ["base", "quantization", *lora, "modules_to_save", "added_tokens"]
    assert keys == [*same, "stages.third.model.tuning"]
    assert "8, and 16 in stage first, whose adapter this stage starts from" in lines[2]
    assert "lora.r: 8" in lines[2]


def foreign(kind: str) -> Any:
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 2}
    if kind == "mamba":
        return transformers.MambaForCausalLM(transformers.MambaConfig(vocab_size=700, state_size=4, **small))
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 32}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    return transformers.GptOssForCausalLM(transformers.GptOssConfig(vocab_size=700, **small, **heads, **experts))


@pytest.mark.parametrize(
    ("kind", "sets", "said"),
    [
        ("gpt_oss", {}, "gpt_oss has an attention of its own: packed rows would read one another"),
        ("gpt_oss", {"train": {"packing": False}}, None),
        ("mamba", {}, "PEFT refuses"),
        (
            "mamba",
            {"model": {"lora": {"target_modules": ".*in_proj"}}},
            "mamba has layers that carry state across rows",
        ),
    ],
)
def test_a_second_stage_that_cannot_pack_or_be_adapted_is_told_before_the_first_is_trained(
    recipe, tmp_path, kind, sets, said
):
    from luthier.models.chat import load_tokenizer

    base = tmp_path / kind
    foreign(kind).save_pretrained(base)
    load_tokenizer("toy:llama", "").save_pretrained(base)
    model = {"base": str(base), "lora": {"target_modules": "all-linear"}, **sets.get("model", {})}
    lines = look_ahead(stages(with_stages(recipe, json.dumps({"first": {}, "second": {**sets, "model": model}}))))
    if said is None:
        assert lines == []
    else:
        [line] = lines
        assert line.startswith("stage second: ")
        assert said in line
        assert "mend:" in line


def test_what_does_not_fit_into_memory_is_told_of_every_stage(recipe, tmp_path, monkeypatch):
    from luthier.data.building.build import build
    from luthier.stages.sources import table_request

    found = stages(with_stages(recipe, "{first: {}, second: {model: {tuning: full}}}"))
    build(table_request(found), tmp_path / "table")
    assert look_at_rows(found, tmp_path / "table") == []
    monkeypatch.setattr("luthier.runtime.memory_estimate.free_memory", lambda device: 0)
    lines = look_at_rows(found, tmp_path / "table")
    assert len(lines) == 2
    for line, name in zip(lines, found, strict=True):
        assert line.startswith(f"stage {name}: memory: ")
        assert "mend: set " in line


def test_a_refused_recipe_leaves_nothing_that_stands_in_the_way_of_the_mended_one(recipe, tmp_path):
    from luthier import verbs

    run = tmp_path / "run"
    for wrong in ("model.lora.target_modules=nothing_like_this", "data.test=[absent]", "train.validate_every=1"):
        sets = [wrong, "data.validation_fraction=0.001", "evaluate.samples=0"]
        with pytest.raises(RecipeError) as caught:
            verbs.run(recipe, run, sets)
        assert str(caught.value).startswith(f"{recipe}: 1 problem")
        assert not run.exists() or not list(run.iterdir())
    verbs.run(recipe, run, ["evaluate.samples=0", "evaluate.resamples=20"])
    assert (run / "report.html").is_file()


def test_a_refused_resume_keeps_what_is_there(recipe, tmp_path, monkeypatch):
    from luthier import verbs

    monkeypatch.setattr("luthier.stages.run.run_stage", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        verbs.run(recipe, tmp_path / "run")
    monkeypatch.setattr("luthier.runtime.memory_estimate.free_memory", lambda device: 0)
    with pytest.raises(RecipeError, match="memory"):
        verbs.run(recipe, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "data" / "manifest.json").is_file()


def test_resume_of_what_is_no_run_is_refused(recipe, tmp_path):
    from luthier import verbs

    with pytest.raises(RequestError, match="not a run") as caught:
        verbs.run(recipe, tmp_path / "run", resume=True)
    assert "leave out --resume" in caught.value.mend
    assert not (tmp_path / "run").exists()


def test_a_stop_before_there_is_a_run_gives_the_line_that_begins_it(recipe, tmp_path, monkeypatch):
    from luthier import verbs

    def stop(*_words: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("luthier.stages.preflight.look_ahead", stop)
    with pytest.raises(Interrupted) as caught:
        verbs.run(recipe, tmp_path / "run")
    assert "--resume" not in caught.value.mend
    assert not (tmp_path / "run").exists()


UNREAD = {
    "model.builtin_adapter": "speech-lora",
    "model.learned_tokens.readout": "<r>",
    "model.learned_tokens.soft_prompt": "5",
    "model.learned_tokens.learning_rate": "0.1",
    "learned_tokens": "new",
    "task.instruction": "Say.",
    "task.answers.pass": "yes",
    "task.scale.pass_mark": "3",
    "task.event": "panel",
    "task.target.method": "hard",
    "task.readout": "head",
    "task.mass_weight": "1",
    "task.ranking_weight": "1",
    "evaluate.deafness_test": "false",
}


def test_keys_that_a_chat_would_not_read_are_told_at_once(recipe):
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, [f"{key}={value}" for key, value in UNREAD.items()])
    told = [line.partition(":")[0] for line in caught.value.problems]
    assert sorted(told) == sorted({key.replace("answers.pass", "answers") for key in UNREAD})
    assert all("means nothing for task.kind: chat" in line for line in caught.value.problems)
    rate = ["model.learned_tokens.learning_rate=0.1", "model.added_tokens=[<x>]"]
    assert load_recipe(recipe, rate).model.learned_tokens.learning_rate == 0.1  # the rate of their rows


def test_keys_that_a_verdict_would_not_read_are_told_at_once():
    unread = {
        "model.quantization": "nf4",
        "model.added_tokens": "[<x>]",
        "train.micro_batch_tokens": "100",
        "train.truncation": "whole_turns",
        "train.label_smoothing": "0.1",
        "train.torch_compile": "true",
        "evaluate.validation_rows": "1",
        "evaluate.samples": "1",
        "evaluate.sample_tokens": "1",
    }
    shipped = ROOT / "recipes" / "speaking.yaml"
    with pytest.raises(RecipeError) as caught:
        load_recipe(shipped, [f"{key}={value}" for key, value in unread.items()])
    assert {line.partition(":")[0] for line in caught.value.problems} >= set(unread)
    read = ["model.modules_to_save=[lm_head]", "model.lora.use_dora=true", "model.lora.use_rslora=true"]
    assert load_recipe(shipped, read)


def test_half_an_encoding_of_a_killed_process_is_removed(tmp_path):
    run = RunDir.create(tmp_path / "run")
    left = run.tokens / ".tmp-train-1"
    left.mkdir(parents=True)
    with run.lock():
        assert not left.exists()
