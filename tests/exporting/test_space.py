"""The Space: what its folder holds, that its engines answer as the run does, and that it runs from its own
requirements. PIP_CONSTRAINT, which pip itself reads, may pin what its venv gets."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from luthier import verbs
from luthier.data.table import read_table
from luthier.errors import RequestError
from luthier.exporting.export import export
from luthier.exporting.kinds import ExportRequest
from luthier.exporting.space import TEMPLATES
from luthier.exporting.spacefiles import requirements
from luthier.files import read_jsonl, verify_folder
from support.chatrun import chat_run
from support.spaces import in_space, started

QUESTION = "one two three 4"
ASK = """
import json, sys
from engine import Engine
engine = Engine()
turns = [{"role": "user", "content": sys.argv[1]}]
print(json.dumps({name: [*engine.answer(name, turns, 0.0)][-1] for name in engine.models}))
"""
JUDGE = """
import json, sys
from engine import Engine
from sound import read_sound
engine = Engine()
print(json.dumps([engine.judge(*row[:1], read_sound(row[1], 60), row[2]) for row in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_run(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def chat_space(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The final adapter and a checkpoint of it."""
    out = tmp_path_factory.mktemp("space") / "chat"
    title = "<b>Iris</b> | a\ntitle"
    export(ExportRequest(run, "space", out=out, beside=(f"{run}:main@step-000005",), title=title))
    return out


@pytest.fixture(scope="module")
def verdict_space(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages of one base."""
    out = tmp_path_factory.mktemp("space") / "verdict"
    export(ExportRequest(finished, "space", stage="1964", out=out, beside=(f"{finished}:1764",)))
    return out


def recorded(run: Path, stage: str, folder: Path, count: int = 4) -> list[tuple[str, str, str, float]]:
    """(model, file, question, p_pass) of held-out recordings of a stage."""
    table = read_table(run / "data")
    rows = {item.row.id: item.row for item in table.rows}
    found = []
    for item in read_jsonl(run / "stages" / stage / "predictions.jsonl")[:count]:
        row = rows[item["id"]]
        file = folder / f"{stage}-{item['id']}.wav"
        file.write_bytes(table.media_bytes(row.media[0]))
        found.append((f"{run.name}/{stage}", str(file), row.text, item["p_pass"]))
    return found


def front_matter(folder: Path) -> dict[str, Any]:
    _, head, _ = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head)


def test_the_folder_says_what_a_host_must_know(chat_space):
    head = front_matter(chat_space)
    assert (head["sdk"], head["python_version"], head["app_file"]) == ("gradio", "3.12", "app.py")
    assert head["title"] == "<b>Iris</b> | a\ntitle"
    assert len(head["short_description"]) <= 60
    assert "models" not in head  # the base is a toy, which no hub has
    assert verify_folder(chat_space) is None
    assert (chat_space / "base" / "model.safetensors").is_file()
    settings = json.loads((chat_space / "space.json").read_text())
    assert [model["name"] for model in settings["models"]] == ["run/main", "run/main@step-000005"]
    assert "\\<b\\>Iris" in settings["heading"]
    for name, template in (("app.py", "chat_app.py"), ("engine.py", "chat_torch.py"), ("sound.py", "sound.py")):
        assert (chat_space / name).read_bytes() == (TEMPLATES / template).read_bytes()


def test_the_code_of_spaces_needs_no_luthier_and_keeps_its_limits():
    for file in TEMPLATES.glob("*.py"):
        text = file.read_text()
        compile(text, str(file), "exec")
        assert "luthier" not in text
        assert "trust_remote_code=True" not in text
    for name in ("chat_app.py", "verdict_app.py"):
        text = (TEMPLATES / name).read_text()
        for limit in ("max_size=16", "default_concurrency_limit=1", 'max_file_size="10mb"', "allowed_paths=[]"):
            assert limit in text
        assert "show_error=False" in text
        assert "delete_cache=(3600, 3600)" in text


def test_requirements_have_the_floors_of_known_advisories():
    for kind in ("chat", "gguf", "verdict"):
        lines = requirements(kind, zero_gpu=False).splitlines()
        assert "gradio>=6.25,<7" in lines
        assert ("llama-cpp-python" in "\n".join(lines)) == (kind == "gguf")
        assert any(line.startswith("torch") for line in lines) == (kind != "gguf")
    lent = requirements("chat", zero_gpu=True)
    assert "torch>=2.10,<2.12" in lent
    assert "spaces>=" in lent


def test_its_engine_answers_as_the_run_does_with_every_adapter(chat_space, run):
    """One base in memory: the answers of the adapters, and of the base alone, are those of the run's own code."""
    found = in_space(chat_space, ASK, QUESTION)
    (own,) = verbs.predict(run, [], QUESTION)
    assert found["run/main"] == own["answer"]
    assert len(set(found)) == 3
    assert found["base, not tuned"] != own["answer"]


def test_its_judge_gives_the_recorded_probabilities_with_every_adapter(verdict_space, finished, tmp_path):
    rows = [row for stage in ("1964", "1764") for row in recorded(finished, stage, tmp_path)]
    found = in_space(verdict_space, JUDGE, json.dumps(rows))
    assert [one["p_pass"] for one in found] == pytest.approx([row[3] for row in rows], abs=1e-4)
    zone = json.loads((verdict_space / "space.json").read_text())["models"][0]["zone"]
    assert 0 <= zone["low"] <= zone["high"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("readout", ["head", "ordinal"])
def test_its_judge_reads_heads_as_the_run_does(small, tmp_path, readout):
    sets = [f"task.readout={readout}", "model.tuning=lora", "train.learning_rate=0.01"]
    verbs.run(small, tmp_path / "run", sets)
    export(ExportRequest(tmp_path / "run", "space", out=tmp_path / "space"))
    rows = recorded(tmp_path / "run", "1964", tmp_path)
    found = in_space(tmp_path / "space", JUDGE, json.dumps(rows))
    assert [one["p_pass"] for one in found] == pytest.approx([row[3] for row in rows], abs=1e-4)


@pytest.mark.slow
def test_its_gguf_engine_answers_as_llama_cpp_does(run, tmp_path):
    pytest.importorskip("llama_cpp")
    from luthier.engines.llamacpp import gguf_answers
    from luthier.models.chat import load_tokenizer

    export(ExportRequest(run, "space", out=tmp_path / "space", type="q8_0"))
    settings = json.loads((tmp_path / "space" / "space.json").read_text())
    (model,) = settings["models"]
    folder = tmp_path / "space" / model["source"]
    assert not (folder / "adapter_model.safetensors").exists()
    tokenizer = load_tokenizer(str(folder))
    turns = [{"role": "user", "content": QUESTION}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    (wanted,) = gguf_answers(folder / model["file"], [ids], 24)
    found = in_space(tmp_path / "space", ASK, QUESTION)[model["name"]]
    kept = [token for token in wanted if token not in settings["stop_ids"]]
    assert found.startswith(tokenizer.decode(kept, skip_special_tokens=True)[:20])


def load_sound() -> Any:
    spec = importlib.util.spec_from_file_location("space_sound", TEMPLATES / "sound.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_wav(path: Path, seconds: float, rate: int = 16_000, channels: int = 1) -> Path:
    count = int(seconds * rate)
    tone = (np.sin(np.arange(count) * 440 * 2 * np.pi / rate) * 8000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(np.repeat(tone[:, None], channels, axis=1).tobytes())
    return path


def test_recordings_of_any_rate_become_16_khz_mono(tmp_path):
    sound = load_sound()
    for rate, channels in ((16_000, 1), (44_100, 2), (8_000, 1)):
        found = sound.read_sound(str(write_wav(tmp_path / "tone.wav", 2.0, rate, channels)), 60.0)
        assert found.dtype == np.float32
        assert len(found) == pytest.approx(32_000, abs=2)
        peak = np.abs(np.fft.rfft(found)).argmax() / 2.0
        assert peak == pytest.approx(440, abs=1)


def hostile(folder: Path, kind: str) -> Path:
    """Files that visitors have no business to send."""
    path = folder / "file"
    if kind == "too long":
        return write_wav(path, 61.0)
    if kind == "too short":
        return write_wav(path, 0.01)
    if kind == "silent":
        return _silence(path)
    texts = {"empty": b"", "a page": b"<html>" * 100, "a playlist": b"#EXTM3U\nhttp://127.0.0.1/x\n"}
    path.write_bytes(texts.get(kind, b"\0" * (11 * 2**20)))
    return path


def _silence(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(64_000))
    return path


@pytest.mark.parametrize(
    "kind",
    ["too long", "too short", "silent", "empty", "a page", "a playlist", "eleven megabytes"],
)
def test_what_is_no_short_recording_is_refused_with_a_sentence(tmp_path, kind):
    sound = load_sound()
    path = hostile(tmp_path, kind)
    with pytest.raises(sound.Refused, match=r"\.$"):
        sound.read_sound(str(path), 60.0)


def test_a_header_that_claims_three_hours_costs_no_more_than_its_bytes(tmp_path):
    whole = bytearray(write_wav(tmp_path / "file", 1.0).read_bytes())
    whole[40:44] = (3 * 3600 * 32_000).to_bytes(4, "little")
    (tmp_path / "file").write_bytes(whole)
    assert len(load_sound().read_sound(str(tmp_path / "file"), 60.0)) == 16_000


@pytest.mark.parametrize(
    ("beside", "sets", "words"),
    [
        ("same", {}, "is given twice"),
        ("verdict", {}, "one model writes and the other judges"),
        ("changed", {"base": "toy:qwen2"}, "one Space has one base"),
        ("changed", {"added_tokens": ["<|x|>"]}, "one Space has one base"),
        ("whole", {}, "for one adapter alone"),
    ],
)
def test_models_that_cannot_share_a_space_are_refused(run, finished, tmp_path, beside, sets, words):
    from luthier.exporting import space
    from luthier.exporting.kinds import open_subject

    one, other = open_subject(run), open_subject(run, checkpoint="step-000005")
    if beside == "verdict":
        other = open_subject(finished)
    if beside == "same":
        other = open_subject(run)
    if beside == "whole":
        one.recipe.model.modules_to_save = ["lm_head"]
    for key, value in sets.items():
        setattr(other.recipe.model, key, value)
    with pytest.raises(RequestError, match=words):
        space._refuse_strangers([one, other])


def test_models_on_the_hub_are_named_and_not_copied(run, tmp_path):
    request = ExportRequest(
        run, "space", out=tmp_path / "space", base_name="org/base", from_hub=("me/tuned",), zero_gpu=True
    )
    export(request)
    head = front_matter(tmp_path / "space")
    assert head["models"] == ["org/base", "me/tuned"]
    assert head["preload_from_hub"][:2] == ["me/tuned", "org/base"]
    assert head["suggested_hardware"] == "zero-a10g"
    assert not (tmp_path / "space" / "base").exists()
    assert not (tmp_path / "space" / "models").exists()


@pytest.mark.slow
def test_a_space_starts_from_its_own_requirements_and_answers(chat_space, verdict_space, run, finished, tmp_path):
    """A fresh venv that has what requirements.txt names and nothing else."""
    pytest.importorskip("gradio_client")
    from gradio_client import handle_file

    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
    words = [str(python), "-m", "pip", "install", "-q", "-r", str(chat_space / "requirements.txt")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1500)
    if done.returncode:
        pytest.skip(f"pip cannot install it here: {done.stderr[-200:]}")
    (own,) = verbs.predict(run, [], QUESTION)
    with started(chat_space, python) as client:
        assert list(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == ["/ask"]
        assert client.predict(QUESTION, "run/main", 0.0, api_name="/ask") == own["answer"]
        with pytest.raises(Exception, match="Write or record a question first"):
            client.predict(" ", "run/main", 0.0, api_name="/ask")
    model, file, question, p_pass = recorded(finished, "1964", tmp_path, 1)[0]
    with started(verdict_space, python) as client:
        shown, figures = client.predict(handle_file(file), question, model, api_name="/judge")
        assert figures["p_pass"] == pytest.approx(p_pass, abs=1e-4)
        assert "Probability of a pass" in shown
        (tmp_path / "page.wav").write_bytes(b"<html></html>")
        with pytest.raises(Exception, match="not a recording"):
            client.predict(handle_file(tmp_path / "page.wav"), question, model, api_name="/judge")
