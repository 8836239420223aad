"""Exports that end in llama.cpp: the whole way from a run to a file, and its line of the receipt."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.errors import RequestError
from luthier.exporting import gguf_export
from luthier.exporting.export import export
from luthier.exporting.kinds import ExportRequest
from luthier.files import verify_folder
from support.chatrun import chat_run

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_run(tmp_path_factory.mktemp("chat"))


@pytest.mark.parametrize("what", ["merged", "adapter"])
def test_a_whole_gguf_and_an_adapters_answer_as_the_trainer_does(run, tmp_path, what):
    pytest.importorskip("llama_cpp")
    found = export(ExportRequest(run, "gguf", out=tmp_path / "out", type="f32", what=what))
    form = found["receipt"]["forms"]["gguf"]
    assert (form["prompts_that_differ"], form["tokens_that_differ"]) == (0, 0)
    (file,) = (tmp_path / "out").glob("*.gguf")
    assert file.name == ("run-main-f32.gguf" if what == "merged" else "run-main-lora-f32.gguf")
    assert verify_folder(tmp_path / "out") is None
    assert [item.name for item in tmp_path.iterdir()] == ["out"]  # no weights on the way are left


def test_without_llama_cpp_the_receipt_says_that_nobody_was_asked(run, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_export, "has_llamacpp", lambda: False)
    found = export(ExportRequest(run, "ollama", out=tmp_path / "out"))
    form = found["receipt"]["forms"]["gguf"]
    assert not form["ran"]
    assert "no llama.cpp is installed" in form["reason"]
    assert found["receipt"]["forms"]["merged"]["prompts_that_differ"] == 0
    assert (tmp_path / "out" / "Modelfile").read_text().startswith("FROM ./run-main-q8_0.gguf")
    assert "not run" in (tmp_path / "out" / "README.md").read_text()


def test_an_adapter_that_no_gguf_can_say_is_refused_before_anything_is_loaded(run, tmp_path, monkeypatch):
    from luthier.exporting import receipt
    from luthier.models import adapters

    monkeypatch.setattr(receipt, "trainer_readings", lambda _: pytest.fail("a model was loaded"))
    read = adapters.read
    monkeypatch.setattr(adapters, "read", lambda path: {**read(path), "use_dora": True})
    with pytest.raises(RequestError, match="DoRA"):
        export(ExportRequest(run, "gguf", out=tmp_path / "out", what="adapter"))
    monkeypatch.setattr(adapters, "read", read)
    with pytest.raises(RequestError, match="an adapter GGUF holds"):
        export(ExportRequest(run, "gguf", out=tmp_path / "out", what="adapter", type="q4_k_m"))
