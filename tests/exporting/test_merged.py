"""Merged models: as the adapter on its base to the last digits of the number format, and refused where they are not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from luthier import verbs
from luthier.errors import LuthierError, RequestError
from luthier.exporting import merged
from luthier.exporting.export import export
from luthier.exporting.gguf_check import sample_texts
from luthier.exporting.kinds import ExportRequest
from luthier.files import verify_folder
from support.chatrun import chat_run
from support.children import environment

MANY = [f"<|new{number}|>" for number in range(200)]
FAST = ["train.max_steps=5", "train.learning_rate=0.03"]
KINDS = {
    "learned tokens": 'model.added_tokens=["<|a|>", "<|b|>"]',
    "a grown vocabulary": f"model.added_tokens={MANY}",
    "every weight": "model.tuning=full",
    "DoRA": "model.lora.use_dora=true",
    "a whole head": 'model.modules_to_save=["lm_head"]',
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_run(tmp_path_factory.mktemp("chat"))


def merge(run: Path, out: Path, **more) -> dict:
    return export(ExportRequest(run, "merged", out=out, **more))["receipt"]["forms"]["merged"]


def test_the_merged_toy_answers_as_the_trainer_does(run, tmp_path):
    form = merge(run, tmp_path / "out")
    assert (form["prompts_that_differ"], form["tokens_that_differ"]) == (0, 0)
    assert form["max_logit_gap"] < 1e-5
    assert form["tokenizer"] == {"loads_as": "TokenizersBackend", "texts": 300, "read_otherwise": 0}
    assert form["merge"] == {"gap": form["merge"]["gap"], "limit": 1e-4, "dtype": "float32"}
    assert verify_folder(tmp_path / "out") is None
    assert len({item.stat().st_mode for item in (tmp_path / "out").iterdir()}) == 1  # weights for all who may read
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert len(ends) == 2  # the end of a text, and that of a turn


def test_a_tokenizer_that_transformers_loads_as_another_one_is_told(tmp_path):
    """Of a qwen2 it makes Qwen2Tokenizer, whatever the folder's files say, and so it would with ours."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    run, out = chat_run(tmp_path / "chat", "toy:qwen2"), tmp_path / "out"
    found = export(ExportRequest(run, "merged", out=out))
    words = found["receipt"]["forms"]["merged"]["tokenizer"]
    assert words["loads_as"] == "Qwen2Tokenizer"
    assert words["read_otherwise"] > 10
    assert any("loads this tokenizer as Qwen2Tokenizer" in note for note in found["notes"])
    assert "otherwise than in training" in (out / "README.md").read_text()
    texts = sample_texts(300, [])
    trained = AutoTokenizer.from_pretrained(run / "stages" / "main" / "adapter")(texts)["input_ids"]
    assert AutoTokenizer.from_pretrained(out)(texts)["input_ids"] != trained
    assert PreTrainedTokenizerFast.from_pretrained(out)(texts)["input_ids"] == trained


def test_an_adapter_on_nothing_else_would_be_seen(run, tmp_path, monkeypatch):
    """Control: a merge that loses the adapter is refused, and leaves no folder."""
    from peft import PeftModel

    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self: self.unload(), raising=False)
    with pytest.raises(LuthierError, match="what rounding explains") as refusal:
        merge(run, tmp_path / "out")
    assert "--allow-gap" in refusal.value.mend
    assert not (tmp_path / "out").exists()
    assert merge(run, tmp_path / "out", allow_gap=100.0)["merge"]["gap"] > 1e-3


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_that_looks_whole_and_the_next_one_tidies_up(run, tmp_path):
    """Killed while the merged weights are read back, the moment at which most lies on the disk."""
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom luthier.exporting import merged\n"
        "from luthier.exporting.export import export\nfrom luthier.exporting.kinds import ExportRequest\n"
        "merged.read_merged = lambda *given: os.kill(os.getpid(), signal.SIGKILL)\n"
        "export(ExportRequest(Path(sys.argv[1]), sys.argv[2], out=Path(sys.argv[3])))"
    )
    out = tmp_path / "out"
    words = [sys.executable, "-c", script, str(run), "gguf", str(out)]
    scratch = str(run.parent)
    done = subprocess.run(words, env=environment(TMPDIR=scratch), capture_output=True, text=True, timeout=100)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = list(tmp_path.iterdir())
    assert len(left) == 2  # what is filled, and the weights beside it
    assert all(item.name.startswith(".tmp-out-") for item in left)
    assert not list(tmp_path.rglob("MANIFEST.json"))
    for item in left[:-1]:
        os.utime(item, (1, 1))
    merge(run, out)
    assert set(tmp_path.iterdir()) == {out, left[-1]}  # a young one may be somebody's work


def test_sixteen_bits_are_held_against_their_own_limit(run, tmp_path, monkeypatch):
    form = merge(run, tmp_path / "out", dtype="bfloat16")
    assert 1e-4 < form["merge"]["gap"] < merged.LIMITS["bfloat16"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(LuthierError, match="what rounding explains"):
        merge(run, tmp_path / "other", dtype="bfloat16", allow_gap=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_else_was_trained_is_merged_too(run, tmp_path, kind):
    verbs.run(run.parent / "recipe.yaml", tmp_path / "run", [KINDS[kind], *FAST])
    form = merge(tmp_path / "run", tmp_path / "out")
    assert form["prompts_that_differ"] == 0
    assert form["max_logit_gap"] < 1e-5


@pytest.mark.slow
def test_a_base_that_was_quantised_is_merged_whole_and_the_receipt_shows_what_that_costs(run, tmp_path, capsys):
    pytest.importorskip("bitsandbytes")
    verbs.run(run.parent / "recipe.yaml", tmp_path / "run", ["model.quantization=nf4", *FAST])
    form = merge(tmp_path / "run", tmp_path / "out")
    assert form["merge"]["gap"] < 1e-4 < form["max_logit_gap"]
    assert "loaded whole" in capsys.readouterr().err


def test_a_model_that_judges_by_tokens_is_merged_with_its_learned_tokens(finished, tmp_path):
    """Read back as a base of its own, without PEFT."""
    form = merge(finished, tmp_path / "out", stage="1764")
    assert form["max_p_gap"] < 1e-5
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_models_that_cannot_be_one_with_their_base_are_refused_with_the_reason(small, finished, tmp_path):
    verbs.run(small, tmp_path / "run", ["task.readout=ordinal", "train.max_steps=1"])
    with pytest.raises(RequestError, match="ordinal read-out is a head outside the model"):
        export(ExportRequest(tmp_path / "run", "merged", out=tmp_path / "out"))
    for kind in ("gguf", "ollama"):
        with pytest.raises(RequestError, match=r"llama\.cpp has no read-out of verdicts"):
            export(ExportRequest(finished, kind, out=tmp_path / "out"))
