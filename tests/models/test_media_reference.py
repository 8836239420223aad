"""A row with media has the loss that the library's own processor and forward give it, family by family."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from transformers.models.smolvlm import processing_smolvlm
from transformers.video_utils import VideoMetadata

from luthier.data.mediasource import Film
from luthier.models.chat_batches import collate
from luthier.models.phi3_vision.processor import Phi3VProcessor
from luthier.models.senses.toy_gemma3 import TOKENS_PER_IMAGE
from luthier.models.senses.toy_idefics3 import TOKENS_PER_TILE
from luthier.models.senses.toy_llava_onevision import ASPECT_RATIO
from luthier.schema import Row
from support import seeing
from support.seeing import SOURCE, Seeing

RATE = 10
"""Frames a second of the videos in `seeing`."""
TOYS = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "toy_qwen_vl"),
    **dict.fromkeys(("idefics3", "smolvlm"), "toy_idefics3"),
    "gemma3": "toy_gemma3",
    "llava_onevision": "toy_llava_onevision",
    "phi3_v": "toy_phi3_vision",
}
_TILES = {"vision_feature_select_strategy": "full", "vision_aspect_ratio": ASPECT_RATIO, "num_image_tokens": 16}
LIBRARY: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_vl": ("Qwen2VLProcessor", {}),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", {}),
    "qwen3_vl": ("Qwen3VLProcessor", {}),
    "gemma3": ("Gemma3Processor", {"image_seq_length": TOKENS_PER_IMAGE}),
    "idefics3": ("Idefics3Processor", {"image_seq_len": TOKENS_PER_TILE}),
    "smolvlm": ("SmolVLMProcessor", {"image_seq_len": TOKENS_PER_TILE}),
    "llava_onevision": ("LlavaOnevisionProcessor", _TILES),
}
NESTED = ("idefics3", "smolvlm")
"""Whose processors want the pictures of each text in a list of their own."""


def processor_of(twin: Seeing) -> Any:
    """The library's processor, set as the toy's is."""
    tokenizer, kind = twin.tokenizer, twin.model.language_model.config.model_type
    if kind == "phi4_multimodal":
        return lambda text, images=None, **_: twin.supply.senses.images(images, return_tensors="pt") if images else {}
    toy = import_module(f"luthier.models.senses.{TOYS[kind]}")
    if kind == "phi3_v":
        return Phi3VProcessor(toy.image_processor(), tokenizer)
    name, options = LIBRARY[kind]
    images, *films = toy.processors(kind)
    if kind == "smolvlm":
        films = [transformers.SmolVLMVideoProcessor()]
    return getattr(transformers, name)(images, tokenizer, *films, **options)


def library_inputs(twin: Seeing, row: Row, ids_L: NDArray[np.int32]) -> dict[str, torch.Tensor]:
    """What the library makes of a row as the template writes it. Phi-4's counts of slots are fixed to its real size:
    there `ids_L` are given, which the model's forward holds against its features."""
    template, speller = twin.encoder.template, twin.encoder.speller
    told = speller.told(row.messages, template)
    text = template.write([template.turn(message) for message in told.messages]).text
    media = [SOURCE.load(medium.kind, medium.reference) for medium in told.media]
    images = [one for one in media if not isinstance(one, Film)]
    films = [one for one in media if isinstance(one, Film)]
    nested = twin.model.language_model.config.model_type in NESTED
    options: dict[str, Any] = {"images": [images] if nested else images} if images else {}
    if films:
        options |= {"videos": [list(film.frames) for film in films], "do_sample_frames": False}
        options["video_metadata"] = [
            VideoMetadata(
                total_num_frames=round(film.duration * RATE),
                fps=RATE,
                frames_indices=[round(second * RATE) for second in film.seconds],
            )
            for film in films
        ]
    if twin.model.language_model.config.model_type != "phi3_v":  # which tokenises with special tokens, always
        options["add_special_tokens"] = False
    found = dict(processor_of(twin)(text=[text] if nested else text, return_tensors="pt", **options))
    found.pop("video_metadata", None)
    if "num_img_tokens" in found or "input_ids" not in found:
        found.pop("num_img_tokens", None)
        found["input_ids"] = torch.from_numpy(ids_L.astype(np.int64))[None]
    return found


@pytest.fixture(scope="module", params=seeing.TOYS)
def twin(request):
    with pytest.MonkeyPatch.context() as patch:
        # SmolVLM's asks for a package that writes numbers of frames as words; pictures need none.
        patch.setattr(processing_smolvlm, "num2words", str)
        yield Seeing.of(request.param)


@pytest.mark.parametrize("number", range(5))
@torch.no_grad()
def test_the_loss_is_that_of_the_library_itself(twin, number):
    row = seeing.mixed(())[number]
    [lesson] = twin.lessons([row])
    inputs = library_inputs(twin, row.row, lesson.ids_L)
    ids = inputs["input_ids"]
    slots = torch.from_numpy(twin.encoder.speller.slots(lesson.ids_L))
    assert ids.shape == (1, len(lesson.ids_L))
    assert ids[0][~slots].tolist() == torch.from_numpy(lesson.ids_L)[~slots].tolist()
    labels = ids.masked_fill(torch.from_numpy(lesson.weight_L == 0)[None], -100)
    expected = twin.model.language_model(**inputs, labels=labels).loss
    for packed in (False, True):
        [found] = twin.model.row_losses(collate([lesson], packed, 0, twin.supply))
        assert float(found.sum) / found.weight == pytest.approx(float(expected), rel=1e-5)
