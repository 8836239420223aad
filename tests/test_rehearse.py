"""A rehearsal: the recipe's own work at toy size, with whatever the machine or the network lacks stood in for."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier import rehearse
from luthier.data.exams import read_exam, write_standin_exam
from luthier.errors import DataError
from luthier.files import read_json, read_jsonl, write_jsonl
from luthier.recipe import Recipe
from luthier.recipefile import load_recipe, stage_recipes
from luthier.rehearse import rehearsal, twin
from support.children import ROOT, Luthier


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rehearse, "_unreachable", lambda source, *more: "" if Path(source.path or "-").is_file() else "not here"
    )


def rehearsed(name: str, folder: Path, *overrides: str) -> dict[str, Recipe]:
    """The stages of the recipe that a rehearsal runs."""
    tree = rehearsal(load_recipe(ROOT / "recipes" / f"{name}.yaml", overrides), folder / "standins")
    (folder / "rehearsal.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return stage_recipes(load_recipe(folder / "rehearsal.yaml"))


@pytest.mark.parametrize(
    ("base", "toy"),
    [
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", "toy:llama"),
        ("Qwen/Qwen2.5-7B-Instruct", "toy:qwen2"),
        ("unsloth/Qwen2-1.5B-bnb-4bit", "toy:qwen2"),
        ("Qwen/Qwen3-8B", "toy:qwen3"),
        ("google/gemma-2-9b-it", "toy:gemma2"),
        ("google/gemma-3-1b-it", "toy:gemma3"),
        ("google/gemma-3-270m", "toy:gemma3"),
        ("google/gemma-3-4b-it", "toy:gemma3-vision"),
        ("unsloth/gemma-3-27b-it-bnb-4bit", "toy:gemma3-vision"),
        ("Qwen/Qwen2-VL-2B-Instruct", "toy:qwen2-vl"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "toy:qwen2.5-vl"),
        ("Qwen/Qwen3-VL-4B-Instruct", "toy:qwen3-vl"),
        ("HuggingFaceTB/SmolVLM2-2.2B-Instruct", "toy:smolvlm"),
        ("HuggingFaceM4/Idefics3-8B-Llama3", "toy:idefics3"),
        ("llava-hf/llava-onevision-qwen2-7b-ov-hf", "toy:llava-onevision"),
        ("microsoft/Phi-3-vision-128k-instruct", "toy:phi3-vision"),
        ("microsoft/Phi-3.5-vision-instruct", "toy:phi3-vision"),
        ("microsoft/Phi-4-multimodal-instruct", "toy:phi4-multimodal"),
        ("microsoft/Phi-3-mini-4k-instruct", "toy:phi3"),
        ("microsoft/phi-4", "toy:phi3"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "toy:mistral"),
        ("toy:phi3", "toy:phi3"),
        ("01-ai/Yi-1.5-6B-Chat", ""),
        ("llama-fans/some-other-model", ""),
    ],
)
def test_a_bases_name_tells_its_twin(base: str, toy: str) -> None:
    assert twin(base) == toy


def test_every_twin_is_a_toy_that_there_is() -> None:
    from luthier.models.toys import TOYS

    assert {toy for _, toy in rehearse.TWINS} <= set(TOYS)


@pytest.mark.parametrize(
    ("kind", "toy"),
    [
        ("gemma3_text", "toy:gemma3"),
        ("gemma3", "toy:gemma3-vision"),
        ("qwen2", "toy:qwen2"),
        ("qwen2_5_vl", "toy:qwen2.5-vl"),
        ("phi3", "toy:phi3"),
        ("phi3_v", "toy:phi3-vision"),
        ("phi4_multimodal", "toy:phi4-multimodal"),
        ("llava_onevision", "toy:llava-onevision"),
    ],
)
def test_a_folder_tells_its_family_itself(tmp_path: Path, kind: str, toy: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    assert twin(str(tmp_path)) == toy


def test_an_unknown_family_is_rehearsed_on_llama_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rehearsed("assistant", tmp_path, "model.base=01-ai/Yi-1.5-6B-Chat")["main"].model.base == "toy:llama"
    assert "toy:llama stands in for 01-ai/Yi-1.5-6B-Chat" in capsys.readouterr().err


def test_what_is_rehearsed_stays_and_what_costs_is_cut(tmp_path: Path) -> None:
    before = stage_recipes(load_recipe(ROOT / "recipes" / "assistant.yaml"))["main"]
    after = rehearsed("assistant", tmp_path)["main"]
    assert (after.data.train, after.data.steps, after.data.mix) == (
        before.data.train,
        before.data.steps,
        before.data.mix,
    )
    assert after.data.duplicates == before.data.duplicates
    assert (after.model.lora, after.model.max_tokens) == (before.model.lora, before.model.max_tokens)
    kept = "batch_size micro_batch_size schedule optimizer weight_decay packing gradient_checkpointing save_every"
    assert all(getattr(after.train, name) == getattr(before.train, name) for name in kept.split())
    assert after.train.save_every * 2 < after.train.max_steps <= 24
    assert {source.limit for source in after.data.sources.values()} == {64}


def test_a_published_4_bit_base_is_rehearsed_in_4_bits_where_bitsandbytes_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rehearse, "_has_bitsandbytes", lambda: True)
    stages = rehearsed("voice", tmp_path)
    assert list(stages) == ["1b", "3b"]
    for stage in stages.values():
        assert (stage.model.base, stage.model.quantization, stage.model.dtype) == ("toy:llama", "nf4", "float32")
        assert stage.train.optimizer == "adamw_8bit"
    assert capsys.readouterr().err.count("model.dtype: float32") == 1


@pytest.mark.parametrize(
    ("asked", "found"),
    [("adamw_8bit", "adamw"), ("paged_adamw_8bit", "adamw"), ("paged_adamw", "adamw"), ("lion", "lion")],
)
def test_without_bitsandbytes_nothing_of_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: str, found: str
) -> None:
    monkeypatch.setattr(rehearse, "_has_bitsandbytes", lambda: False)
    stage = rehearsed("voice", tmp_path, f"train.optimizer={asked}")["3b"]
    assert (stage.model.quantization, stage.train.optimizer) == ("", found)
    said = capsys.readouterr().err
    assert "nf4 is left out" in said
    assert (f"{found} in place of {asked}" in said) == (asked != found)


def test_a_stage_that_names_its_own_base_has_its_own_twin(tmp_path: Path) -> None:
    recipe = tmp_path / "two.yaml"
    recipe.write_text(
        "model: {base: meta-llama/Llama-3.2-1B}\ndata: {sources: {a: {hub: a/b}}, train: [a]}\ntask: {kind: chat}\n"
        "stages: {one: {}, two: {model: {base: Qwen/Qwen3-8B, revision: abc}, train: {max_steps: 5, save_every: 2}}}\n"
    )
    tree = rehearsal(load_recipe(recipe), tmp_path / "standins")
    recipe.write_text(yaml.safe_dump(tree))
    stages = stage_recipes(load_recipe(recipe))
    assert {name: stage.model.base for name, stage in stages.items()} == {"one": "toy:llama", "two": "toy:qwen3"}
    assert stages["two"].model.revision == ""
    assert (stages["two"].train.max_steps, stages["two"].train.save_every) == (5, 2)


def test_a_source_that_can_be_read_is_read_and_the_others_are_stood_in_for(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"messages": []}\n')
    found = rehearsed(
        "assistant",
        tmp_path,
        f"data.sources.finetome.path={mine}",
        "data.sources.finetome.limit=7",
        "data.sources.ultrachat.streaming=true",
    )["main"].data.sources
    assert (found["finetome"].path, found["finetome"].limit) == (str(mine), 7)
    assert found["ultrachat"].path == str(tmp_path / "standins" / "ultrachat.jsonl")
    assert not found["ultrachat"].streaming
    texts = [path.read_bytes() for path in sorted((tmp_path / "standins").iterdir())]
    assert len(texts) == 2
    assert texts[0] != texts[1]


def test_an_exam_that_is_not_there_is_made_up_and_one_that_is_keeps_its_count_of_answers(tmp_path: Path) -> None:
    write_standin_exam(tmp_path / "mine.jsonl", "winogrande", 200, 1)
    rows = sorted(read_jsonl(tmp_path / "mine.jsonl"), key=lambda row: row["answer"])
    write_jsonl(tmp_path / "mine.jsonl", rows)  # the first 64 are all "1", from which alone no count could be told
    stage = rehearsed("expert", tmp_path, f"data.sources.binary_choices_synthetic.path={tmp_path / 'mine.jsonl'}")[
        "main"
    ]
    assert read_exam(stage.data.sources["binary_choices_v2"], "v2").shape == "options"
    assert stage.data.sources["binary_choices_synthetic"].limit == 64
    assert stage.evaluate.exams["binary_choices_synthetic"].answers == "1"
    assert (stage.train.select, stage.evaluate.choose_by) == ("exam", "binary_choices_synthetic")
    assert stage.train.keep_checkpoints == 0


def test_passages_are_cut_to_what_a_toy_can_hold(tmp_path: Path) -> None:
    stage = rehearsed("expert", tmp_path)["main"]
    assert stage.data.sources["corpus"].passage_words == stage.model.max_tokens // 8
    whole = rehearsed("expert", tmp_path / "whole", "data.sources.corpus.passage_words=0")["main"]
    assert whole.data.sources["corpus"].passage_words == 0


def test_an_exam_that_is_there_and_wrong_is_not_hidden_by_a_made_up_one(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"question": "Who?", "options": ["a", "a"], "answer": 0}\n')
    with pytest.raises(DataError, match=r"equal_options|unusable"):
        rehearsed("expert", tmp_path, f"data.sources.binary_choices_v2.path={tmp_path / 'bad.jsonl'}")


def test_the_expert_recipe_is_rehearsed_offline_and_examines_every_checkpoint(luthier: Luthier, tmp_path: Path) -> None:
    done = luthier("rehearse", ROOT / "recipes" / "expert.yaml", "--out", tmp_path / "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("made-up questions stand in for it") == 2
    stage = tmp_path / "out" / "run" / "stages" / "main"
    for exam in ("binary_choices_v2", "binary_choices_synthetic"):
        table = read_json(stage / "exams" / exam / "table.json")
        names = [one["name"] for one in table["candidates"]]
        assert names == ["base", "step-000010", "step-000020", "step-000024"]
        assert table["n"] == 64
    assert (stage / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", ["assistant", pytest.param("voice", marks=pytest.mark.slow)])
def test_a_shipped_chat_recipe_is_rehearsed_offline_and_learns(luthier: Luthier, tmp_path: Path, name: str) -> None:
    done = luthier("rehearse", ROOT / "recipes" / f"{name}.yaml", "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("made-up chats stand in for it") == {"voice": 1, "assistant": 3}[name]
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    run = tmp_path / "out" / "run"
    assert read_json(run / "run.json")["status"] == "finished"
    for stage in figures["stages"]:
        folder = run / "stages" / stage
        losses = [line["loss"] for line in read_jsonl(folder / "metrics.jsonl")]
        assert len(losses) == 24
        assert losses[-1] < losses[0] - 1
        assert len(list((folder / "checkpoints").glob("step-*"))) >= 2
        assert (folder / "adapter" / "adapter_model.safetensors").is_file()
