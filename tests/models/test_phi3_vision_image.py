"""The HD transform and the processor beside what the published preprocessing calls: torchvision, and plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from luthier.models.phi3_vision import Phi3VImageProcessor, Phi3VProcessor
from luthier.models.phi3_vision.image import CLIP_DEVIATION, CLIP_MEAN, layout, padded_picture, tiles
from luthier.models.senses.toy_phi3_vision import image_processor, tokenizer

SIDE = 28


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def padded_as_published(image: Image.Image, most: int, side: int) -> Image.Image:
    """The same by torchvision's own functions on PIL pictures, as the published code calls them."""
    functional = pytest.importorskip("torchvision.transforms.functional")
    turned = image.width < image.height
    if turned:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    ratio = image.width / image.height
    scale = max(number for number in range(1, most + 1) if number * np.ceil(number / ratio) <= most)
    image = functional.resize(image, [int(scale * side / ratio), scale * side])
    missing = int(np.ceil(image.height / side) * side) - image.height
    above = int(missing / 2)
    image = functional.pad(image, [0, above, 0, missing - above], fill=[255, 255, 255])
    return image.transpose(Image.Transpose.TRANSPOSE) if turned else image


def tiles_by_loops(image: Image.Image, most: int, side: int) -> np.ndarray:
    """Tile by tile and channel by channel."""
    padded = padded_as_published(image, most, side)
    values = np.asarray(padded, dtype=np.uint8).astype(np.float32) / np.float32(255)
    values = (values - np.float32(CLIP_MEAN)) / np.float32(CLIP_DEVIATION)
    whole = torch.from_numpy(values.transpose(2, 0, 1).copy())[None]
    found = [torch.nn.functional.interpolate(whole, (side, side), mode="bicubic")[0].numpy()]
    for top in range(0, padded.height, side):
        for left in range(0, padded.width, side):
            found.append(values[top : top + side, left : left + side].transpose(2, 0, 1))
    return np.stack(found)


@pytest.mark.parametrize(
    ("size", "most", "tokens"),
    [
        # Published figures: 1,921 for 4:3 (12 tiles), 2,509 for a square, 757 for Phi-3.5-vision's four tiles.
        ((1024, 768), 16, 1921),
        ((500, 500), 16, 2509),
        ((500, 500), 4, 757),
        ((8000, 500), 16, (16 + 1) * 144 + 1 + (1 + 1) * 12),
        ((500, 8000), 16, (16 + 1) * 144 + 1 + (16 + 1) * 12),
    ],
)
def test_a_picture_takes_the_published_number_of_tokens(size: tuple[int, int], most: int, tokens: int) -> None:
    assert layout(*size, most, 336).tokens(12) == tokens


@given(width=st.integers(1, 3000), height=st.integers(1, 3000), most=st.integers(1, 20))
def test_tokens_are_lines_of_tiles_with_separators_and_the_whole_picture(width: int, height: int, most: int) -> None:
    found = layout(width, height, most, 336)
    assert 1 <= found.rows * found.columns <= most
    assert found.tokens(12) == found.rows * 12 * (found.columns * 12 + 1) + 1 + 12 * 13
    turned = layout(height, width, most, 336)
    if width != height:
        assert (turned.rows, turned.columns) == (found.columns, found.rows)


@settings(max_examples=40)
@given(width=st.integers(1, 160), height=st.integers(1, 160), most=st.integers(1, 9))
def test_tiles_are_those_of_the_published_calls_bit_by_bit(width: int, height: int, most: int) -> None:
    image = picture(width, height, seed=width)
    if layout(width, height, most, SIDE).height > 1:
        assert padded_picture(image, most, SIDE).tobytes() == padded_as_published(image, most, SIDE).tobytes()
        assert np.array_equal(tiles(image, most, SIDE).numpy(), tiles_by_loops(image, most, SIDE))


def test_a_strip_that_the_published_code_fails_on_is_one_pixel_high() -> None:
    strip = picture(900, 1)
    with pytest.raises(ValueError, match="height and width must be"):
        padded_as_published(strip, 16, SIDE)
    assert layout(900, 1, 16, SIDE).height == 1
    assert tiles(strip, 16, SIDE).shape == (17, 3, SIDE, SIDE)
    assert tiles(picture(1, 900), 16, SIDE).shape == (17, 3, SIDE, SIDE)


