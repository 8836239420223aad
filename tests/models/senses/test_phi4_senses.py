"""Phi-4-multimodal sees and hears what the library's own processor and forward do, and what our older paths did."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    Phi4MultimodalFeatureExtractor,
    Phi4MultimodalForCausalLM,
    Phi4MultimodalImageProcessor,
    Phi4MultimodalProcessor,
)

from luthier.data.mediasource import Facts
from luthier.errors import MediaError
from luthier.models.attention import use_packed_attention
from luthier.models.families import PHI4_MULTIMODAL, SOUND_QUANTUM
from luthier.models.senses.base import senses_of
from luthier.models.senses.phi4_multimodal import BESIDE_PICTURES, Phi4Senses
from luthier.models.toys import build_toy, write_toy
from support.sightings import (
    ODD_SIZES,
    Sight,
    facts_of,
    our_ids,
    our_logits,
    picture,
    prepared_row,
    reached,
    vectors_of,
)

NAME = "toy:phi4-multimodal"


def sound(samples: int, pitch: float = 300.0) -> np.ndarray:
    time = np.arange(samples) / 16_000
    return (0.1 * np.sin(2 * np.pi * pitch * time) * np.cos(3 * time)).astype(np.float32)


ROWS = {
    "text": ("<|user|>What is the capital?<|end|><|assistant|>", []),
    "picture": ("<|user|>Look: <|image|> what is it?<|end|>", [picture(601, 447)]),
    "pictures": ("<|image|><|image|> Which is larger?", [picture(190, 33), picture(290, 940)]),
    "sound": ("<|user|><|audio|>Pass?<|end|>", [sound(2 * SOUND_QUANTUM)]),
    "sounds": ("<|audio|>or<|audio|>", [sound(SOUND_QUANTUM), sound(SOUND_QUANTUM, 700)]),
    "both": ("<|image|>is described by<|audio|>", [picture(61, 47), sound(2 * SOUND_QUANTUM)]),
    "sound first": ("<|audio|>of<|image|><|image|>?", [sound(SOUND_QUANTUM), picture(7, 7), picture(112, 112)]),
}


def _separated(model):
    """With separators as training leaves them: in a new model they are all zero."""
    embed = model.model.embed_tokens_extend.image_embed
    with torch.no_grad():
        for number, one in enumerate((embed.global_img_feature_extensor, embed.sub_img_feature_extensor)):
            one.copy_(torch.linspace(-1 - number, 1, one.numel()).view_as(one))
    return model


@pytest.fixture(scope="module")
def toy():
    found = Sight.of(NAME)
    _separated(found.model)
    return found


@pytest.fixture(scope="module")
def sight():
    """Of the toy's widths and the published base's pictures: the library counts tokens for crops of 448 alone."""
    model, tokenizer, _ = build_toy(NAME)
    config = copy.deepcopy(model.config)
    config.vision_config.image_size = config.vision_config.crop_size = 448
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wide = _separated(Phi4MultimodalForCausalLM(config).eval())
    ears = "model.embed_tokens_extend.audio_embed"
    wide.get_submodule(ears).load_state_dict(model.get_submodule(ears).state_dict())
    return Sight(wide, tokenizer, Phi4Senses.of(wide, tokenizer, NAME, ""))


def _inputs(sight, row):
    text, media = row
    library = Phi4MultimodalProcessor(Phi4MultimodalImageProcessor(), Phi4MultimodalFeatureExtractor(), sight.tokenizer)
    images = [one for one in media if not isinstance(one, np.ndarray)]
    sounds = [one for one in media if isinstance(one, np.ndarray)]
    options = ({"images": images} if images else {}) | ({"audio": sounds} if sounds else {})
    found = library(text=text, return_tensors="pt", add_special_tokens=False, **options)
    found.pop("num_img_tokens", None)
    # Recordings of one length: no mask is needed, and the encoder adds masks to its scores instead of masking.
    found.pop("audio_attention_mask", None)
    return found


@pytest.mark.parametrize("name", ROWS)
def test_ids_are_those_of_the_library_processor(sight, name):
    assert our_ids(sight, *ROWS[name]) == _inputs(sight, ROWS[name])["input_ids"][0].tolist()


@pytest.mark.parametrize("name", ROWS)
@torch.no_grad()
def test_logits_are_those_of_the_model_itself(sight, name):
    expected = sight.model(**_inputs(sight, ROWS[name])).logits
    torch.testing.assert_close(our_logits(sight, [ROWS[name]]), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rows_in_one_padded_batch_are_each_as_alone(toy):
    together = our_logits(toy, list(ROWS.values()))
    for row, logits in zip(ROWS.values(), together, strict=True):
        alone = our_logits(toy, [row])[0]
        torch.testing.assert_close(logits[: len(alone)], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_sound_beside_a_picture_is_projected_by_weights_of_its_own(toy):
    recording, shown = sound(SOUND_QUANTUM), picture(61, 47)
    alone = toy.senses.encode(toy.model, prepared_row(toy, [recording]))[0]
    beside = toy.senses.encode(toy.model, prepared_row(toy, [shown, recording]))[1]
    assert (alone - beside).abs().max() > 0.01
    torch.testing.assert_close(alone, vectors_of(toy, [recording])[0])
    assert toy.senses.modes(["audio", "text", "image"]) == (BESIDE_PICTURES, "", "")


@torch.no_grad()
def test_media_are_encoded_as_alone_in_any_company_and_with_packed_attention_in_force(toy):
    media = [sound(9_000), *(picture(*size) for size in ODD_SIZES), sound(SOUND_QUANTUM, 700), sound(30_001)]
    packed = Sight.of(NAME)
    _separated(packed.model)
    use_packed_attention(packed.model)
    for one, vectors, other in zip(media, vectors_of(toy, media), vectors_of(packed, media), strict=True):
        alone = vectors_of(toy, [one])[0]
        torch.testing.assert_close(vectors, alone, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(other, alone, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("samples", [400, 10_240, 10_241, 45_000])
def test_recordings_have_the_very_bits_of_the_verdict_path(toy, samples):
    recording = sound(samples)
    mel_TF = PHI4_MULTIMODAL.mel(toy.senses.extractor, recording)
    expected = PHI4_MULTIMODAL.encode_sound(toy.model, mel_TF[None])[0]
    found = vectors_of(toy, [recording])[0][0]
    assert torch.equal(found, expected)
    assert len(found) == toy.senses.slots(Facts("audio", samples=samples))
    assert len(found) == PHI4_MULTIMODAL.sound_tokens(toy.model, len(mel_TF))


SENSES = Sight.of(NAME).senses
SIDES = st.one_of(st.integers(1, 120), st.integers(1, 1_500))


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES)
def test_as_many_slots_as_vectors_are_foreseen_from_the_header(width, height):
    shown = picture(width, height)
    library = SENSES.images
    try:
        counted = library(shown, return_tensors="pt")["num_img_tokens"][0]
    except ValueError:
        for refused in (lambda: SENSES.slots(facts_of(shown)), lambda: SENSES.prepare("image", shown)):
            with pytest.raises(MediaError, match="extreme_shape"):
                refused()
        return
    # The library's constant is for a global view of 16 x 16 features; the toy's is of one.
    assert SENSES.slots(facts_of(shown)) == SENSES.prepare("image", shown).slots == counted - 16 * 17 + 2


def test_gradients_reach_what_is_passed_and_encoders_and_projectors_are_all_there_is(toy):
    shown = set(toy.senses.projectors["image"])
    assert reached(toy, [picture(301, 299), picture(29, 240)]) >= shown
    heard = reached(toy, [sound(SOUND_QUANTUM)])
    assert {one for one in toy.senses.projectors["audio"] if one.endswith("for_speech")} <= heard
    prefixes = tuple(
        name for kind in toy.senses.kinds for name in (*toy.senses.encoders[kind], *toy.senses.projectors[kind])
    )
    names = {name for name, _ in toy.model.named_parameters()}
    assert {one for one in names if one.startswith(prefixes)} == {one for one in names if "embed_tokens_extend" in one}


def test_hearing_can_be_walked_without_values(toy):
    prepared = prepared_row(toy, [sound(20_000)])[0].to("meta")  # of a picture the library reads the mask of its crops
    nowhere = copy.deepcopy(toy.model).to("meta")
    assert toy.senses.encode(nowhere, [prepared])[0].shape == (1, prepared.slots, 32)


def test_senses_go_to_worker_processes_and_keep_their_digest(toy):
    sent = pickle.loads(pickle.dumps(toy.senses))
    assert sent.digest() == toy.senses.digest()
    assert replace(sent, images=Phi4MultimodalImageProcessor(dynamic_hd=4)).digest() != sent.digest()


def test_a_folder_on_disk_has_the_senses_of_its_toy(toy, tmp_path):
    write_toy(NAME, tmp_path)
    found = Phi4Senses.of(toy.model, toy.tokenizer, str(tmp_path), "")
    assert found.digest() == toy.senses.digest()


def test_eyes_attend_both_ways_with_every_attention():
    """The library's fused attention reads a picture without padding causally; its plain attention does not."""
    picture = Image.effect_noise((56, 56), 80).convert("RGB")
    vectors = {}
    for attention in ("sdpa", "eager"):
        model, tokenizer, _ = build_toy("toy:phi4-multimodal")
        model.set_attn_implementation(attention)
        model.model.embed_tokens_extend.image_embed.img_processor.config._attn_implementation = attention
        senses = senses_of(model, tokenizer, "toy:phi4-multimodal")
        with torch.no_grad():
            [vectors[attention]] = senses.encode(model, [senses.prepare("image", picture)])
    torch.testing.assert_close(vectors["sdpa"], vectors["eager"], rtol=1e-5, atol=1e-5)
