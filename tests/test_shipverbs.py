"""`luthier export` and `luthier publish`: their words, their figures, and what they refuse."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier import cli, shipverbs
from luthier.errors import RequestError
from luthier.exporting.kinds import KINDS, ExportRequest
from luthier.recipefile import stage_recipes
from luthier.shipverbs import PublishOptions, publish
from support.chatrun import chat_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_run(tmp_path_factory.mktemp("chat"))


@pytest.mark.parametrize("verb", ["export", "publish"])
def test_help_shows_examples_and_loads_nothing_heavy(luthier, verb):
    done = luthier(verb, "--help")
    assert done.returncode == 0
    assert f"example: luthier {verb} runs/a" in done.stdout
    heavy = "{'torch', 'transformers', 'gradio', 'peft', 'pyarrow'} & set(sys.modules)"
    code = f"""
import sys
from luthier.cli import parser
try:
    parser().parse_args(['{verb}', '--help'])
except SystemExit:
    sys.exit(str({heavy}) if {heavy} else 0)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_export_prints_its_folder_and_receipt_as_one_object(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["export", str(run), "--to", "adapter", "--out", str(out), "--json"]) == 0
    said = capsys.readouterr()
    figures = json.loads(said.out.splitlines()[-1])
    assert figures["export"] == str(out)
    assert figures["receipt"]["forms"]["adapter"]["prompts_that_differ"] == 0
    assert "receipt: adapter" in said.err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--to", "gguf", "--checkpoint", "step-1"], "has none of that name"),
        (["--to", "adapter", "--type", "q8_0"], "adapter has none"),
        (["--to", "space", "--zero-gpu", "--type", "q8_0"], "a GGUF runs on a processor"),
    ],
)
def test_a_wrong_request_ends_with_2_and_one_message(run, tmp_path, capsys, words, reason):
    assert cli.main(["export", str(run), "--out", str(tmp_path / "out"), *words]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert "mend:" in said
    assert not (tmp_path / "out").exists()


def test_every_word_of_export_reaches_the_request(monkeypatch):
    seen: list[ExportRequest] = []
    monkeypatch.setattr(shipverbs, "export", lambda request: seen.append(request))
    words = "export a --to space --stage s --checkpoint step-5 --out o --base-name b/c --no-receipt --dtype float16"
    words += " --allow-gap 0.5 --type q8_0 --what adapter --template t --llama-cpp l --with x --with y:z"
    words += " --from-hub h --zero-gpu --title T"
    assert cli.main(words.split()) == 0
    assert seen == [
        ExportRequest(
            run=Path("a"),
            to="space",
            stage="s",
            checkpoint="step-5",
            out=Path("o"),
            base_name="b/c",
            dtype="float16",
            allow_gap=0.5,
            receipt=False,
            type="q8_0",
            what="adapter",
            template=Path("t"),
            llama_cpp=Path("l"),
            beside=("x", "y:z"),
            from_hub=("h",),
            zero_gpu=True,
            title="T",
        )
    ]
    default = ExportRequest(run=Path("a"), to="adapter")
    for field, value in vars(seen[0]).items():
        assert field == "run" or value != getattr(default, field)
    assert set(KINDS) == {"adapter", "merged", "gguf", "ollama", "space"}


@pytest.fixture
def sent(monkeypatch) -> list[tuple[str, Any]]:
    """What would go to the hub."""
    from luthier.publishing import publish as hub

    found: list[tuple[str, Any]] = []

    def send(_run: Any, stage: str, request: Any) -> dict[str, str]:
        found.append((stage, request))
        return {"repo": request.repo}

    monkeypatch.setattr(hub, "publish", send)
    return found


def test_each_finished_stage_goes_to_the_repository_that_its_recipe_names(finished, tmp_path, sent):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    tree["publish"] = {"repo": "group/NI_${form_id}"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree))
    found = publish(PublishOptions(run))
    assert found == {"published": {"1764": {"repo": "group/NI_1764"}, "1964": {"repo": "group/NI_1964"}}}
    assert all(request.private and not request.update for _, request in sent)


def test_words_go_before_what_the_recipe_says(run, sent):
    publish(PublishOptions(run, repo="me/chat", private=False, update=True, revision="next", token_env="T"))
    ((stage, request),) = sent
    assert (stage, request.repo, request.private, request.update) == ("main", "me/chat", False, True)
    assert (request.revision, request.token_env) == ("next", "T")


def test_a_run_without_a_name_for_its_repository_sends_nothing(run, finished, sent):
    with pytest.raises(RequestError, match="names no repository"):
        publish(PublishOptions(run))
    with pytest.raises(RequestError, match="2 finished stages"):
        publish(PublishOptions(finished, repo="me/one"))
    with pytest.raises(RequestError, match="there is no stage other"):
        publish(PublishOptions(run, stage="other"))
    assert not sent


def test_stages_that_would_replace_one_another_are_refused_before_anything_is_sent(finished, monkeypatch):
    def same(tree: Any) -> dict[str, Any]:
        return {
            name: replace(stage, publish=replace(stage.publish, repo="group/one"))
            for name, stage in stage_recipes(tree).items()
        }

    monkeypatch.setattr(shipverbs, "stage_recipes", same)
    monkeypatch.setattr("luthier.publishing.publish.publish", lambda *given: pytest.fail("something was sent"))
    with pytest.raises(RequestError, match="2 stages would go to group/one"):
        publish(PublishOptions(finished, update=True))
