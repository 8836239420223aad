"""Answers to questions with pictures: token for token those of the library's own generation, in any company."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3Processor,
    GenerationConfig,
    Idefics3Processor,
    LlavaOnevisionProcessor,
    Phi4MultimodalProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.smolvlm import processing_smolvlm

from luthier.errors import RequestError
from luthier.evaluate.generate import Decoding, Generator, prompt_of
from luthier.evaluate.seeing import Prompt, apart
from luthier.models import adapters
from luthier.models.attention import use_packed_attention
from luthier.models.chat import ChatTemplate
from luthier.models.phi3_vision.processor import Phi3VProcessor
from luthier.models.senses.base import SENSES
from luthier.models.senses.spelling import Speller
from luthier.models.senses.supply import Supply
from luthier.models.text_base import TextBase, load_text_base
from luthier.models.toys import TOYS, build_toy
from luthier.recipe_model import LoraSettings, ModelConfig
from luthier.runtime.devices import Devices
from luthier.schema import Message, Part
from support.sightings import ODD_SIZES, facts_of, film, picture

SEEING = sorted(name for name in TOYS if "large" not in name and build_toy(name)[0].config.model_type in SENSES)
QWEN = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor, "qwen3_vl": Qwen3VLProcessor}
TOKENS = 12


@dataclass
class Shelf:
    """A source of media that are at hand, by name."""

    media: dict[str, Any] = field(default_factory=dict)

    def facts(self, kind: str, reference: str) -> Any:
        return facts_of(self.media[reference])

    def load(self, kind: str, reference: str) -> Any:
        return self.media[reference]


SHELF = Shelf({str(number): picture(*size, seed=number) for number, size in enumerate(ODD_SIZES)})
QUESTIONS = {"text": [], "one": ["0"], "three": ["1", "2", "4"], "twice": ["5", "5"]}


@cache
def base_of(name: str) -> TextBase:
    return louder(load_text_base(ModelConfig(base=name)))


def louder(base: TextBase) -> TextBase:
    """A twin whose layers outweigh the embedding of the last token: others say it again and again."""
    if base.family.name == "phi4_multimodal":  # the library counts tokens for crops of 448 alone
        config = copy.deepcopy(base.model.config)
        config.vision_config.image_size = config.vision_config.crop_size = 448
        with torch.random.fork_rng():
            torch.manual_seed(0)
            base.model = type(base.model)(config).eval()
    with torch.no_grad():
        for weight, value in base.model.named_parameters():
            if weight.startswith(base.family.frozen):
                continue
            if "proj" in weight:
                value.mul_(3.0)
            elif "post_" in weight and base.family.name == "gemma3":  # whose norms come after the projections
                value.add_(12.0)
    return base


def speller_of(name: str) -> Speller:
    return Speller(base_of(name).senses, SHELF)  # type: ignore[arg-type]


def asked(name: str, references: list[str], words: str = "what is shown here?") -> Prompt:
    parts = [*(Part("image", media=one) for one in references), Part("text", words)]
    template = ChatTemplate.of(base_of(name).tokenizer)
    return prompt_of(template, [Message("user", tuple(parts))], None, speller_of(name))


def generator(name: str, model: Any = None, batch_size: int = 8) -> Generator:
    base = base_of(name)
    supply = Supply(base.senses, SHELF)  # type: ignore[arg-type]
    template = ChatTemplate.of(base.tokenizer)
    return Generator(base.model if model is None else model, template, Devices("float32"), batch_size, supply)


def library(name: str, prompt: Prompt, references: list[str]) -> dict[str, Any]:
    """What the library's own processor makes of the pictures; its ids are those of the prompt, or fail the test."""
    base = base_of(name)
    pictures = [SHELF.media[one] for one in references]
    if not pictures:
        return {"input_ids": torch.tensor([prompt.ids])}
    text = _template_text(name, references)
    given = _processed(base, text, pictures)
    ids = given["input_ids"].clone()
    ids[ids < 0] = base.senses.slot_ids["image"]
    assert ids[0].tolist() == list(prompt.ids)
    return given


