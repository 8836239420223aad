"""Which models a run's folder holds: ids that tell them apart, and folders that hold none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from luthier.engines.finding import find_models, model_called
from luthier.errors import RequestError
from luthier.files import MANIFEST
from support.chatrun import chat_run


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_run(tmp_path_factory.mktemp("finding"))


def test_a_chat_run_has_its_adapter_its_checkpoints_and_its_base(chat: Path) -> None:
    found = find_models([chat])
    assert [(model.id, model.step) for model in found] == [
        ("run/main", None),
        ("run/main@step-000010", 10),
        ("run/main@step-000005", 5),
        ("base:toy:llama", None),
    ]
    assert {(model.kind, model.base) for model in found} == {("chat", "toy:llama")}
    assert all(model.adapter is not None and model.adapter.is_dir() for model in found[:3])
    assert found[3].adapter is None


def test_a_verdict_run_has_no_base_to_talk_to(finished: Path) -> None:
    found = find_models([finished])
    assert {model.kind for model in found} == {"verdict"}
    assert [model.id for model in found if model.step is None] == ["run/1764", "run/1964"]


def test_runs_of_one_name_are_told_apart_and_share_their_base(chat: Path, tmp_path: Path) -> None:
    places = [tmp_path / "one" / "run", tmp_path / "two" / "run", tmp_path / "third"]
    for place in places:
        shutil.copytree(chat, place)
    ids = [model.id for model in find_models(places)]
    assert len(set(ids)) == len(ids) == 10
    assert [name for name in ids if "@" not in name] == ["one-run/main", "two-run/main", "third/main", "base:toy:llama"]


def test_a_checkpoint_that_was_not_sealed_and_a_stage_that_is_not_finished_are_left_out(
    chat: Path, finished: Path, tmp_path: Path
) -> None:
    torn, half = shutil.copytree(chat, tmp_path / "torn"), shutil.copytree(finished, tmp_path / "half")
    (torn / "stages/main/checkpoints/step-000005" / MANIFEST).unlink()
    shutil.copytree(torn / "stages/main/checkpoints/step-000010", torn / "stages/main/checkpoints/step-000010.old")
    (half / "stages/1964/stage.json").unlink()
    assert "torn/main@step-000005" not in [model.id for model in find_models([torn])]
    assert len(find_models([torn])) == 3
    assert {model.stage for model in find_models([half])} == {"1764"}


def test_what_cannot_be_served_is_refused_with_the_mend(chat: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not a run"):
        find_models([tmp_path])
    with pytest.raises(RequestError, match="given twice"):
        find_models([chat, chat / "." / ".." / chat.name])
    copy = shutil.copytree(chat, tmp_path / "copy")
    (copy / "stages/main/stage.json").unlink()
    with pytest.raises(RequestError, match="no stage of it is finished\n  mend: let the run finish"):
        find_models([copy])


def test_a_model_that_is_not_there_is_refused_with_those_that_are_alike(chat: Path) -> None:
    models = {model.id: model for model in find_models([chat])}
    assert model_called("run/main", models).step is None
    with pytest.raises(RequestError, match=r"'run/man' is not served here\n  mend: choose one of 4, such as run/main"):
        model_called("run/man", models)
