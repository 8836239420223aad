"""Phi-3-vision: transformers' Phi-3 decoder with a picture embedding beside its words.

Names in `state_dict` are those of the published safetensors: `model.embed_tokens.weight`,
`model.vision_embed_tokens.{glb_GN,sub_GN,img_projection.0.*,img_projection.2.*,img_processor.vision_model.*}`,
`model.layers.N.*`, `model.norm.weight`, `lm_head.weight`. Decisions:
* Ids below 0 and above -1e9 are places of pictures: -1 of the first picture of a row, -2 of the second. As embeddings
  they are read as id 0, and overwritten.
* `pixel_values` and `image_sizes` hold the pictures of all rows one after another. Vectors go to the places row by row,
  in a row by picture (-1 before -2), in a picture from left to right. For tags in order that is the published order,
  from left to right; for tags out of order the published code gives a picture another's place, and this does not.
* As many places as vectors, else ValueError: a tag that is written twice is therefore refused by the model, though the
  processor gives its ids, as the published one does. A picture's places without `pixel_values` are refused too.
* Some tools save the shared embedding a second time as `model.vision_embed_tokens.wte.weight`; it is left aside.
* With `inputs_embeds` pictures are in them already. Generation gives the pictures to the first step alone, and again
  where the sequence outgrows the short factors of long-rope and its cache is made anew.

Shapes: B rows, L tokens, D width of the decoder, N pictures, T tiles, S side of a tile, V vectors of a picture.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import Phi3ForCausalLM, Phi3Model, Phi3PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from luthier.models.phi3_vision.configuration import Phi3VConfig
from luthier.models.phi3_vision.embedding import Phi3VImageEmbedding

NO_PICTURE = -1_000_000_000
"""Ids from here down are no places of pictures; 0 and above are words."""


class Phi3VPreTrainedModel(Phi3PreTrainedModel):
    """What loading and saving know of the architecture."""

    config: Phi3VConfig
    config_class = Phi3VConfig
    input_modalities = ("image", "text")
    _no_split_modules: ClassVar[list[str]] = ["Phi3DecoderLayer", "CLIPEncoderLayer"]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        r"vision_embed_tokens\.wte\.weight$",
        r"embeddings\.position_ids$",
    ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Phi3VImageEmbedding):
            for separator in (module.glb_GN, module.sub_GN):
                init.normal_(separator, mean=0.0, std=self.config.initializer_range)


class Phi3VModel(Phi3VPreTrainedModel, Phi3Model):
    """The decoder without a head, and its eyes."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.vision_embed_tokens = Phi3VImageEmbedding(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As Phi3Model, with pictures: `pixel_values` (N, T, 3, S, S), `image_sizes` (N, 2) as height and width."""
        if inputs_embeds is None and input_ids is not None:
            inputs_embeds = self.embed(input_ids, pixel_values, image_sizes)
        elif pixel_values is not None:
            raise ValueError("pixel_values go with input_ids; put the vectors into inputs_embeds yourself")
        return super().forward(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )

    def get_image_features(self, pixel_values: torch.Tensor, image_sizes: torch.Tensor) -> list[torch.Tensor]:
        """(V, D) of each picture. Tiles behind those that its size has are padding. Reads the sizes on the host."""
        side = self.vision_embed_tokens.side
        grids = [(height // side, width // side) for height, width in image_sizes.tolist()]
        pictures = [tiles[: 1 + rows * columns] for tiles, (rows, columns) in zip(pixel_values, grids, strict=True)]
        found: list[torch.Tensor] = self.vision_embed_tokens(pictures, grids)
        return found

    def embed(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None, image_sizes: torch.Tensor | None
    ) -> torch.Tensor:
        """(B, L, D): words, and pictures in their places. Raises ValueError where they do not go together."""
        embeds: torch.Tensor = self.embed_tokens(input_ids.clamp_min(0))
        places = (input_ids < 0) & (input_ids > NO_PICTURE)
        if pixel_values is None:
            if bool(places.any()):
                raise ValueError("input_ids have places of pictures (ids below 0), and there are no pixel_values")
            return embeds
        if image_sizes is None:
            raise ValueError("pixel_values come without image_sizes")
        vectors = torch.cat(self.get_image_features(pixel_values, image_sizes))
        rows, columns = places.nonzero(as_tuple=True)
        if len(rows) != len(vectors):
            raise ValueError(
                f"input_ids have {len(rows)} places of pictures, and the pictures have {len(vectors)} vectors: "
                "give each row the pictures of its tags, each tag once"
            )
        numbers = -input_ids[rows, columns]
        order = torch.argsort(rows * (int(numbers.max()) + 1) + numbers, stable=True)
        return embeds.index_put((rows[order], columns[order]), vectors.to(embeds.dtype))


class Phi3VForCausalLM(Phi3VPreTrainedModel, Phi3ForCausalLM):
    """Phi-3-vision with its language-model head."""

    def __init__(self, config: Phi3VConfig) -> None:
        # Past Phi3ForCausalLM, which would make a second decoder only to throw it away.
        super(Phi3ForCausalLM, self).__init__(config)
        self.model = Phi3VModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As Phi3ForCausalLM, with pictures as in `Phi3VModel`. Labels at places of pictures are -100."""
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            labels=labels,
            **kwargs,
        )

    def get_image_features(self, pixel_values: torch.Tensor, image_sizes: torch.Tensor) -> list[torch.Tensor]:
        """(V, D) of each picture."""
        found: list[torch.Tensor] = self.model.get_image_features(pixel_values, image_sizes)
        return found

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The inputs of one step; pictures only where nothing of the sequence is in the cache."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, **kwargs)
        cache = inputs.get("past_key_values")
        if inputs.get("inputs_embeds") is None and (cache is None or cache.get_seq_length() == 0):
            inputs.update(pixel_values=pixel_values, image_sizes=image_sizes)
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Several answers a row: all pictures of the row again for each, where the library would repeat each alone."""
        pictures = {key: kwargs.pop(key) for key in ("pixel_values", "image_sizes") if kwargs.get(key) is not None}
        found: tuple[torch.Tensor, dict[str, Any]] = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        if pictures and input_ids is not None:
            counts = [len(row[(row < 0) & (row > NO_PICTURE)].unique()) for row in input_ids]
            rows = torch.arange(sum(counts)).split(counts)
            order = torch.cat([row.repeat(expand_size) for row in rows])
            pictures = {key: value[order.to(value.device)] for key, value in pictures.items()}
        found[1].update(pictures)
        return found
