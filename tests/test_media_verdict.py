"""Graded pictures and videos: read from tables, judged as the model's own forward has them, and asked of `predict`."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Phi4MultimodalImageProcessor

from luthier import shipverbs, verbs
from luthier.data.building.context import Context
from luthier.data.shapes import graded
from luthier.data.table import read_table
from luthier.errors import DataError, RequestError
from luthier.evaluate.verdicts import swap_media
from luthier.exporting.kinds import ExportRequest
from luthier.files import read_json, read_jsonl
from luthier.models.batches import collate
from luthier.models.encode import PromptEncoder, encode_rows
from luthier.models.verdict_features import verdict_features
from luthier.recipe import Recipe
from luthier.recipe_data import Frames, Source
from luthier.schema import Draft, Drop, Message, Part, Row
from luthier.stages.prepare import build_model
from support import films

RECIPE = """
model: {base: "toy:phi4-multimodal", lora: {r: 4, dropout: 0.0}}
data:
  sources: {a: {path: TRAIN}, b: {path: TEST}}
  train: [a]
  test: [b]
  validation_fraction: 0.2
  frames: {rate: 4.0}
task: {kind: verdict, instruction: "Look. Does it pass?"}
train: {epochs: 6, batch_size: 8, micro_batch_size: 4, learning_rate: 0.02}
evaluate: {resamples: 50}
"""


def shown(kind: str, number: int) -> tuple[bytes, float]:
    """Bright is good: the medium, and its grade."""
    grade = (2.0, 5.0)[number % 2]
    shade = int(40 + 30 * grade + number % 7)
    if kind == "video":
        return films.film(6 + number % 5, colours=[(shade, shade, number % 60)] * 12), grade
    out = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 20, (30 + number % 3 * 20, 40, 3))
    Image.fromarray((noise + shade).astype(np.uint8)).save(out, "PNG")
    return out.getvalue(), grade


def table(folder: Path, kind: str, name: str, numbers: range) -> Path:
    lines = []
    for number in numbers:
        data, grade = shown(kind, number)
        (folder / f"{name}-{number}").write_bytes(data)
        lines.append(
            {kind: f"{name}-{number}", "prompt": "Is it bright?", "grade": grade, "speaker": f"{name}{number}"}
        )
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / f"{name}.jsonl"


@pytest.fixture(scope="module", params=["image", "video"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A finished run on graded media of a kind."""
    folder = tmp_path_factory.mktemp(request.param)
    text = RECIPE.replace("TRAIN", str(table(folder, request.param, "train", range(40))))
    (folder / "recipe.yaml").write_text(
        text.replace("TEST", str(table(folder, request.param, "test", range(100, 116))))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_CACHE", str(folder / "cache"))
        verbs.run(folder / "recipe.yaml", folder / "run")
    return request.param, folder


def test_bright_and_dark_are_told_apart_by_what_is_seen(finished: tuple[str, Path]) -> None:
    kind, folder = finished
    stage = folder / "run/stages/main"
    assert read_json(stage / "scores.json")["auroc"]["value"] > 0.9
    deafness = read_json(stage / "stage.json")["checks"]["deafness"]
    assert deafness["message"] == f"The verdict comes from the {'picture' if kind == 'image' else 'video'}."
    assert deafness["hears"]
    assert read_json(stage / "adapter/verdict.json")["judges"] == kind
    assert (folder / "run/report.html").is_file()


def test_a_space_of_verdicts_is_refused_as_it_would_record_sound(finished: tuple[str, Path]) -> None:
    kind, folder = finished
    with pytest.raises(RequestError, match=f"judges {kind}s"):
        shipverbs.export(ExportRequest(folder / "run", "space", out=folder / "space"))
    assert not (folder / "space").exists()


def test_predict_says_what_is_on_record_and_refuses_what_is_not_judged(finished: tuple[str, Path]) -> None:
    kind, folder = finished
    records = read_jsonl(folder / "run/stages/main/predictions.jsonl")
    names = {item.row.id: item.row.group for item in read_table(folder / "run/data").select(["b"], "test")}
    inputs = [folder / names[record["id"]].replace("test", "test-") for record in records[:4]]
    other, _ = shown("video" if kind == "image" else "image", 0)
    (folder / "other").write_bytes(other)
    *found, wrong = verbs.predict(folder / "run", [*inputs, folder / "other"], "Is it bright?")
    assert [line["p_pass"] for line in found] == pytest.approx([record["p_pass"] for record in records[:4]], abs=1e-6)
    assert "and this stage judges" in wrong["error"]


def rows_of(kind: str, count: int, folder: Path) -> tuple[list[Row], dict[str, bytes]]:
    table(folder, kind, "rows", range(count))
    context = Context(Source("s"), folder=folder, trusted=True, found=(kind, "prompt", "grade"))
    read, blobs, rows = graded.adapter(context), dict[str, bytes](), []
    for line in read_jsonl(folder / "rows.jsonl"):
        draft = read("", line)
        assert isinstance(draft, Draft)
        blobs |= draft.blobs
        rows.append(draft.row)
    return rows, blobs


def test_logits_are_those_of_the_librarys_own_forward_and_company_changes_none(tmp_path: Path) -> None:
    rows, blobs = rows_of("image", 6, tmp_path)
    recipe = Recipe()
    recipe.model.base = "toy:phi4-multimodal"
    base, model, _, _ = build_model(recipe, 3)
    model.eval()
    features, spelled = verdict_features(base, recipe, rows, blobs.__getitem__, tmp_path / "kept", True)
    examples, dropped = encode_rows(rows, PromptEncoder.of(base, recipe), spelled, lambda row: (0.5, 0))
    assert not dropped
    together = model.state_BD(collate(examples, features, 0)).detach()
    processor = Phi4MultimodalImageProcessor(size={"height": 28, "width": 28}, patch_size=14)
    for number, (row, example) in enumerate(zip(rows, examples, strict=True)):
        alone = model.state_BD(collate([example], features, 0)).detach()
        torch.testing.assert_close(together[number], alone[0], rtol=0, atol=1e-5)
        given = dict(processor(Image.open(io.BytesIO(blobs[row.media[0]])), return_tensors="pt"))
        del given["num_img_tokens"]
        with torch.no_grad():
            theirs = model.language_model(input_ids=torch.tensor([example.ids]), **given, use_cache=False).logits[0, -1]
        ours = base.model.get_output_embeddings()(alone)[0]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_video_stands_as_its_frames_with_their_times_and_is_swapped_whole(tmp_path: Path) -> None:
    rows, blobs = rows_of("video", 3, tmp_path)
    recipe = Recipe()
    recipe.model.base, recipe.data.frames = "toy:phi4-multimodal", Frames(rate=5.0)
    base, model, _, _ = build_model(recipe, 3)
    features, spelled = verdict_features(base, recipe, rows, blobs.__getitem__, tmp_path / "kept", True)
    examples, _ = encode_rows(rows, PromptEncoder.of(base, recipe), spelled, lambda row: (0.5, 0))
    slot = int(base.model.config.vision_config.image_token_id)
    said = [base.tokenizer.decode([one for one in example.ids if one != slot]) for example in examples]
    assert "Is it bright?\n[0:00.0][0:00.2][0:00.4]" in said[0]
    assert {len(features.load(example.media)) for example in examples} != {len(features.load(examples[0].media))}
    swapped = swap_media(examples, seed=1, rounds=1)
    for own in swapped:
        other = next(example for example in examples if example.media == own.media)
        assert (
            own.ids[own.media_at : own.media_at + own.media_length]
            == other.ids[other.media_at : other.media_at + other.media_length]
        )
    with torch.no_grad():
        moved = model(collate(swapped, features, 0))[0]
    assert torch.isfinite(moved).all()


def test_the_column_says_what_is_graded() -> None:
    def kind(*found: str, **mapped: str) -> str:
        context = Context(Source("s", columns=mapped), found=(*found, "prompt", "grade"))
        return graded._choose(context).kind

    assert [kind("audio"), kind("image"), kind("video"), kind("path")] == ["audio", "image", "video", "audio"]
    assert kind("audio", "image") == "audio", "answers about a picture are heard"
    assert kind("path", "image") == "image"
    assert kind("audio", "shot", image="shot") == "image"


def test_graded_media_that_cannot_be_decoded_are_dropped_with_their_reason(tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>")
    context = Context(Source("s"), folder=tmp_path, trusted=True, found=("image", "prompt", "grade"))
    read = graded.adapter(context)
    for cell, reason in (("page.jpg", "unreadable_image"), ("none.png", "missing_media"), (None, "missing_media")):
        found = read("", {"image": cell, "prompt": "Is it bright?", "grade": 3})
        assert isinstance(found, Drop)
        assert found.reason == reason
        assert found.reason in graded.REASONS


def test_recordings_beside_pictures_in_one_stage_are_refused(tmp_path: Path) -> None:
    rows, blobs = rows_of("image", 1, tmp_path)
    more, others = rows_of("video", 1, tmp_path)
    recipe = Recipe()
    recipe.model.base = "toy:phi4-multimodal"
    base, *_ = build_model(recipe, 3)
    _, spelled = verdict_features(base, recipe, [*rows, *more], (blobs | others).__getitem__, tmp_path, True)
    assert len(spelled) == 2, "pictures and videos go together"
    heard = replace(rows[0], messages=(Message("user", (Part("audio", media="sha256:a"),)),))
    with pytest.raises(DataError, match="one stage judges one of them"):
        verdict_features(base, recipe, [*rows, heard], blobs.__getitem__, tmp_path, True)
