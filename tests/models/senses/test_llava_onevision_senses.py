"""LLaVA-OneVision sees what the library's own processors and forward see: tiles, padding cut away, marks, films."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)

from luthier.data.mediasource import Facts
from luthier.models.attention import use_packed_attention
from luthier.models.senses.llava_onevision import LlavaOnevisionSenses
from luthier.models.senses.toy_llava_onevision import ASPECT_RATIO, processors
from support.sightings import ODD_SIZES, Sight, facts_of, film, our_ids, our_logits, picture, reached, vectors_of

NAME, MARK, FILM = "toy:llava-onevision", "<image>", "<video>"
ROWS = (
    ("What is the capital of the country?", []),
    (f"User {MARK}\nWhat is shown?", [picture(*ODD_SIZES[0])]),
    (f"{MARK}and {MARK} Which is larger?", [picture(*ODD_SIZES[1]), picture(*ODD_SIZES[2])]),
    (f"{MARK}{FILM}What happens?", [picture(*ODD_SIZES[5]), film(3)]),
)


@pytest.fixture(scope="module", params=["sdpa", "luthier_packed"])
def sight(request):
    found = Sight.of(NAME)
    if request.param == "luthier_packed":
        use_packed_attention(found.model)
    return found


def _library(sight, row):
    """The library's processor on a flat list of pictures, each as a picture alone in its row."""
    images, videos = processors("llava_onevision")
    options = {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "vision_aspect_ratio": ASPECT_RATIO}
    processor = LlavaOnevisionProcessor(images, sight.tokenizer, videos, **options)
    text, media = row
    pictures = [one for one in media if facts_of(one).kind == "image"]
    films = [list(one.frames) for one in media if facts_of(one).kind == "video"]
    given = {key: value for key, value in (("images", pictures), ("videos", films)) if value}
    return processor(text=text, add_special_tokens=False, return_tensors="pt", **given)


@pytest.mark.parametrize("row", ROWS)
def test_ids_are_those_of_the_library_processor(sight, row):
    assert our_ids(sight, *row) == _library(sight, row)["input_ids"][0].tolist()


@pytest.mark.parametrize("row", ROWS)
@torch.no_grad()
def test_logits_are_those_of_the_model_itself(sight, row):
    expected = sight.model(**_library(sight, row)).logits
    torch.testing.assert_close(our_logits(sight, [row]), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rows_with_and_without_media_in_one_padded_batch_are_each_as_alone(sight):
    for row, logits in zip(ROWS, our_logits(sight, list(ROWS)), strict=True):
        alone = our_logits(sight, [row])[0]
        torch.testing.assert_close(logits[: len(alone)], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_vectors_do_not_depend_on_company(sight):
    media = [film(2), *(picture(*size) for size in ODD_SIZES), film(5)]
    for medium, vectors in zip(media, vectors_of(sight, media), strict=True):
        assert vectors.shape[1] == sight.senses.slots(facts_of(medium))
        torch.testing.assert_close(vectors, vectors_of(sight, [medium])[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("medium", [picture(70, 40), film(2)], ids=["picture", "film"])
def test_gradients_reach_encoder_projector_and_the_mark_of_rows(medium):
    # The features are those before the tower's last norm.
    found = reached(Sight.of(NAME), [medium], spared=("post_layernorm",))
    assert found == {"model.vision_tower", "model.multi_modal_projector", "model.image_newline"}


@pytest.fixture(scope="module")
def plain():
    return Sight.of(NAME)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), most=st.integers(1, 9))
def test_slots_are_told_from_the_size_as_the_model_makes_vectors(plain, width, height, most):
    plain.model.config.vision_aspect_ratio = f"anyres_max_{most}"
    senses = LlavaOnevisionSenses(plain.model.config, plain.tokenizer, *processors("llava_onevision"))
    prepared = senses.prepare("image", Image.new("RGB", (width, height)))
    with torch.no_grad():
        vectors = senses.encode(plain.model, [prepared])[0]
    assert senses.slots(Facts("image", width, height)) == prepared.slots == vectors.shape[1]


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 6000), height=st.integers(1, 6000))
def test_at_the_published_size_slots_are_those_the_library_counts(published, width, height):
    senses, processor = published
    counted = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])["num_image_tokens"]
    assert [senses.slots(Facts("image", width, height))] == counted


@pytest.fixture(scope="module")
def published(plain):
    config, images, videos = LlavaOnevisionConfig(), LlavaOnevisionImageProcessor(), LlavaOnevisionVideoProcessor()
    config.image_token_id, config.video_token_id = plain.senses.slot_ids["image"], plain.senses.slot_ids["video"]
    options = {"num_image_tokens": 729, "vision_feature_select_strategy": "full"}
    processor = LlavaOnevisionProcessor(images, plain.tokenizer, videos, **options)
    return LlavaOnevisionSenses(config, plain.tokenizer, images, videos), processor


def test_settings_of_a_folder_are_read(plain, tmp_path):
    for processor in processors("llava_onevision"):
        processor.save_pretrained(tmp_path)
    sight = Sight.of(NAME)
    assert LlavaOnevisionSenses.of(sight.model, sight.tokenizer, str(tmp_path)).digest() == sight.senses.digest()
