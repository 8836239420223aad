"""Gemma 3 sees what the library's own processor and forward see, and a picture's tokens look at one another."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma3Processor

from luthier.errors import RequestError, SourceError
from luthier.models.attention import packed_kwargs, use_packed_attention
from luthier.models.senses.gemma3 import Gemma3Senses
from luthier.models.senses.toy_gemma3 import TOKENS_PER_IMAGE, processors
from luthier.models.toys import WINDOW
from support.sightings import ODD_SIZES, Sight, expanded, facts_of, our_ids, our_logits, picture, reached, vectors_of

NAME, MARK = "toy:gemma3-vision", "<start_of_image>"
ROWS = (
    ("What is the capital of the country?", []),
    (f"Look:{MARK}what is shown in the image?", [picture(*ODD_SIZES[0])]),
    (
        f"{MARK} Listen to the recording and judge the spoken answer of the candidate, then describe the picture."
        f" {MARK} Which of them is larger than the other, and why? Explain your answer.",
        [picture(*ODD_SIZES[1]), picture(*ODD_SIZES[2])],
    ),
)
"""The last is longer than the window of the toy's first layer."""


@pytest.fixture(scope="module", params=["sdpa", "luthier_packed"])
def sight(request):
    found = Sight.of(NAME)
    if request.param == "luthier_packed":
        use_packed_attention(found.model)
    return found


@pytest.fixture(scope="module")
def library(sight):
    return Gemma3Processor(_images(), sight.tokenizer, image_seq_length=TOKENS_PER_IMAGE)


def _images():
    return processors("gemma3")[0]


def _library(library, row):
    text, media = row
    options = {"images": media} if media else {}
    return library(text=text, add_special_tokens=False, return_tensors="pt", **options)


def test_one_row_is_longer_than_the_window(sight):
    assert len(our_ids(sight, *ROWS[2])) > WINDOW > len(our_ids(sight, *ROWS[1]))


@pytest.mark.parametrize("row", ROWS)
def test_ids_are_those_of_the_library_processor(sight, library, row):
    assert our_ids(sight, *row) == _library(library, row)["input_ids"][0].tolist()


