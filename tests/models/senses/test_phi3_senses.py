"""The eyes of Phi-3-vision: ids beside the processor's, vectors beside the model's forward, company, gradients."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from luthier.data.mediasource import Facts
from luthier.errors import RequestError, SourceError
from luthier.models.attention import packed_kwargs, use_packed_attention
from luthier.models.head import Head
from luthier.models.phi3_vision import Phi3VForCausalLM, Phi3VProcessor
from luthier.models.senses.base import senses_of
from luthier.models.senses.phi3_vision import Phi3VisionSenses
from luthier.models.senses.toy_phi3_vision import image_processor
from luthier.models.toys import build_toy

NAME = "toy:phi3-vision"
TAG = "<|image_{}|>"
USERS_TEXT = "<|user|>\n<|image_1|>What is shown in this image?<|end|><|assistant|>\nProduct: T, Category: C<|end|>"
"""MISSION 3."""


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


ODD = [picture(40, 30, 1), picture(1, 90, 2), picture(300, 17, 3)]


@pytest.fixture(scope="module")
def toy() -> tuple[Phi3VForCausalLM, Any]:
    return build_toy(NAME)[:2]


@pytest.fixture(scope="module")
def senses(toy: tuple[Phi3VForCausalLM, Any]) -> Phi3VisionSenses:
    found = senses_of(*toy, NAME)
    assert isinstance(found, Phi3VisionSenses)
    return found


def sentencepiece(folder: Path, model_type: str = "phi3_v", strips: bool = False, first_only: bool = False) -> Any:
    """A tokenizer as Phi-3-vision's tokenizer.json has it: a blank put before every piece, bytes for the unknown, BOS
    by template, and turns that swallow the blanks behind them. `strips`: its <|image|> swallows blanks before it."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if first_only:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False, max_token_length=8)
    made.train_from_iterator(["What is shown in this image? Product: red dress, Category: dress"] * 3, trainer)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    turns = ("<|user|>", "<|end|>", "<|assistant|>")
    tokens = [AddedToken(token, special=True, normalized=False, rstrip=token in turns) for token in turns]
    tokens += [AddedToken("<|image|>", special=True, normalized=False, lstrip=strips)]
    tokens += [AddedToken("<|placeholder5|>", special=True, normalized=False)]
    made.add_special_tokens(tokens)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "<|end|>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**about, "pad_token": "<|end|>", "legacy": False}))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def agree(senses: Phi3VisionSenses, tokenizer: Any, text: str, pictures: list[Image.Image]) -> None:
    """A text spelled and tokenised whole has the processor's ids, but for what stands at the slots."""
    wanted = Phi3VProcessor(image_processor(), tokenizer)(text, pictures)["input_ids"][0]
    wanted[wanted < 0] = senses.slot_ids["image"]
    for number, image in enumerate(pictures, 1):
        text = text.replace(senses.mark("image", number), senses.spell(Facts("image", *image.size)))
    assert tokenizer(text)["input_ids"] == wanted.tolist()


WILD = st.text(st.one_of(st.sampled_from(" \n\t<|>sab"), st.characters(codec="utf-8")), max_size=12)
PIECES = st.lists(st.one_of(WILD, st.sampled_from(["<|user|>\n", "<|end|>\n", "<|assistant|>", "\n"])), max_size=3)


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(PIECES.map("".join), min_size=1, max_size=4))
def test_ids_of_wild_texts_are_the_processors(toy: Any, senses: Phi3VisionSenses, pieces: list[str]) -> None:
    text = pieces[0] + "".join(TAG.format(number) + piece for number, piece in enumerate(pieces[1:], 1))
    agree(senses, toy[1], text, ODD[: len(pieces) - 1])


@pytest.fixture(scope="module")
def blanks(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Phi3VisionSenses, Any]:
    tokenizer = sentencepiece(tmp_path_factory.mktemp("blanks"))
    return Phi3VisionSenses(toy[0].config, tokenizer, image_processor()), tokenizer


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(PIECES.map("".join), min_size=1, max_size=4))
def test_ids_of_wild_texts_are_the_processors_with_sentencepiece_blanks(blanks: Any, pieces: list[str]) -> None:
    text = pieces[0] + "".join(TAG.format(number) + piece for number, piece in enumerate(pieces[1:], 1))
    agree(*blanks, text, ODD[: len(pieces) - 1])


def test_the_users_training_text_has_the_processors_ids(toy: Any, senses: Phi3VisionSenses, blanks: Any) -> None:
    agree(senses, toy[1], USERS_TEXT, ODD[:1])
    agree(*blanks, USERS_TEXT, ODD[:1])


