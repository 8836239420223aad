"""What leaves a run whose base sees: whole, with its processors; as a Space that takes pictures; or refused."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from luthier import verbs
from luthier.errors import RequestError
from luthier.exporting.export import export
from luthier.exporting.kinds import ExportRequest, open_subject
from luthier.exporting.sight import eyes_in_space, fill_processors
from luthier.exporting.spacefiles import requirements
from luthier.files import read_json
from luthier.models.senses.base import senses_of
from luthier.models.toys import build_toy, toy_processors
from luthier.outcome.modelcard import model_card
from luthier.recipe_model import ModelConfig
from support.chatrun import chat_run
from support.describerun import card_run
from support.seeing import TOYS
from support.spaces import in_space, started

PROMPT = "What is shown in this image?"
ASK = """
import json, sys
from pathlib import Path
from engine import Engine
from picture import read_picture
engine = Engine()
picture = read_picture(Path(sys.argv[1]).read_bytes())
parts = [{"type": "image", "image": picture}, {"type": "text", "text": sys.argv[2]}]
turns = [{"role": "user", "content": parts}]
print(json.dumps({name: [*engine.answer(name, turns, 0.0)][-1] for name in engine.models}))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return card_run(tmp_path_factory.mktemp("cards"))


@pytest.fixture(scope="module")
def merged(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "model"
    export(ExportRequest(run, "merged", out=out, receipt=False))
    return out


@pytest.fixture(scope="module")
def own(run: Path) -> dict[str, Any]:
    """What the run says of a card."""
    (found,) = verbs.predict(run, [card_of(run)], "")
    return found


def card_of(run: Path) -> Path:
    return min((run.parent / "cards" / "pictures").iterdir())


@pytest.mark.parametrize("toy", TOYS)
def test_a_folder_with_the_processors_of_its_base_spells_and_prepares_media_alike(tmp_path: Path, toy: str) -> None:
    model, tokenizer, _ = build_toy(toy)
    fill_processors(ModelConfig(base=toy), tmp_path)
    here, there = (senses_of(model, tokenizer, name) for name in (toy, str(tmp_path)))
    assert here is not None
    assert there is not None
    assert here.digest() == there.digest()


def test_a_base_in_a_folder_passes_its_processors_on_without_the_names_of_code(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "out").mkdir()
    toy_processors("toy:phi3-vision")[0].save_pretrained(str(tmp_path / "base"))
    settings = tmp_path / "base" / "preprocessor_config.json"
    kept = read_json(settings)
    settings.write_text(json.dumps({**kept, "auto_map": {"AutoProcessor": "processing_phi3_v.Phi3VProcessor"}}))
    fill_processors(ModelConfig(base=str(tmp_path / "base")), tmp_path / "out")
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["preprocessor_config.json"]
    assert read_json(tmp_path / "out" / "preprocessor_config.json") == kept


def test_a_merged_model_is_a_base_again_and_goes_on_where_the_run_ended(run: Path, merged: Path) -> None:
    again = run.parent / "again"
    verbs.run(run.parent / "cards.yaml", again, [f"model.base={merged}"])
    ended, begun = (read_json(one / "stages" / "main" / "scores.json") for one in (run, again))
    assert begun["before.loss"]["value"] == pytest.approx(ended["loss"]["value"], abs=1e-5)
    assert begun["loss"]["value"] != ended["loss"]["value"]


@pytest.mark.parametrize("relation", ["adapter", "finetune"])
def test_the_lines_of_the_card_say_of_a_picture_what_the_run_says(
    run: Path, merged: Path, own: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], relation: str
) -> None:
    place = merged if relation == "finetune" else run / "stages" / "main" / "adapter"
    text = model_card(run / "stages" / "main", str(place), relation)
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code
    assert PROMPT in code[1]
    base = tmp_path / "base"
    from luthier.models.toys import write_toy

    write_toy("toy:qwen3-vl", base)
    changes = {'"BASE"': f'"{base}"', "picture.jpg": str(card_of(run)), "max_new_tokens=200": "max_new_tokens=512"}
    lines = code[1]
    for old, new in changes.items():
        lines = lines.replace(old, new)
    capsys.readouterr()
    exec(lines, {})
    assert capsys.readouterr().out.strip() == own["answer"].strip()


@pytest.mark.parametrize(
    "change", [{"to": "gguf"}, {"to": "ollama"}, {"to": "gguf", "what": "adapter"}, {"to": "space", "type": "q8_0"}]
)
def test_nothing_is_written_for_llama_cpp_which_would_be_blind(
    run: Path, tmp_path: Path, change: dict[str, str]
) -> None:
    with pytest.raises(RequestError, match="would be blind") as refused:
        export(ExportRequest(run, out=tmp_path / "out", **change))
    assert "--to merged" in refused.value.mend
    assert not (tmp_path / "out").exists()


def test_a_space_sees_as_the_run_does(run: Path, own: dict[str, Any], tmp_path: Path) -> None:
    export(ExportRequest(run, "space", out=tmp_path / "space"))
    settings = read_json(tmp_path / "space" / "space.json")
    assert (settings["sees"], settings["question"]) == (True, PROMPT)
    assert "torchvision>=0.25" in (tmp_path / "space" / "requirements.txt").read_text()
    found = in_space(tmp_path / "space", ASK, str(card_of(run)), PROMPT)
    assert found["run/main"] == own["answer"]
    assert found["base, not tuned"] != own["answer"]


@pytest.mark.slow
def test_a_space_takes_pictures_from_programs_and_refuses_what_is_none(
    run: Path, own: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("gradio_client")
    export(ExportRequest(run, "space", out=tmp_path / "space"))
    picture = base64.b64encode(card_of(run).read_bytes()).decode()
    with started(tmp_path / "space") as client:
        assert client.predict(PROMPT, "run/main", 0.0, picture, api_name="/ask") == own["answer"]
        for wrong, words in (("***", "not base64"), (base64.b64encode(b"<html>").decode(), "not a picture")):
            with pytest.raises(Exception, match=words):
                client.predict(PROMPT, "run/main", 0.0, wrong, api_name="/ask")


def test_eyes_that_only_luthier_has_are_refused_in_a_space(run: Path) -> None:
    subject = open_subject(run)
    for base in ("toy:phi3-vision", "toy:phi4-multimodal"):
        subject.recipe.model.base = base
        with pytest.raises(RequestError, match="a Space is without luthier"):
            eyes_in_space(subject, [])
    notes: list[str] = []
    subject.recipe.task.kind = "chat"
    assert eyes_in_space(subject, notes) == ""
    assert "in words alone" in notes[0]
    assert "num2words>=0.5.14" in requirements("chat", False, "smolvlm").splitlines()


def test_a_merged_model_of_words_has_no_processors(tmp_path: Path) -> None:
    run = chat_run(tmp_path / "chat")
    export(ExportRequest(run, "merged", out=tmp_path / "out", receipt=False))
    assert not list((tmp_path / "out").glob("*processor*"))
    shutil.rmtree(run)
