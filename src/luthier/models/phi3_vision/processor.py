"""Text with `<|image_1|>` tags and pictures, as the ids and pixels that Phi-3-vision is given.

Decisions, as the published processor has them:
* The text is cut at its tags and each piece is tokenised by itself, special tokens and all: with the published
  tokenizer, every piece begins with BOS and with the blank that SentencePiece puts first, also behind a picture.
* The tag of picture i becomes as many ids -i as the picture has vectors. Tags are numbered 1 to n without gaps, as many
  numbers as pictures; a tag may be repeated, and they need not be in order.
* Without pictures the text is tokenised whole, tags and all: they are no special tokens. We refuse tags there instead.
* `pixel_values` are (pictures, num_crops + 1, 3, side, side), the whole picture, its tiles, then zeros; `image_sizes`
  are (pictures, 2), height and width of the padded picture; `attention_mask` is all ones.
A list of texts is ours to add: the published one takes one text. Rows are padded on the tokenizer's side with its
padding id and mask 0; `images` are then those of all texts, one after another, each text with numbers of its own.
Cutting is refused: half a picture means nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from luthier.models.phi3_vision.image import CLIP_DEVIATION, CLIP_MEAN, layout, tiles

TAG = re.compile(r"<\|image_(\d+)\|>")


class Phi3VImageProcessor(BaseImageProcessor):
    """The HD transform with the settings of preprocessor_config.json."""

    model_input_names: ClassVar[list[str]] = ["pixel_values", "image_sizes"]

    def __init__(
        self,
        num_crops: int = 16,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_DEVIATION,
        num_img_tokens: int = 144,
        image_size: int = 336,
        **kwargs: Any,
    ) -> None:
        """`num_crops` tiles of `image_size` pixels at most, each of them `num_img_tokens` vectors."""
        super().__init__(**kwargs)
        self.num_crops = num_crops
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.num_img_tokens = num_img_tokens
        self.image_size = image_size

    def count_tokens(self, width: int, height: int) -> int:
        """Vectors of a picture of width x height pixels."""
        return layout(width, height, self.num_crops, self.image_size).tokens(round(self.num_img_tokens**0.5))

    def tiles(self, picture: Image.Image) -> torch.Tensor:
        """(T, 3, S, S) of a picture: the whole of it, then its tiles."""
        shown = picture if picture.mode == "RGB" else picture.convert("RGB")
        return tiles(shown, self.num_crops, self.image_size, self.image_mean, self.image_std)

    def preprocess(
        self, images: Image.Image | Sequence[Image.Image], return_tensors: str | None = None
    ) -> BatchFeature:
        """`pixel_values`, `image_sizes` and `num_img_tokens` of pictures."""
        pictures = [images] if isinstance(images, Image.Image) else list(images)
        if not all(isinstance(picture, Image.Image) for picture in pictures):
            raise ValueError("pictures are PIL images")
        side = self.image_size
        stacked = torch.zeros(len(pictures), self.num_crops + 1, 3, side, side)
        sizes, counts = [], []
        for place, picture in enumerate(pictures):
            found = self.tiles(picture)
            stacked[place, : len(found)] = found
            grid = layout(*picture.size, self.num_crops, side)
            sizes.append([grid.rows * side, grid.columns * side])
            counts.append(self.count_tokens(*picture.size))
        data = {"pixel_values": stacked, "image_sizes": sizes, "num_img_tokens": counts}
        return BatchFeature(data, tensor_type=return_tensors)


class Phi3VProcessor(ProcessorMixin):
    """A tokenizer and an image processor."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self,
        text: str | Sequence[str],
        images: Image.Image | Sequence[Image.Image] | None = None,
        padding: bool | str = False,
        truncation: bool | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """`input_ids` and `attention_mask`, with pictures also `pixel_values` and `image_sizes`.

        Raises ValueError where tags and pictures do not go together, and for truncation.
        """
        if truncation:
            raise ValueError("a text with pictures is not cut: leave out truncation, shorten the text")
        if padding not in (False, True, "longest"):
            raise ValueError(f"padding is {padding!r}: texts are padded to the longest, or not at all")
        texts = [text] if isinstance(text, str) else list(text)
        pictures = [images] if isinstance(images, Image.Image) else list(images or ())
        seen = self.image_processor.preprocess(pictures, return_tensors="pt") if pictures else {}
        counts = seen["num_img_tokens"].tolist() if pictures else []
        rows, used = [], 0
        for one in texts:
            numbers = {int(number) for number in TAG.findall(one)}
            rows.append(self._ids(one, numbers, counts[used : used + len(numbers)]))
            used += len(numbers)
        if used != len(pictures):
            raise ValueError(f"the tags of the text name {used} pictures, and {len(pictures)} are given")
        data = self._padded(rows, padding)
        data.update({key: seen[key] for key in ("pixel_values", "image_sizes") if pictures})
        return BatchFeature(data, tensor_type=return_tensors)

    def _ids(self, text: str, numbers: set[int], counts: Sequence[int]) -> list[int]:
        if numbers != set(range(1, len(counts) + 1)):
            raise ValueError(f"the tags of a text are numbered {sorted(numbers)}; there are {len(counts)} pictures")
        pieces = TAG.split(text)
        ids = list(self.tokenizer(pieces[0])["input_ids"])
        for number, piece in zip(map(int, pieces[1::2]), pieces[2::2], strict=True):
            ids += [-number] * counts[number - 1]
            ids += self.tokenizer(piece)["input_ids"]
        return ids

    def _padded(self, rows: Sequence[list[int]], padding: bool | str) -> dict[str, Any]:
        longest = max(map(len, rows))
        if not padding:
            return {"input_ids": list(rows), "attention_mask": [[1] * len(row) for row in rows]}
        left = self.tokenizer.padding_side == "left"
        ids, masks = [], []
        for row in rows:
            blank, ones = [self.tokenizer.pad_token_id] * (longest - len(row)), [1] * len(row)
            ids.append(blank + row if left else row + blank)
            masks.append([0] * len(blank) + ones if left else ones + [0] * len(blank))
        return {"input_ids": ids, "attention_mask": masks}