def _template_text(name: str, references: list[str], words: str = "what is shown here?") -> str:
    """The question as the template writes it, before any medium is spelled."""
    base = base_of(name)
    template = ChatTemplate.of(base.tokenizer)
    parts = [*(Part("image", media=one) for one in references), Part("text", words)]
    told = speller_of(name).told([Message("user", tuple(parts))], template)
    return template.write([template.turn(message) for message in told.messages], None, prompt=True).text


def _processed(base: TextBase, text: str, pictures: list[Any]) -> dict[str, Any]:
    kind, tokenizer, senses = base.model.config.model_type, base.tokenizer, base.senses
    words = {"add_special_tokens": False, "return_tensors": "pt"}
    if kind in QWEN:
        return QWEN[kind](senses.images, tokenizer, senses.films)(text=text, images=pictures, **words)
    if kind == "gemma3":
        made = Gemma3Processor(_images(senses), tokenizer, image_seq_length=base.model.config.mm_tokens_per_image)
        return made(text=text, images=pictures, **words)
    if kind == "idefics3":
        made = Idefics3Processor(_images(senses), tokenizer, image_seq_len=_tile(senses, tokenizer))
        return made(text=[text], images=[pictures], **words)
    if kind == "smolvlm":
        with pytest.MonkeyPatch.context() as patch:  # it asks for a package that writes numbers of frames as words
            patch.setattr(processing_smolvlm, "num2words", str)
            films = SmolVLMVideoProcessor()
            made = SmolVLMProcessor(_images(senses), tokenizer, films, image_seq_len=_tile(senses, tokenizer))
            return made(text=[text], images=[pictures], **words)
    if kind == "llava_onevision":
        from luthier.models.senses.toy_llava_onevision import ASPECT_RATIO, processors

        images, films = processors("llava_onevision")
        more = {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "vision_aspect_ratio": ASPECT_RATIO}
        return LlavaOnevisionProcessor(images, tokenizer, films, **more)(text=text, images=pictures, **words)
    if kind == "phi3_v":
        return Phi3VProcessor(_images(senses), tokenizer)(text, pictures)
    found = Phi4MultimodalProcessor(_images(senses), senses.extractor, tokenizer)(text=text, images=pictures, **words)
    found.pop("num_img_tokens", None)
    return found


def _images(senses: Any) -> Any:
    return getattr(senses, "images", None) or senses._images


def _tile(senses: Any, tokenizer: Any) -> int:
    from luthier.models.senses.toy_idefics3 import TOKENS_PER_TILE

    return TOKENS_PER_TILE


@pytest.mark.parametrize("name", SEEING)
@pytest.mark.parametrize("question", QUESTIONS)
def test_greedy_answers_are_those_of_the_librarys_own_generation(name: str, question: str) -> None:
    references = QUESTIONS[question]
    prompt, answering = asked(name, references), generator(name)
    model = adapters.bare(answering.model)
    settings = GenerationConfig(
        max_new_tokens=TOKENS, do_sample=False, eos_token_id=answering.stops, pad_token_id=answering.stops[0]
    )
    given = library(name, prompt, references)
    with torch.no_grad():
        theirs = model.generate(**given, generation_config=settings)[0, len(prompt) :].tolist()
    ours = answering([prompt], Decoding(TOKENS))[0].ids
    assert ours == theirs


@pytest.mark.parametrize("name", SEEING)
def test_every_prompt_of_a_mixed_batch_is_answered_as_alone(name: str) -> None:
    prompts = [asked(name, references) for references in QUESTIONS.values()]
    assert len({len(prompt) for prompt in prompts}) > 2, "padding must matter"
    answering = generator(name)
    together = answering(prompts, Decoding(TOKENS))
    assert len({token for answer in together for token in answer.ids}) > 4, "one token again and again proves little"
    assert together == [answering([prompt], Decoding(TOKENS))[0] for prompt in prompts]
    assert together == replace(answering, batch_size=3)(prompts, Decoding(TOKENS))


