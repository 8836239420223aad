"""What is published of Phi-3-vision: the names and number of its tensors, its config.json, the scale of its angles."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.models.phi3_vision import Phi3VConfig, Phi3VForCausalLM

PUBLISHED = {
    "_name_or_path": "Phi-3-vision-128k-instruct",
    "architectures": ["Phi3VForCausalLM"],
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_phi3_v.Phi3VConfig",
        "AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM",
    },
    "bos_token_id": 1,
    "embd_layer": {
        "embedding_cls": "image",
        "hd_transform_order": "sub_glb",
        "projection_cls": "mlp",
        "use_hd_transform": True,
        "with_learnable_separator": True,
    },
    "embd_pdrop": 0.0,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "img_processor": {
        "image_dim_out": 1024,
        "model_name": "openai/clip-vit-large-patch14-336",
        "name": "clip_vision_model",
        "num_img_tokens": 144,
    },
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "phi3_v",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "long_factor": [1.03 + 1.3 * pair for pair in range(48)],
        "short_factor": [1.05 + 0.04 * pair for pair in range(48)],
        "type": "su",
    },
    "rope_theta": 10000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.1",
    "use_cache": True,
    "vocab_size": 32064,
}
"""config.json as published, with factors of our own: theirs are 96 measured numbers."""
PARAMETERS = 4_146_621_440
"""The published safetensors are 4.94 and 3.35 GB in bfloat16."""


def published_names() -> set[str]:
    """Names of the published tensors, as a rule."""
    eyes = "model.vision_embed_tokens"
    clip = f"{eyes}.img_processor.vision_model"
    names = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", f"{eyes}.glb_GN", f"{eyes}.sub_GN"}
    names |= {f"{eyes}.img_projection.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    inside = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    norms = ("input_layernorm", "post_attention_layernorm")
    names |= {f"model.layers.{layer}.{part}.weight" for layer in range(32) for part in (*inside, *norms)}
    names |= {f"{clip}.embeddings.{part}" for part in ("class_embedding", "patch_embedding.weight")}
    names |= {f"{clip}.embeddings.position_embedding.weight"}
    seen = (*(f"self_attn.{one}_proj" for one in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
    layers = [f"encoder.layers.{layer}.{part}" for layer in range(24) for part in (*seen, "layer_norm1", "layer_norm2")]
    parts = (*layers, "pre_layrnorm", "post_layernorm")
    return names | {f"{clip}.{part}.{kind}" for part in parts for kind in ("weight", "bias")}


def test_the_full_size_has_the_published_names_and_number_of_parameters() -> None:
    with torch.device("meta"):
        model = Phi3VForCausalLM(Phi3VConfig())
    assert set(model.state_dict()) == published_names()
    assert sum(value.numel() for value in model.state_dict().values()) == PARAMETERS
    assert sum(value.numel() for value in model.parameters()) == PARAMETERS
    eyes = model.model.vision_embed_tokens
    assert (eyes.glb_GN.shape, eyes.sub_GN.shape) == ((1, 1, 4096), (1, 1, 1, 4096))
    assert eyes.img_projection[0].weight.shape == (3072, 4096)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    (folder / "config.json").write_text(json.dumps(PUBLISHED))
    return folder


def test_the_published_config_loads_our_classes_and_no_code(published: Path) -> None:
    config = AutoConfig.from_pretrained(published, trust_remote_code=False)
    assert type(config) is Phi3VConfig
    assert config.rope_parameters["rope_type"] == "longrope"
    assert config.sliding_window == 131072
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    assert type(model) is Phi3VForCausalLM
    assert set(model.state_dict()) == published_names()


def test_saved_settings_are_read_back_equal(published: Path, tmp_path: Path) -> None:
    config = Phi3VConfig.from_pretrained(published)
    config.save_pretrained(tmp_path)
    again = Phi3VConfig.from_pretrained(tmp_path)
    assert {**again.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["embd_layer"] == PUBLISHED["embd_layer"]
    assert saved["img_processor"] == PUBLISHED["img_processor"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("embd_layer", {"hd_transform_order": "glb_sub"}),
        ("embd_layer", {"use_hd_transform": False}),
        ("img_processor", {"layer_idx": -1}),
        ("img_processor", {"type_feature": "cls_patch"}),
        ("img_processor", {"num_img_tokens": 256}),
        ("vision_config", {"patch_size": 16, "image_size": 336}),
    ],
)
def test_settings_of_another_architecture_are_refused(key: str, value: dict[str, object]) -> None:
    with pytest.raises(Exception, match="Phi-3-vision is known with"):
        Phi3VConfig(**{key: value})


@pytest.mark.parametrize("length", [4096, 4097])
def test_angles_are_scaled_by_short_factors_up_to_4096_tokens_and_by_long_ones_beyond(
    published: Path, length: int
) -> None:
    config = Phi3VConfig.from_pretrained(published)
    config.num_hidden_layers = config.vision_config.num_hidden_layers = 1
    config.vocab_size, config.intermediate_size, config.pad_token_id = 8, 8, 0
    rotary = Phi3VForCausalLM(config).model.rotary_emb
    cosine, sine = rotary(torch.zeros(1), torch.arange(length)[None])
    factors = PUBLISHED["rope_scaling"]["long_factor" if length > 4096 else "short_factor"]
    scale = math.sqrt(1 + math.log(131072 / 4096) / math.log(4096))
    assert scale == pytest.approx(1.190238, abs=1e-6)
    for pair in (0, 1, 17, 47):
        angle = 4095 / (factors[pair] * 10000.0 ** (2 * pair / 96))
        for half in (0, 48):
            assert cosine[0, 4095, pair + half].item() == pytest.approx(math.cos(angle) * scale, abs=2e-3)
            assert sine[0, 4095, pair + half].item() == pytest.approx(math.sin(angle) * scale, abs=2e-3)
