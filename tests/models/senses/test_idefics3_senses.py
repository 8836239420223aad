"""Idefics3 and SmolVLM see what the library's own processors and forward see, tile by tile."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    Idefics3Config,
    Idefics3ImageProcessor,
    Idefics3Processor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.smolvlm import processing_smolvlm

from luthier.data.mediasource import Facts
from luthier.errors import RequestError
from luthier.models.attention import use_packed_attention
from luthier.models.senses.idefics3 import Idefics3Senses
from luthier.models.senses.toy_idefics3 import TILE, TOKENS_PER_TILE, processors
from support.sightings import ODD_SIZES, Sight, facts_of, our_ids, our_logits, picture, reached, vectors_of

MARK = "<image>"
ROWS = (
    ("What is the capital of the country?", []),
    (f"User:{MARK}what is shown?", [picture(*ODD_SIZES[0])]),
    (f"{MARK}and {MARK} Which is larger?", [picture(*ODD_SIZES[1]), picture(*ODD_SIZES[2])]),
    (f"{MARK}{MARK}", [picture(*ODD_SIZES[4]), picture(*ODD_SIZES[3])]),
)


@pytest.fixture(scope="module", params=[("idefics3", False), ("smolvlm", True), ("smolvlm", False)], ids=str)
def sight(request):
    model_type, packed = request.param
    found = Sight.of(f"toy:{model_type}")
    if packed:
        use_packed_attention(found.model)
    return found


def _processor(sight):
    """The library's. SmolVLM's asks for a package that writes numbers of frames as words; pictures need none."""
    options = {"image_seq_len": TOKENS_PER_TILE}
    if sight.model.config.model_type == "idefics3":
        return Idefics3Processor(processors("idefics3")[0], sight.tokenizer, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processing_smolvlm, "num2words", str)
        return SmolVLMProcessor(processors("smolvlm")[0], sight.tokenizer, SmolVLMVideoProcessor(), **options)


def _library(sight, row):
    text, media = row
    options = {"images": [media]} if media else {}
    return _processor(sight)(text=[text], add_special_tokens=False, return_tensors="pt", **options)


@pytest.mark.parametrize("row", ROWS)
def test_ids_are_those_of_the_library_processor(sight, row):
    assert our_ids(sight, *row) == _library(sight, row)["input_ids"][0].tolist()


@pytest.mark.parametrize("row", ROWS)
@torch.no_grad()
def test_logits_are_those_of_the_model_itself(sight, row):
    expected = sight.model(**_library(sight, row)).logits
    torch.testing.assert_close(our_logits(sight, [row]), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rows_with_and_without_pictures_in_one_padded_batch_are_each_as_alone(sight):
    for row, logits in zip(ROWS, our_logits(sight, list(ROWS)), strict=True):
        alone = our_logits(sight, [row])[0]
        torch.testing.assert_close(logits[: len(alone)], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_vectors_do_not_depend_on_company(sight):
    media = [picture(*size) for size in ODD_SIZES]
    for medium, vectors in zip(media, vectors_of(sight, media), strict=True):
        torch.testing.assert_close(vectors, vectors_of(sight, [medium])[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["toy:idefics3", "toy:smolvlm"])
def test_gradients_reach_encoder_and_projector(name):
    assert reached(Sight.of(name), [picture(70, 40)]) == {"model.vision_model", "model.connector"}


@pytest.fixture(scope="module")
def plain():
    return Sight.of("toy:idefics3")


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400), tiles=st.integers(1, 5), rest=st.integers(0, 55))
def test_slots_are_told_from_the_size_as_the_processor_cuts(plain, width, height, tiles, rest):
    longest = {"longest_edge": tiles * TILE + rest}
    images = Idefics3ImageProcessor(size=longest, max_image_size={"longest_edge": TILE})
    senses = Idefics3Senses(plain.model.config, plain.tokenizer, images)
    prepared = senses.prepare("image", Image.new("RGB", (width, height)))
    assert senses.slots(Facts("image", width, height)) == prepared.slots
    assert prepared.inputs["pixel_values"].shape[2:] == (TILE, TILE)


def test_at_the_published_size_a_picture_is_spelled_as_the_library_spells_it(plain):
    config = Idefics3Config(
        vision_config={"image_size": 364, "patch_size": 14}, image_token_id=plain.senses.slot_ids["image"]
    )
    images = Idefics3ImageProcessor()
    published = Sight(plain.model, plain.tokenizer, Idefics3Senses(config, plain.tokenizer, images))
    row = (f"{MARK}and {MARK}", [picture(640, 480), picture(90, 400)])
    expected = Idefics3Processor(images, plain.tokenizer)(text=[row[0]], images=[row[1]], add_special_tokens=False)
    assert our_ids(published, *row) == expected["input_ids"][0]


def test_a_picture_of_a_thin_line_is_cut_along_its_length_alone(plain):
    medium = picture(3, 300)
    spelled = plain.senses.spell(facts_of(medium))
    assert "<row_3_col_1>" in spelled
    assert "col_2" not in spelled
    assert vectors_of(plain, [medium])[0].shape == (1, 4 * TOKENS_PER_TILE, 32)


@torch.no_grad()
def test_a_grey_picture_whose_tiles_are_all_zeros_keeps_its_vectors(plain):
    prepared = plain.senses.prepare("image", picture(50, 50))
    prepared.inputs["pixel_values"].zero_()
    assert plain.senses.encode(plain.model, [prepared])[0].shape[1] == prepared.slots


def test_without_splitting_a_picture_is_seen_whole_alone(plain):
    images = processors("idefics3")[0]
    images.do_image_splitting = False
    senses = Idefics3Senses(plain.model.config, plain.tokenizer, images)
    medium = picture(200, 90)
    assert senses.slots(facts_of(medium)) == senses.prepare("image", medium).slots == TOKENS_PER_TILE
    assert senses.digest() != plain.senses.digest()


def test_settings_of_a_folder_are_read_and_other_ways_of_resizing_are_refused(plain, tmp_path):
    images = processors("idefics3")[0]
    images.save_pretrained(tmp_path)
    assert Idefics3Senses.of(plain.model, plain.tokenizer, str(tmp_path)).digest() == plain.senses.digest()
    images.size = {"height": TILE, "width": TILE}
    images.save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="longest edge"):
        Idefics3Senses.of(plain.model, plain.tokenizer, str(tmp_path))
