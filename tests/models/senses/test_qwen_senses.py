"""Qwen-VL sees what the library's own processor and forward see, at the positions that the model itself gives."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoImageProcessor,
    AutoVideoProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
)
from transformers.video_utils import VideoMetadata

from luthier.data.mediasource import Facts, Film
from luthier.errors import MediaError, SourceError
from luthier.models.attention import use_packed_attention
from luthier.models.senses.base import Placed
from luthier.models.senses.qwen_vl import QwenSenses
from luthier.models.senses.toy_qwen_vl import processors
from support.sightings import (
    ODD_SIZES,
    Sight,
    facts_of,
    film,
    our_ids,
    our_logits,
    our_positions,
    picture,
    reached,
    vectors_of,
)

NAMES = ("toy:qwen2-vl", "toy:qwen2.5-vl", "toy:qwen3-vl")
PROCESSORS = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor, "qwen3_vl": Qwen3VLProcessor}
IMAGE, VIDEO = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
ROWS = {
    "text": ("What is the capital of the country?", []),
    "picture": (f"Look:{IMAGE}what is shown in the image?", [picture(*ODD_SIZES[0])]),
    "pictures": (f"{IMAGE}{IMAGE} Which is larger?", [picture(*ODD_SIZES[1]), picture(*ODD_SIZES[2])]),
    "video": (f"First {VIDEO}Does the door open?", [film(4)]),
    "odd video": (f"{VIDEO}", [film(5, 130, 31)]),
    "mixed": (f"{IMAGE}is this in {VIDEO} or {VIDEO}?{IMAGE}",
              [picture(*ODD_SIZES[5]), film(6), film(3, 70, 90), picture(*ODD_SIZES[3])]),
}  # fmt: skip


@pytest.fixture(scope="module", params=NAMES)
def sight(request):
    return Sight.of(request.param)


@pytest.fixture(scope="module")
def library(sight):
    images, films = processors(sight.model.config.model_type)
    return PROCESSORS[sight.model.config.model_type](images, sight.tokenizer, films)


def _inputs(library, row, rate=10):
    """What the library makes of a row; its films were taken from videos of `rate` frames a second."""
    text, media = row
    images = [one for one in media if not isinstance(one, Film)]
    films = [one for one in media if isinstance(one, Film)]
    options = {"images": images} if images else {}
    if films:
        options |= {
            "videos": [list(one.frames) for one in films],
            "video_metadata": [
                VideoMetadata(
                    total_num_frames=round(one.duration * rate),
                    fps=rate,
                    frames_indices=[round(second * rate) for second in one.seconds],
                )
                for one in films
            ],
            "do_sample_frames": False,
        }
    return library(text=text, return_tensors="pt", add_special_tokens=False, **options)


@pytest.mark.parametrize("name", ROWS)
def test_ids_are_those_of_the_library_processor(sight, library, name):
    assert our_ids(sight, *ROWS[name]) == _inputs(library, ROWS[name])["input_ids"][0].tolist()


@pytest.mark.parametrize("name", ROWS)
def test_positions_are_those_of_the_model(sight, library, name):
    inputs = _inputs(library, ROWS[name])
    keys = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    expected, _ = sight.model.model.get_rope_index(**{key: inputs[key] for key in keys if key in inputs})
    found = our_positions(sight, inputs["input_ids"][0].tolist(), ROWS[name][1])
    assert found.shape[0] == 3
    torch.testing.assert_close(found, expected[:, 0])


@pytest.mark.parametrize("name", ROWS)
@torch.no_grad()
def test_logits_are_those_of_the_model_itself(sight, library, name):
    inputs = _inputs(library, ROWS[name])
    inputs.pop("video_metadata", None)
    expected = sight.model(**inputs).logits
    torch.testing.assert_close(our_logits(sight, [ROWS[name]]), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rows_in_one_padded_batch_are_each_as_alone(sight):
    together = our_logits(sight, list(ROWS.values()))
    for row, logits in zip(ROWS.values(), together, strict=True):
        alone = our_logits(sight, [row])[0]
        torch.testing.assert_close(logits[: len(alone)], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_media_are_encoded_as_alone_in_any_company_and_with_packed_attention_in_force(sight):
    media = [film(4), *(picture(*size) for size in ODD_SIZES), film(5, 200, 30)]
    together = vectors_of(sight, media)
    packed = Sight.of(
        {"qwen2_vl": NAMES[0], "qwen2_5_vl": NAMES[1], "qwen3_vl": NAMES[2]}[sight.model.config.model_type]
    )
    use_packed_attention(packed.model)
    for one, vectors, other in zip(media, together, vectors_of(packed, media), strict=True):
        alone = vectors_of(sight, [one])[0]
        assert vectors.shape == alone.shape == (2 if "qwen3" in sight.model.config.model_type else 1, len(alone[0]), 32)
        torch.testing.assert_close(vectors, alone, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(other, alone, rtol=1e-5, atol=1e-6)


def test_gradients_reach_all_of_encoder_and_projector_and_they_are_all_there_is(sight):
    prefixes = (*sight.senses.encoders["image"], *sight.senses.projectors["image"])
    assert reached(sight, [picture(400, 390), picture(120, 60)]) == set(prefixes)
    names = [name for name, _ in sight.model.named_parameters()]
    assert {name for name in names if name.startswith(prefixes)} == {name for name in names if ".visual." in name}


def test_encoding_can_be_walked_without_values(sight):
    media = [picture(*ODD_SIZES[0]), film(5)]
    prepared = [sight.senses.prepare(facts_of(one).kind, one).to("meta") for one in media]
    nowhere = copy.deepcopy(sight.model).to("meta")
    shapes = [found.shape for found in sight.senses.encode(nowhere, prepared)]
    assert shapes == [found.shape for found in vectors_of(sight, media)]


SEEN = {name: Sight.of(name).senses for name in NAMES}


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMES), st.integers(1, 400), st.integers(1, 400), st.integers(0, 7))
def test_as_many_slots_as_vectors_are_foreseen_from_the_header(name, width, height, frames):
    senses = SEEN[name]
    medium = film(frames, width, height) if frames else picture(width, height)
    facts = facts_of(medium)
    if max(width, height) > 200 * min(width, height):
        for refused in (lambda: senses.slots(facts), lambda: senses.prepare(facts.kind, medium)):
            with pytest.raises(MediaError, match="extreme_shape"):
                refused()
        return
    prepared = senses.prepare(facts.kind, medium)
    assert (prepared.slots, prepared.grid) == (senses.slots(facts), senses.grid(facts))


@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_any_published_range_are_counted_as_they_are_prepared(name):
    senses = SEEN[name]
    images = type(senses.images)(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280})
    wide = replace(senses, images=images)
    for size in ((1920, 1080), (33, 900), (2000, 1999)):
        shown = picture(*size)
        assert wide.prepare("image", shown).slots == wide.slots(facts_of(shown))


@pytest.mark.parametrize("name", NAMES)
def test_a_film_of_one_frame_is_that_frame_twice(name):
    senses, one = SEEN[name], film(1)
    twice = Film(one.frames * 2, one.seconds * 2, 1.0)
    assert senses.spell(facts_of(one)) == senses.spell(facts_of(twice))
    found, expected = (senses.prepare("video", each) for each in (one, twice))
    assert torch.equal(found.inputs["pixels_NP"], expected.inputs["pixels_NP"])


def test_the_third_writes_the_middle_of_each_step_in_seconds():
    facts = Facts("video", 90, 50, seconds=(0.0, 0.5, 3.04, 3.1, 9.0))
    written = SEEN["toy:qwen3-vl"].spell(facts).replace("<|video_pad|>", "")
    marks = "<|vision_start|><|vision_end|>"
    assert written == f"<0.2 seconds>{marks}<3.1 seconds>{marks}<9.0 seconds>{marks}"


def test_the_pace_of_a_video_moves_positions_in_2_5_alone():
    moved = {}
    for name, senses in SEEN.items():
        slow, fast = (Facts("video", 90, 50, seconds=tuple(step * n for n in range(4))) for step in (2.0, 0.25))
        token = senses.slot_ids["video"]
        ids = np.array([1, 2, *[token] * (senses.slots(slow) // 2), 3, *[token] * (senses.slots(slow) // 2), 4])
        ids = ids if "3" in name else ids[ids != 3]
        places = [
            senses.positions(ids, Placed(("video",), (senses.grid(one),), (senses.pace(one),))) for one in (slow, fast)
        ]
        moved[name] = not np.array_equal(*places)
    assert moved == {"toy:qwen2-vl": False, "toy:qwen2.5-vl": True, "toy:qwen3-vl": False}


def test_a_picture_200_times_as_long_as_high_is_refused_with_its_size():
    for senses in SEEN.values():
        with pytest.raises(MediaError, match="603 x 3 pixels"):
            senses.spell(Facts("image", 603, 3))


def test_senses_go_to_worker_processes_and_keep_their_digest(sight):
    sent = pickle.loads(pickle.dumps(sight.senses))
    assert sent.digest() == sight.senses.digest()
    ids, facts = [1, 2, *[sent.slot_ids["image"]] * 4, 3], Facts("image", 56, 56)
    placed = Placed(("image",), (sent.grid(facts),), (0.0,))
    assert np.array_equal(sent.positions(np.array(ids), placed), sight.senses.positions(np.array(ids), placed))
    images, films = processors(sight.model.config.model_type)
    images.size = {"shortest_edge": 784, "longest_edge": 784 * 30}
    other = QwenSenses(images, films, sent.config, sent.body, sent.marks)
    assert other.digest() != sent.digest()


def test_processors_are_read_from_a_folder_in_the_published_layout(sight, tmp_path):
    sight.model.config.save_pretrained(tmp_path)
    for one in processors(sight.model.config.model_type):
        one.save_pretrained(tmp_path)
    senses = QwenSenses.of(sight.model, sight.tokenizer, str(tmp_path), "")
    assert type(senses.images) is type(AutoImageProcessor.from_pretrained(tmp_path))
    assert type(senses.films) is type(AutoVideoProcessor.from_pretrained(tmp_path))
    for medium in (picture(*ODD_SIZES[2]), film(5)):
        assert senses.spell(facts_of(medium)) == sight.senses.spell(facts_of(medium))


def test_a_folder_without_processors_is_told_so(sight, tmp_path):
    sight.model.config.save_pretrained(tmp_path)
    with pytest.raises(SourceError, match="preprocessor_config"):
        QwenSenses.of(sight.model, sight.tokenizer, str(tmp_path), "")
