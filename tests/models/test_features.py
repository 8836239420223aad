"""Cached features are the live ones, and nothing that changed is served an old one."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.models.families import SOUND_QUANTUM
from luthier.models.features import FeatureStore
from luthier.models.load import Base, load_base
from luthier.recipe_model import ModelConfig

REFERENCES = [f"sha256:{i}" for i in range(4)]


def store(folder: Path, base: Base, recording, *, frozen: bool = True) -> FeatureStore:
    return FeatureStore(folder, base.family, base.extractor, recording, base.model, frozen=frozen)


def files(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.glob(f"{kind}-*/*.safetensors"))


def test_cached_encoder_outputs_are_the_live_ones(tmp_path, toy, recording):
    cached, live = store(tmp_path, toy, recording), store(tmp_path, toy, recording, frozen=False)
    assert (cached.encoded, live.encoded) == (True, False)
    lengths = cached.prepare(REFERENCES)
    assert lengths == live.prepare(REFERENCES)
    assert len(files(tmp_path, "sound")) == len(files(tmp_path, "mel")) == len(REFERENCES)
    again = store(tmp_path, toy, recording)
    for reference in REFERENCES:
        with torch.no_grad():
            expected = toy.family.encode_sound(toy.model, live.load(reference)[None])[0]
        assert lengths[reference] == len(expected)
        torch.testing.assert_close(again.load(reference), expected, rtol=0, atol=1e-6)


def test_a_second_look_reads_the_file(tmp_path, toy, recording):
    store(tmp_path, toy, recording).prepare(REFERENCES)

    def never(reference: str) -> np.ndarray:
        raise AssertionError(f"{reference} was decoded again")

    assert store(tmp_path, toy, never).prepare(REFERENCES) == store(tmp_path, toy, recording).prepare(REFERENCES)


@pytest.mark.parametrize("keep", [0, 4, 60, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["mel", "sound"])
def test_a_torn_file_is_made_again(tmp_path, toy, recording, keep, kind):
    ours = store(tmp_path, toy, recording)
    before = ours.load(REFERENCES[1])
    for path in files(tmp_path, kind):
        data = path.read_bytes()
        path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    if kind == "mel":
        files(tmp_path, "sound")[0].unlink()
    assert torch.equal(store(tmp_path, toy, recording).load(REFERENCES[1]), before)
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_changed_extractor_gives_other_folders(tmp_path, toy, recording):
    ours = store(tmp_path, toy, recording)
    changed = copy.deepcopy(toy.extractor)
    changed.hop_length = changed.hop_length * 2
    other = FeatureStore(tmp_path, toy.family, changed, recording, toy.model, frozen=True)
    assert other.mel_folder != ours.mel_folder
    assert other.sound_folder != ours.sound_folder


@pytest.mark.parametrize(
    "part",
    [
        "encoder.encoders.0.self_attn.q_proj.weight",
        "encoder.encoder_embedding.global_mean",
        "up_proj_for_speech.weight",
        "down_proj_for_speech.bias",
    ],
)
def test_a_changed_encoder_or_projector_gives_another_folder(tmp_path, toy, recording, part):
    other = load_base(ModelConfig(base="toy:phi4-multimodal"))
    ours = store(tmp_path, toy, recording)
    assert store(tmp_path, other, recording).sound_folder == ours.sound_folder
    other.model.state_dict()[f"model.embed_tokens_extend.audio_embed.{part}"].reshape(-1)[0] += 1e-3
    changed = store(tmp_path, other, recording)
    assert changed.sound_folder != ours.sound_folder
    assert changed.mel_folder == ours.mel_folder


def test_the_decoder_does_not_change_the_folder(tmp_path, toy, recording):
    other = load_base(ModelConfig(base="toy:phi4-multimodal"))
    with torch.no_grad():
        other.model.lm_head.weight.add_(1)
    assert store(tmp_path, other, recording).sound_folder == store(tmp_path, toy, recording).sound_folder


@pytest.mark.parametrize("frequency", [300.0, 1000.0, 2500.0, 5000.0])
def test_a_sine_peaks_in_its_mel_bin(toy, frequency):
    time = np.arange(2 * SOUND_QUANTUM) / 16_000
    mel_TF = toy.family.mel(toy.extractor, (0.3 * np.sin(2 * np.pi * frequency * time)).astype(np.float32))

    def mels(hertz: float) -> float:
        return 1127 * np.log1p(hertz / 700)

    bins = mel_TF.shape[1]
    # Centres of the triangles lie evenly on the mel scale between 0 and about 8 kHz.
    expected = mels(frequency) / mels(8000) * (bins + 1) - 1
    peak = int(mel_TF[5:-5].mean(0).argmax())
    assert abs(peak - expected) <= 2


@pytest.mark.parametrize("samples", [1, SOUND_QUANTUM - 1, SOUND_QUANTUM, SOUND_QUANTUM + 1, 3 * SOUND_QUANTUM])
def test_lengths_are_whole_quanta_and_promised_tokens_are_those_of_the_encoder(toy, samples):
    mel_TF = toy.family.mel(toy.extractor, np.full(samples, 0.01, dtype=np.float32))
    whole = toy.family.mel(toy.extractor, np.full(-(-samples // SOUND_QUANTUM) * SOUND_QUANTUM, 0.01, dtype=np.float32))
    assert len(mel_TF) == len(whole)
    with torch.no_grad():
        encoded = toy.family.encode_sound(toy.model, mel_TF[None])
    assert encoded.shape[1] == toy.family.sound_tokens(toy.model, len(mel_TF))


def test_company_of_equal_length_does_not_change_an_encoding(toy, recording):
    mels = torch.stack([toy.family.mel(toy.extractor, recording(f"sha256:{i}")) for i in (1, 5, 9)])
    with torch.no_grad():
        together = toy.family.encode_sound(toy.model, mels)
        alone = torch.cat([toy.family.encode_sound(toy.model, mel[None]) for mel in mels])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
