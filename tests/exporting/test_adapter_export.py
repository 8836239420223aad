"""A stage's adapter as a folder of its own: what is in it, what plain PEFT makes of it, what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.errors import CheckpointError, ExistsError, RequestError
from luthier.exporting import space
from luthier.exporting.adapter import fill_adapter
from luthier.exporting.export import export
from luthier.exporting.kinds import ExportRequest, base_name, named_subject, open_subject
from luthier.files import sha256_file, verify_folder
from support.chatrun import chat_run
from support.children import environment


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_run(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "adapter"
    export(ExportRequest(run, "adapter", out=out, receipt=False))
    return out


def test_the_folder_holds_what_peft_and_a_reader_need_and_nothing_of_the_training(exported, run):
    found = {item.name for item in exported.iterdir()}
    assert found == {
        "MANIFEST.json",
        "README.md",
        "adapter_base.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert verify_folder(exported) is None
    original = run / "stages" / "main" / "adapter"
    for name in ("adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert sha256_file(exported / name) == sha256_file(original / name)
    assert json.loads((exported / "adapter_config.json").read_text())["base_model_name_or_path"] == "toy:llama"
    manifest = json.loads((exported / "MANIFEST.json").read_text())
    assert (manifest["kind"], manifest["stage"], manifest["step"]) == ("adapter", "main", None)


def test_plain_peft_reads_it_in_a_process_without_luthier(exported, run, tmp_path):
    """The same logits as the run's own adapter gives, bit for bit, from files alone."""
    from luthier.models.toys import write_toy

    write_toy("toy:llama", tmp_path / "base")
    code = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, ours, theirs = sys.argv[1:]
logits = []
for folder in (ours, theirs):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)("one two three", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits.append(model(input_ids=ids).logits)
        with model.disable_adapter():
            assert not torch.equal(model(input_ids=ids).logits, logits[-1])
assert torch.equal(*logits)
assert not any(name.startswith("luthier") for name in sys.modules)
"""
    words = [sys.executable, "-c", code, str(tmp_path / "base"), str(exported), str(run / "stages/main/adapter")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment())
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_goes_in_place_of_the_final_adapter_with_the_stages_tokenizer(run, tmp_path):
    found = export(ExportRequest(run, "adapter", checkpoint="step-000005", out=tmp_path / "out", receipt=False))
    own = run / "stages" / "main" / "checkpoints" / "step-000005"
    assert sha256_file(tmp_path / "out" / "adapter_model.safetensors") == sha256_file(own / "adapter_model.safetensors")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert not list((tmp_path / "out").glob("optimizer*"))
    assert json.loads((tmp_path / "out" / "MANIFEST.json").read_text())["step"] == 5
    assert found["to"] == "adapter"


@pytest.mark.parametrize("gone", [False, True])
def test_no_place_on_this_machine_is_named_where_the_base_was_a_folder(run, tmp_path, gone):
    subject = open_subject(run)
    subject.recipe.model.base = str(tmp_path / "gone" if gone else tmp_path)
    (tmp_path / "out").mkdir()
    notes = fill_adapter(subject, tmp_path / "out")
    assert any("local folder" in note for note in notes)
    texts = [item.read_text() for item in (tmp_path / "out").glob("*.json")]
    assert not any(str(tmp_path.parent) in text for text in texts)
    assert base_name(subject, "org/base") == ("org/base", "")


def test_a_space_does_not_name_a_base_that_is_no_longer_there(run, tmp_path):
    subject = open_subject(run)
    subject.recipe.model.base = str(tmp_path / "gone")
    with pytest.raises(RequestError, match="no longer there"):
        space._base(ExportRequest(run, "space"), subject, tmp_path, "chat", [])


def test_an_adapter_that_was_changed_is_not_passed_on(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    weights = copy / "stages" / "main" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="is not what was written"):
        export(ExportRequest(copy, "adapter", out=tmp_path / "out", receipt=False))
    assert not (tmp_path / "out").exists()


def test_the_adapter_of_verdicts_says_how_it_is_asked_and_read(finished, tmp_path):
    export(ExportRequest(finished, "adapter", stage="1764", out=tmp_path / "out", receipt=False))
    reading = json.loads((tmp_path / "out" / "reading.json").read_text())
    assert reading["readout_token"] == "<|verdict|>"
    assert reading["soft_prompt"] == ["<|learned_0|>", "<|learned_1|>"]
    stored = json.loads((finished / "stages" / "1764" / "adapter" / "verdict.json").read_text())
    assert json.loads((tmp_path / "out" / "verdict.json").read_text()) == stored


def test_nothing_that_exists_is_overwritten_and_nothing_is_added_to_the_run(run, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(ExistsError):
        export(ExportRequest(run, "adapter", out=tmp_path / "there"))
    with pytest.raises(RequestError, match="lies in the run"):
        export(ExportRequest(run, "adapter", out=run / "exported"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"to": "onnx"}, "no such kind"),
        ({"stage": "second"}, "is not finished"),
        ({"checkpoint": "step-000007"}, "has none of that name"),
        ({"type": "q8_0"}, "adapter has none"),
        ({"what": "adapter"}, "is for --to gguf"),
        ({"zero_gpu": True}, "are for --to space"),
        ({"to": "space", "from_hub": ("a/b", "c/d")}, "2 repositories for 1 models"),
    ],
)
def test_words_that_do_not_go_together_are_refused_before_anything_is_loaded(run, tmp_path, change, words):
    with pytest.raises(RequestError, match=words):
        export(ExportRequest(**{"run": run, "to": "adapter", "out": tmp_path / "out", **change}))


def test_models_beside_are_named_as_run_stage_and_checkpoint(run):
    assert named_subject(str(run)).name == "main"
    found = named_subject(f"{run}:main@step-000005")
    assert (found.name, found.step) == ("main", 5)
    assert found.label == "run-main-step-000005"