def test_a_slot_token_that_swallows_blanks_gives_way_to_a_placeholder(toy: Any, tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path, strips=True)
    found = Phi3VisionSenses(toy[0].config, tokenizer, image_processor())
    assert found.slot_token("image") == "<|placeholder5|>"
    agree(found, tokenizer, "a \n<|image_1|> b", ODD[:1])


def test_a_tokenizer_that_reads_on_otherwise_behind_a_picture_is_refused(toy: Any, tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path, "llama", first_only=True)
    with pytest.raises(RequestError, match=r"no token of its tokenizer.*\n?.*tokenizer\.json"):
        Phi3VisionSenses(toy[0].config, tokenizer, image_processor())


def test_an_image_processor_of_another_size_is_refused(toy: Any) -> None:
    images = image_processor()
    images.image_size = 336
    with pytest.raises(RequestError, match="tiles of 336 pixels"):
        Phi3VisionSenses(toy[0].config, toy[1], images)


def test_settings_come_from_the_folder_of_the_base(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="Phi3VImageProcessor"):
        senses_of(*toy, str(tmp_path))
    images = image_processor()
    images.num_crops = 3
    images.save_pretrained(tmp_path)
    found = senses_of(*toy, str(tmp_path))
    assert found is not None
    assert found.slots(Facts("image", 90, 30)) == (3 + 1) * 4 + 1 + (1 + 1) * 2
    assert found.digest() != senses_of(*toy, NAME).digest()


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400))
def test_slots_are_those_that_are_prepared_and_encoded(toy: Any, senses: Any, width: int, height: int) -> None:
    facts = Facts("image", width, height)
    prepared = senses.prepare("image", picture(width, height))
    assert prepared.slots == senses.slots(facts)
    assert prepared.grid == senses.grid(facts)
    with torch.no_grad():
        (found,) = senses.encode(toy[0], [prepared])
    assert found.shape == (1, prepared.slots, 32)


def test_a_picture_is_the_same_in_company(toy: Any, senses: Phi3VisionSenses) -> None:
    prepared = [senses.prepare("image", image) for image in ODD]
    with torch.no_grad():
        together = senses.encode(toy[0], prepared)
        for one, found in zip(prepared, together, strict=True):
            assert torch.allclose(senses.encode(toy[0], [one])[0], found, atol=1e-6)
    assert senses.encode(toy[0], []) == []


def embedded(model: Any, senses: Phi3VisionSenses, ids_L: torch.Tensor, pictures: list[Image.Image]) -> torch.Tensor:
    """(L, D) of a row as batches make them: words, then vectors at the slots."""
    slots_L = ids_L == senses.slot_ids["image"]
    embeds_LD = model.get_input_embeddings()(ids_L).masked_fill(slots_L[:, None], 0.0)
    vectors = senses.encode(model, [senses.prepare("image", image) for image in pictures])
    if vectors:
        embeds_LD = embeds_LD.masked_scatter(slots_L[:, None], torch.cat(vectors, dim=1)[0])
    return embeds_LD


def test_the_decoder_with_vectors_gives_the_models_own_logits(senses: Phi3VisionSenses) -> None:
    model, tokenizer, _ = build_toy(NAME)
    processor, rows = Phi3VProcessor(image_processor(), tokenizer), [[0, 1, 2], [], [1]]
    ids, embeds, wanted = [], [], []
    with torch.no_grad():
        for held in rows:
            text = (
                "<|user|>\n" + "".join(TAG.format(number) + " so" for number in range(1, len(held) + 1)) + "?<|end|>\n"
            )
            images = [ODD[one] for one in held]
            given = processor(text, images)
            wanted.append(model(**given).logits[0])
            ids.append(given["input_ids"][0])
            row_ids = ids[-1].masked_fill(ids[-1] < 0, senses.slot_ids["image"])
            embeds.append(embedded(model, senses, row_ids, images))
        use_packed_attention(model)
        lengths = [len(row) for row in ids]
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        hidden = senses.decoder(model)(
            inputs_embeds=torch.cat(embeds)[None], position_ids=positions, **packed_kwargs(lengths, "cpu")
        ).last_hidden_state
        assert torch.allclose(Head.of(model).logits(hidden)[0], torch.cat(wanted), atol=1e-5)


def test_gradients_reach_all_that_is_named_as_encoder_and_projector(senses: Phi3VisionSenses) -> None:
    model = build_toy(NAME)[0]
    sum(
        found.square().sum() for found in senses.encode(model, [senses.prepare("image", image) for image in ODD])
    ).backward()
    named = (*senses.encoders["image"], *senses.projectors["image"])
    for name, weight in model.named_parameters():
        reached = weight.grad is not None and bool(weight.grad.abs().max() > 0)
        # CLIP's keys have a bias that no attention depends on.
        if not name.endswith("k_proj.bias"):
            assert reached == any(name == one or name.startswith(f"{one}.") for one in named), name
