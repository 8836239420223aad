"""Phi-3-vision beside a second implementation of it, and beside itself: alone, cached, saved, tuned."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoProcessor, CLIPVisionModel, Phi3Config, Phi3ForCausalLM

from luthier.models.attention import use_packed_attention
from luthier.models.families import text_family_of
from luthier.models.phi3_vision import Phi3VForCausalLM, Phi3VProcessor
from luthier.models.senses.toy_phi3_vision import ORIGINAL_POSITIONS, image_processor
from luthier.models.toys import build_toy

ASK = "<|user|>\n{}What is shown?<|end|>\n<|assistant|>\n"


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


ODD = [picture(40, 30, 1), picture(1, 90, 2), picture(300, 17, 3), picture(3, 3, 4), picture(64, 64, 5)]
ROWS = [[], [0], [1, 2], [2, 3, 4], [1]]
"""Which of ODD a row holds."""


@pytest.fixture(scope="module")
def toy() -> Phi3VForCausalLM:
    return build_toy("toy:phi3-vision")[0]


@pytest.fixture(scope="module")
def processor() -> Phi3VProcessor:
    return Phi3VProcessor(image_processor(), build_toy("toy:phi3-vision")[1])


def inputs(processor: Phi3VProcessor, held: list[int]) -> dict[str, torch.Tensor]:
    tags = "".join(f"<|image_{number}|> " for number in range(1, len(held) + 1))
    return dict(processor(ASK.format(tags), [ODD[one] for one in held]))


class Second:
    """The same model from its weights, written another way: the library's CLIP and Phi-3, and loops over patches."""

    def __init__(self, model: Phi3VForCausalLM) -> None:
        state, config = model.state_dict(), model.config
        self.eyes = {name.removeprefix("model.vision_embed_tokens."): value for name, value in state.items()}
        begin = "img_processor.vision_model."
        clip = {name.removeprefix(begin): value for name, value in self.eyes.items() if name.startswith(begin)}
        self.clip = CLIPVisionModel(config.vision_config).eval()
        prefix = "vision_model." if any(name.startswith("vision_model.") for name in self.clip.state_dict()) else ""
        self.clip.load_state_dict({prefix + name: value for name, value in clip.items()})
        keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        keys += ("num_key_value_heads", "max_position_embeddings", "original_max_position_embeddings", "pad_token_id")
        plain = Phi3Config(**{key: getattr(config, key) for key in keys}, rope_parameters=dict(config.rope_parameters))
        self.text = Phi3ForCausalLM(plain).eval()
        self.text.load_state_dict({name: value for name, value in state.items() if "vision_embed_tokens" not in name})
        self.patches = config.vision_config.image_size // config.vision_config.patch_size

    @torch.no_grad()
    def vectors(self, tiles: torch.Tensor, rows: int, columns: int) -> list[torch.Tensor]:
        """One picture, vector by vector."""
        patches = [self.clip(one[None], output_hidden_states=True).hidden_states[-2][0, 1:] for one in tiles]
        separator, found = self.eyes["sub_GN"][0, 0, 0], []

        def line(tile: torch.Tensor, y: int) -> list[torch.Tensor]:
            at = [
                [(2 * y + down) * self.patches + 2 * x + right for down in (0, 1) for right in (0, 1)]
                for x in range(self.patches // 2)
            ]
            return [torch.cat([tile[place] for place in four]) for four in at]

        for row in range(rows):
            for y in range(self.patches // 2):
                for column in range(columns):
                    found += line(patches[1 + row * columns + column], y)
                found.append(separator)
        found.append(self.eyes["glb_GN"][0, 0])
        for y in range(self.patches // 2):
            found += [*line(patches[0], y), separator]
        return [self.projected(one) for one in found]

    def projected(self, vector: torch.Tensor) -> torch.Tensor:
        hidden = self.eyes["img_projection.0.weight"] @ vector + self.eyes["img_projection.0.bias"]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        return self.eyes["img_projection.2.weight"] @ hidden + self.eyes["img_projection.2.bias"]

    @torch.no_grad()
    def logits(self, given: dict[str, torch.Tensor]) -> torch.Tensor:
        """(L, V) of one row."""
        embeds, side = [], 7 * self.patches
        seen = []
        for tiles, size in zip(given.get("pixel_values", ()), given.get("image_sizes", ()), strict=True):
            rows, columns = (int(length) // side for length in size)
            seen += self.vectors(tiles[: 1 + rows * columns], rows, columns)
        for token in given["input_ids"][0].tolist():
            embeds.append(seen.pop(0) if token < 0 else self.text.model.embed_tokens.weight[token])
        assert not seen
        return self.text(inputs_embeds=torch.stack(embeds)[None]).logits[0]


@pytest.mark.parametrize("held", ROWS)
def test_logits_are_those_of_a_second_implementation(
    toy: Phi3VForCausalLM, processor: Phi3VProcessor, held: list[int]
) -> None:
    given = inputs(processor, held)
    with torch.no_grad():
        found = toy(**given).logits[0]
    assert torch.allclose(found, Second(toy).logits(given), atol=2e-6)


def test_other_pictures_give_other_logits(toy: Phi3VForCausalLM, processor: Phi3VProcessor) -> None:
    one, other = (
        processor(ASK.format("<|image_1|>"), [Image.new("RGB", (30, 30), colour)]) for colour in ("red", "blue")
    )
    with torch.no_grad():
        assert (toy(**one).logits[0, -1] - toy(**other).logits[0, -1]).abs().max() > 0.05


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_of_rows_with_and_without_pictures_is_each_row_alone(
    toy: Phi3VForCausalLM, processor: Phi3VProcessor, side: str
) -> None:
    tags = ["".join(f"<|image_{number}|> " for number in range(1, len(held) + 1)) for held in ROWS]
    processor.tokenizer.padding_side = side
    images = [ODD[one] for held in ROWS for one in held]
    batch = processor([ASK.format(tag) for tag in tags], images, padding=True)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        together = toy(**batch, position_ids=positions).logits
        for row, held in enumerate(ROWS):
            alone = toy(**inputs(processor, held)).logits[0]
            assert torch.allclose(together[row, batch["attention_mask"][row].bool()], alone, atol=2e-6)


def test_loss_is_the_cross_entropy_of_the_words(toy: Phi3VForCausalLM, processor: Phi3VProcessor) -> None:
    given = inputs(processor, [0, 1])
    labels = given["input_ids"].masked_fill(given["input_ids"] < 0, -100)
    with torch.no_grad():
        found = toy(**given, labels=labels)
    wanted = torch.nn.functional.cross_entropy(found.logits[0, :-1], labels[0, 1:])
    assert torch.allclose(found.loss, wanted)


def test_pictures_of_tags_out_of_order_stand_at_their_own_tags(
    toy: Phi3VForCausalLM, processor: Phi3VProcessor
) -> None:
    text = ASK.format("<|image_{}|>and<|image_{}|>")
    with torch.no_grad():
        found = toy(**processor(text.format(2, 1), [ODD[1], ODD[0]])).logits
        assert torch.equal(found, toy(**processor(text.format(1, 2), [ODD[0], ODD[1]])).logits)


def test_places_and_pictures_that_do_not_go_together_are_refused(
    toy: Phi3VForCausalLM, processor: Phi3VProcessor
) -> None:
    given = inputs(processor, [0])
    with pytest.raises(ValueError, match="there are no pixel_values"):
        toy(given["input_ids"])
    with pytest.raises(ValueError, match="without image_sizes"):
        toy(given["input_ids"], pixel_values=given["pixel_values"])
    with pytest.raises(ValueError, match="places of pictures"):
        toy(**{**given, "input_ids": given["input_ids"][:, :10]})
    with pytest.raises(ValueError, match="each tag once"):
        toy(**processor("<|image_1|>, again <|image_1|>", [ODD[0]]))
    with pytest.raises(ValueError, match="inputs_embeds"):
        toy(inputs_embeds=torch.zeros(1, 3, 32), pixel_values=given["pixel_values"])


def test_generation_with_a_cache_is_generation_without(toy: Phi3VForCausalLM, processor: Phi3VProcessor) -> None:
    processor.tokenizer.padding_side = "left"
    tags = ["<|image_1|><|image_2|>", "", "<|image_1|>"]
    batch = processor([ASK.format(tag) for tag in tags], ODD[:3], padding=True)
    fast, slow = (toy.generate(**batch, max_new_tokens=6, do_sample=False, use_cache=cache) for cache in (True, False))
    assert torch.equal(fast, slow)
    alone = toy.generate(**processor(ASK.format(tags[2]), ODD[2:3]), max_new_tokens=6, do_sample=False)
    assert torch.equal(fast[2, -6:], alone[0, -6:])


def test_several_answers_to_a_row_see_all_of_its_pictures(toy: Phi3VForCausalLM, processor: Phi3VProcessor) -> None:
    processor.tokenizer.padding_side = "left"
    tags = ["<|image_1|><|image_2|>", "", "<|image_1|>"]
    batch = processor([ASK.format(tag) for tag in tags], ODD[:3], padding=True)
    ids, rest = toy._expand_inputs_for_generation(expand_size=2, **batch)
    with torch.no_grad():
        assert torch.equal(toy(ids, **rest).logits[::2], toy(**batch).logits)
        assert torch.equal(toy(ids, **rest).logits[1::2], toy(**batch).logits)


def test_a_sequence_that_outgrows_the_short_factors_is_read_again_with_its_pictures(
    toy: Phi3VForCausalLM, processor: Phi3VProcessor
) -> None:
    given = inputs(processor, [0])
    filler = torch.full((1, ORIGINAL_POSITIONS - given["input_ids"].shape[1] - 3), 50)
    given["input_ids"] = torch.cat([given["input_ids"], filler], dim=1)
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    fast, slow = (toy.generate(**given, max_new_tokens=6, do_sample=False, use_cache=cache) for cache in (True, False))
    assert torch.equal(fast, slow)


def test_a_saved_model_has_its_published_names_and_is_reloaded_bit_equal(
    toy: Phi3VForCausalLM, processor: Phi3VProcessor, tmp_path: Path
) -> None:
    toy.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(toy.state_dict())
        assert all(torch.equal(file.get_tensor(name), value) for name, value in toy.state_dict().items())
    again, told = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    given, read = inputs(processor, [0, 2]), AutoProcessor.from_pretrained(tmp_path, trust_remote_code=False)
    with torch.no_grad():
        assert torch.equal(again.eval()(**given).logits, toy(**given).logits)
    assert type(read) is Phi3VProcessor
    assert all(torch.equal(value, given[key]) for key, value in inputs(read, [0, 2]).items())


def test_the_shared_embedding_that_some_tools_save_twice_is_left_aside(toy: Phi3VForCausalLM, tmp_path: Path) -> None:
    toy.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["model.vision_embed_tokens.wte.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, told = Phi3VForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]


SIGHT = r"model\.vision_embed_tokens\.(img_projection\.[02]|img_processor.*layers\.0\.self_attn\.(q|v)_proj)"


@pytest.mark.parametrize("targets", ["language", "projector and encoder"])
def test_lora_trains_and_is_reloaded_bit_equal(
    toy: Phi3VForCausalLM, processor: Phi3VProcessor, targets: str, tmp_path: Path
) -> None:
    pattern = text_family_of(toy).decoder_pattern if targets == "language" else SIGHT
    model = get_peft_model(build_toy("toy:phi3-vision")[0], LoraConfig(r=4, target_modules=pattern))
    given = inputs(processor, [0, 1, 2])
    labels = given["input_ids"].masked_fill(given["input_ids"] < 0, -100)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    for step in range(2):  # the first step moves B alone
        optimizer.zero_grad()
        loss = model(**given, labels=labels).loss
        loss.backward()
        optimizer.step()
        if step:
            assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in trained)
    model.eval().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build_toy("toy:phi3-vision")[0], tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**given).logits, model(**given).logits)
        assert not torch.equal(again(**given).logits, toy(**given).logits)


def test_gradients_are_the_same_with_checkpoints_and_with_packed_attention(processor: Phi3VProcessor) -> None:
    given = inputs(processor, [0, 1])
    found = []
    for kind in ("plain", "checkpoints", "packed"):
        model = build_toy("toy:phi3-vision")[0].train()
        if kind == "checkpoints":
            model.gradient_checkpointing_enable()
        if kind == "packed":
            use_packed_attention(model)
        model(**given, labels=given["input_ids"].clamp_min(0)).loss.backward()
        found.append({name: weight.grad for name, weight in model.named_parameters()})
    dead = {name for name, gradient in found[0].items() if gradient is None}
    assert dead
    assert all("layers.1." in name or "post_layernorm" in name for name in dead)
    for other in found[1:]:
        assert {name for name, gradient in other.items() if gradient is None} == dead
        for name in found[0].keys() - dead:
            assert torch.allclose(found[0][name], other[name], atol=1e-6), name