@pytest.mark.parametrize("name", ["toy:qwen3-vl", "toy:gemma3-vision", "toy:llava-onevision"])
def test_packed_attention_and_an_adapter_change_nothing_of_how_media_are_read(name: str) -> None:
    config = ModelConfig(base=name, lora=LoraSettings(r=2, alpha=4, dropout=0.5, parts=["language", "encoder"]))
    base = louder(load_text_base(config))
    model = adapters.attach(base, config, {}, 0)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    prompts = [asked(name, references) for references in QUESTIONS.values()]
    model.train()
    before = generator(name, model)(prompts, Decoding(TOKENS))
    assert model.training
    use_packed_attention(adapters.bare(model))
    assert generator(name, model)(prompts, Decoding(TOKENS)) == before
    plain = generator(name)(prompts, Decoding(TOKENS))
    assert plain != before
    with model.disable_adapter():
        assert generator(name, model)(prompts, Decoding(TOKENS)) == plain


@pytest.mark.parametrize("name", SEEING)
def test_another_picture_is_another_answer(name: str) -> None:
    logits = []
    answering = generator(name)
    for reference in ("0", "shift"):
        SHELF.media["shift"] = picture(61, 47, seed=9).rotate(90).resize((61, 47))
        logits.append([one.ids for one in answering([asked(name, [reference])], Decoding(24))])
    SHELF.media.pop("shift")
    assert logits[0] != logits[1]


def test_a_film_is_answered_as_alone_beside_a_picture() -> None:
    name = "toy:qwen3-vl"
    SHELF.media["film"] = film(5)
    parts = (Part("video", media="film"), Part("text", "what happens?"))
    template = ChatTemplate.of(base_of(name).tokenizer)
    prompt = prompt_of(template, [Message("user", parts)], None, speller_of(name))
    answering = generator(name)
    both = answering([prompt, asked(name, ["0"])], Decoding(TOKENS))
    assert both[0] == answering([prompt], Decoding(TOKENS))[0]


def test_answers_drawn_with_one_seed_are_the_same_and_follow_the_probabilities() -> None:
    name = "toy:qwen2-vl"
    prompts, answering = [asked(name, ["0"])] * 400, generator(name, batch_size=400)
    drawn = answering(prompts, Decoding(1, temperature=1.0, seed=5))
    assert drawn == answering(prompts, Decoding(1, temperature=1.0, seed=5))
    assert drawn != answering(prompts, Decoding(1, temperature=1.0, seed=6))
    narrow = answering(prompts, Decoding(1, temperature=1.0, top_p=1e-6))
    assert {answer.ids[0] for answer in narrow} == {answering(prompts[:1], Decoding(1))[0].ids[0]}
    given = library(name, prompts[0], ["0"])
    with torch.no_grad():
        share_V = adapters.bare(answering.model)(**given).logits[0, -1].softmax(-1)
    counts_V = np.bincount([answer.ids[0] for answer in drawn], minlength=len(share_V)) / len(drawn)
    assert float(np.abs(counts_V - share_V.numpy()).max()) < 0.12


def test_a_text_that_outgrows_longrope_is_read_again_by_its_long_positions() -> None:
    name = "toy:phi3-vision"
    base = load_text_base(ModelConfig(base=name))
    config = base.model.config.get_text_config()
    limit = len(asked(name, ["0"])) + 4
    if "original_max_position_embeddings" not in str(config.rope_parameters):
        pytest.skip("this twin's positions are not stretched")
    config.rope_parameters["original_max_position_embeddings"] = limit
    config.original_max_position_embeddings = limit
    model = type(base.model)(config)
    model.load_state_dict(base.model.state_dict())
    prompt, short = asked(name, ["0"]), asked(name, [])
    answering = generator(name, model.eval())
    assert apart(model, [prompt, short], TOKENS) == {0}
    found = answering([prompt, short], Decoding(TOKENS))
    for question, answer in zip((prompt, short), found, strict=True):
        whole = list(question.ids)
        for token in answer.ids:  # the reference: the whole text through the model for every token
            step = Prompt(tuple(whole), question.media)
            assert answering([step], Decoding(1))[0].ids == [token]
            whole.append(token)


def test_media_without_a_supply_are_refused() -> None:
    name = "toy:qwen2-vl"
    with pytest.raises(RequestError, match="nothing supplies them"):
        replace(generator(name), supply=None)([asked(name, ["0"])], Decoding(2))
    text = asked(name, [])
    assert replace(generator(name), supply=None)([text.ids], Decoding(TOKENS)) == generator(name)(
        [text], Decoding(TOKENS)
    )