def test_the_rows_of_padding_are_white_and_the_odd_one_is_below() -> None:
    padded = np.asarray(padded_picture(Image.new("RGB", (100, 33)), 3, SIDE))
    white = np.flatnonzero((padded == 255).all((1, 2)))
    content = np.flatnonzero((padded == 0).all((1, 2)))
    missing = SIDE - len(content)
    assert padded.shape[:2] == (SIDE, 3 * SIDE)
    assert len(content) == int(3 * SIDE / (100 / 33))
    assert len(white) == missing
    assert content[0] == missing // 2


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_the_image_processor_stacks_pictures_with_zeros_behind_their_tiles(mode: str) -> None:
    processor = Phi3VImageProcessor(num_crops=4, num_img_tokens=4, image_size=SIDE)
    images = [picture(40, 30).convert(mode), picture(20, 90)]
    found = processor(images, return_tensors="pt")
    assert found["pixel_values"].shape == (2, 5, 3, SIDE, SIDE)
    assert found["pixel_values"].dtype == torch.float32
    for number, image in enumerate(images):
        real = tiles_by_loops(image.convert("RGB"), 4, SIDE)
        assert np.array_equal(found["pixel_values"][number, : len(real)].numpy(), real)
        assert not found["pixel_values"][number, len(real) :].any()
        rows, columns = (side // SIDE for side in found["image_sizes"][number].tolist())
        assert rows * columns + 1 == len(real)
        assert int(found["num_img_tokens"][number]) == (rows * columns + 1) * 4 + 1 + (rows + 1) * 2


@pytest.fixture(scope="module")
def processor() -> Phi3VProcessor:
    return Phi3VProcessor(image_processor(), tokenizer())


def test_ids_are_the_pieces_around_the_tags_and_negative_numbers(processor: Phi3VProcessor) -> None:
    images = [picture(40, 30), picture(20, 90)]
    counts = [processor.image_processor.count_tokens(*image.size) for image in images]
    ask = processor.tokenizer
    found = processor("<|user|>\n<|image_2|> one \n<|image_1|><|image_2|><|end|>", images)
    wanted = [*ask("<|user|>\n").input_ids, *[-2] * counts[1], *ask(" one \n").input_ids, *[-1] * counts[0]]
    wanted += [*ask("").input_ids, *[-2] * counts[1], *ask("<|end|>").input_ids]
    assert found["input_ids"].tolist() == [wanted]
    assert found["attention_mask"].tolist() == [[1] * len(wanted)]
    assert ask("").input_ids == [ask.bos_token_id]


@pytest.mark.parametrize(
    ("text", "pictures"),
    [
        ("<|image_1|>", 0),
        ("no tag", 1),
        ("<|image_1|>", 2),
        ("<|image_2|>", 1),
        ("<|image_1|><|image_3|>", 2),
        ("<|image_0|>", 1),
    ],
)
def test_tags_that_do_not_go_with_the_pictures_are_refused(processor: Phi3VProcessor, text: str, pictures: int) -> None:
    with pytest.raises(ValueError, match="tags of"):
        processor(text, [picture(30, 30)] * pictures)


def test_cutting_and_other_padding_are_refused(processor: Phi3VProcessor) -> None:
    with pytest.raises(ValueError, match="not cut"):
        processor("a", truncation=True)
    with pytest.raises(ValueError, match="max_length"):
        processor("a", padding="max_length")


def test_several_texts_are_padded_on_the_side_of_the_tokenizer(processor: Phi3VProcessor) -> None:
    texts = ["<|image_1|>what", "none", "<|image_1|>a<|image_2|>"]
    images = [picture(30, 30), picture(90, 30), picture(7, 300)]
    processor.tokenizer.padding_side = "left"
    found = processor(texts, images, padding=True)
    alone = [processor(texts[0], images[:1]), processor(texts[1]), processor(texts[2], images[1:])]
    width = max(one["input_ids"].shape[1] for one in alone)
    for row, one in enumerate(alone):
        ids = one["input_ids"][0].tolist()
        missing = width - len(ids)
        assert found["input_ids"][row].tolist() == [processor.tokenizer.pad_token_id] * missing + ids
        assert found["attention_mask"][row].tolist() == [0] * missing + [1] * len(ids)
    assert torch.equal(found["pixel_values"], torch.cat([one["pixel_values"] for one in (alone[0], alone[2])]))


def test_a_picture_of_one_pixel_is_made_as_large_as_any() -> None:
    found = layout(1, 1, 16, 336)
    assert (found.width, found.height, found.rows, found.columns) == (1344, 1344, 4, 4)
