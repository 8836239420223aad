"""A run over pictures on a hub: the adapter goes, and not one picture of its users."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from luthier.data.picturefiles import picture_kind
from luthier.files import read_jsonl, sha256_file, write_text
from luthier.publishing.publish import publish
from luthier.publishing.request import PublishRequest
from luthier.rundir import RunDir
from support.describerun import card_run
from support.hub import TOKEN, Hub

WANTED = {
    "MANIFEST.json",
    "README.md",
    "adapter_base.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "scores.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_no_picture_and_no_answer_of_the_table_leaves_with_the_adapter(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run = RunDir(card_run(tmp_path))
    stage = run.stage("main")
    mirrored = stage.path / "track" / "wandb" / "offline-run-1" / "files" / "media" / "images" / "card.jpg"
    mirrored.parent.mkdir(parents=True)
    medium = min((run.data / "media").iterdir())
    mirrored.write_bytes(medium.read_bytes())
    write_text(stage.adapter.parent / "thumbnail.jpg", "a picture")
    done = publish(run, "main", PublishRequest("group/describer"))
    files = hub.files("group/describer", "main")[1]
    sent = {name: hub.stored[file.oid] if file.large else file.content for name, file in files.items()}
    assert set(sent) - {".gitattributes"} == set(done["files"]) == WANTED
    media = {sha256_file(item) for item in (run.data / "media").iterdir()}
    assert len(media) > 10
    assert not media & {one["sha256"] for one in done["files"].values()}
    assert not any(picture_kind(data) for data in sent.values())
    words = b"\n".join(data for name, data in sent.items() if not name.endswith(".safetensors"))
    assert b"data:image" not in words
    assert str(tmp_path).encode() not in words
    lines = read_jsonl(stage.predictions)
    assert lines
    for line in lines:
        for text in (line["id"], line["truth"]["title"], line["answer"]):
            assert not text.strip() or json.dumps(text)[1:-1].encode() not in words
    front = yaml.safe_load(sent["README.md"].decode().split("---\n", 2)[1])
    assert front["pipeline_tag"] == "image-text-to-text"
    assert {"luthier", "describe", "lora"} <= set(front["tags"])
