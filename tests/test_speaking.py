"""The shipped recipe on real recordings: both stages, scores that mean something. Minutes, so marked slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier import verbs

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "speaking"
NAMES = ("form-1764-train", "form-1764-test", "form-1964-train", "form-1964-test")


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the real recordings (../shared/data/speaking) are not here")
def test_both_stages_on_real_speech(tmp_path):
    sets = [f"data.sources.{name}.path={DATA / name}.parquet" for name in NAMES]
    sets += [
        "model.base=toy:phi4-multimodal",
        "model.tuning=full",
        "model.builtin_adapter=",
        "model.dtype=float32",
        "train.gradient_checkpointing=false",
        "train.learning_rate=1e-3",
        "train.schedule=cosine",
        "train.warmup_ratio=0.1",
        "train.micro_batch_size=16",
    ]
    found = verbs.run(ROOT / "recipes" / "speaking.yaml", tmp_path / "run", sets)["stages"]
    assert found["1764"]["auroc"]["value"] >= 0.90
    assert found["1764"]["auroc"]["n"] == 200
    assert found["1964"]["auroc"]["n"] == 140
    for scores in found.values():
        low, high = scores["auroc"]["ci"]
        assert low <= scores["auroc"]["value"] <= high
        assert scores["closer"]["n"] > 0