@pytest.mark.parametrize("row", ROWS)
@torch.no_grad()
def test_logits_are_those_of_the_model_itself(sight, library, row):
    expected = sight.model(**_library(library, row)).logits
    torch.testing.assert_close(our_logits(sight, [row]), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rows_with_and_without_pictures_in_one_padded_batch_are_each_as_alone(sight):
    together = our_logits(sight, list(ROWS))
    for row, logits in zip(ROWS, together, strict=True):
        alone = our_logits(sight, [row])[0]
        torch.testing.assert_close(logits[: len(alone)], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rows_padded_on_the_left_are_each_as_alone(sight):
    senses, model = sight.senses, sight.model
    rows = [torch.tensor(our_ids(sight, *row)) for row in ROWS]
    ids_BL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
    width = ids_BL.shape[1]
    mask_BL = torch.stack([torch.arange(width) >= width - len(row) for row in rows]).long()
    slot_BL = ids_BL == senses.slot_ids["image"]
    vectors_KMD = torch.cat(vectors_of(sight, [one for _, media in ROWS for one in media]), dim=1)
    embeds_BLD = model.get_input_embeddings()(ids_BL).masked_scatter(slot_BL[..., None], vectors_KMD[0])
    hidden_BLD = senses.decoder(model)(
        inputs_embeds=embeds_BLD,
        position_ids=(mask_BL.cumsum(1) - 1).clamp(min=0),
        **senses.decoder_inputs(model, embeds_BLD, slot_BL, vectors_KMD, mask_BL),
    ).last_hidden_state
    for row, logits in zip(ROWS, model.get_output_embeddings()(hidden_BLD), strict=True):
        alone = our_logits(sight, [row])[0]
        torch.testing.assert_close(logits[-len(alone) :], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_later_token_of_a_picture_moves_an_earlier_one_but_not_what_stands_before_it(sight):
    ids = our_ids(sight, *ROWS[1])
    slots = [place for place, one in enumerate(ids) if one == sight.senses.slot_ids["image"]]
    embeds = sight.model.get_input_embeddings()(torch.tensor([ids]))
    slot = torch.isin(torch.tensor([ids]), torch.tensor([sight.senses.slot_ids["image"]]))
    hidden = []
    for shift in (0.0, 1.0):
        embeds[0, slots[-1]] += shift
        more = sight.senses.decoder_inputs(sight.model, embeds, slot, embeds[:, slots])
        # Packed rows are told to attention too where a caller adds them to everything; the mask must win.
        call = {"use_cache": False, **packed_kwargs([len(ids)], "cpu"), **more}
        hidden.append(sight.senses.decoder(sight.model)(inputs_embeds=embeds, **call).last_hidden_state[0])
    moved = (hidden[0] != hidden[1]).any(-1)
    assert not moved[: slots[0]].any()
    assert moved[slots[0]]
    assert moved[slots[-1] :].all()


def test_a_picture_takes_as_many_slots_as_it_has_vectors_whatever_its_size(sight):
    for size in ODD_SIZES:
        medium = picture(*size)
        prepared = sight.senses.prepare("image", medium)
        assert sight.senses.slots(facts_of(medium)) == prepared.slots == TOKENS_PER_IMAGE
        assert vectors_of(sight, [medium])[0].shape == (1, TOKENS_PER_IMAGE, 32)


@torch.no_grad()
def test_vectors_do_not_depend_on_company(sight):
    media = [picture(*size) for size in ODD_SIZES]
    for medium, vectors in zip(media, vectors_of(sight, media), strict=True):
        torch.testing.assert_close(vectors, vectors_of(sight, [medium])[0], rtol=1e-6, atol=1e-6)


def test_gradients_reach_encoder_and_projector():
    sight = Sight.of(NAME)
    assert reached(sight, [picture(70, 40)]) == {"model.vision_tower", "model.multi_modal_projector"}


@torch.no_grad()
def test_a_slot_id_beyond_the_vocabulary_needs_no_row_of_the_embedding():
    sight = Sight.of(NAME)
    expected = our_logits(sight, [ROWS[1]])
    sight.model.config.image_token_id = 900
    outside = Gemma3Senses(sight.model.config, _Renamed(sight.tokenizer), _images())
    assert outside.slot_ids == {"image": 900}
    assert expanded(outside, *ROWS[1]) == expanded(sight.senses, *ROWS[1])
    row = Sight(sight.model, _Renamed(sight.tokenizer), outside)
    torch.testing.assert_close(our_logits(row, [ROWS[1]]), expected, rtol=0, atol=0)


class _Renamed:
    """The toy tokenizer with <image_soft_token> at 900, beyond the 768 rows of the embedding."""

    def __init__(self, tokenizer):
        self.inner, self.soft = tokenizer, tokenizer.image_token_id

    def convert_ids_to_tokens(self, ids):
        return self.inner.convert_ids_to_tokens([self.soft if one == 900 else one for one in ids])

    def __call__(self, text, **options):
        return {"input_ids": [900 if one == self.soft else one for one in self.inner(text, **options)["input_ids"]]}


def test_settings_of_a_folder_are_read_and_pan_and_scan_is_refused(tmp_path):
    sight = Sight.of(NAME)
    _images().save_pretrained(tmp_path)
    read = Gemma3Senses.of(sight.model, sight.tokenizer, str(tmp_path))
    assert read.digest() == sight.senses.digest()
    scanning = _images()
    scanning.do_pan_and_scan = True
    scanning.save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="pans and scans"):
        Gemma3Senses.of(sight.model, sight.tokenizer, str(tmp_path))


def test_a_folder_without_a_processor_is_named_with_the_mend(tmp_path):
    sight = Sight.of(NAME)
    with pytest.raises(SourceError, match=r"preprocessor_config\.json"):
        Gemma3Senses.of(sight.model, sight.tokenizer, str(tmp_path))
