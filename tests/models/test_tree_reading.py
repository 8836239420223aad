"""States along a token tree: held against one forward pass a text, for every family, with adapters and quantised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.models import adapters, tree_reading
from luthier.models.head import body
from luthier.models.load import load_base
from luthier.models.text_base import load_text_base
from luthier.models.token_tree import TokenTree
from luthier.models.toys import TOYS, WINDOW
from luthier.models.tree_attention import SHORT
from luthier.models.tree_reading import TreeReader, reading
from luthier.recipe_model import ModelConfig
from support import chats


def texts_of(rng: np.random.Generator, count: int, common: int, longest: int = 90) -> list[np.ndarray]:
    """Texts that begin alike in several places, beyond the toys' sliding window too."""
    stem = rng.integers(0, 500, size=common)
    trunks = [rng.integers(0, 500, size=int(rng.integers(2, longest))) for _ in range(3)]
    return [
        np.concatenate(
            [
                stem,
                (trunk := trunks[int(rng.integers(3))])[: int(rng.integers(1, len(trunk)))],
                rng.integers(0, 500, size=3),
            ]
        )
        for _ in range(count)
    ]


def alone(model: Any, text: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return body(model)(input_ids=torch.from_numpy(text)[None], use_cache=False).last_hidden_state[0]


def agree(model: Any, texts: list[np.ndarray], common: int, trees: bool = True, atol: float = 2e-5) -> None:
    expected = [alone(model, text) for text in texts]
    with torch.no_grad(), reading(model) as reader:
        assert reader.along_trees == trees
        tree = TokenTree.of(texts, common)
        states_TD = reader.states(tree, reader.prefix(texts[0][:common]))
    for path, states in zip(tree.paths, expected, strict=True):
        torch.testing.assert_close(states_TD[path], states[common:], rtol=0, atol=atol)


def tuned(**model: Any) -> Any:
    """A toy under an adapter that does something, with the attention of training."""
    made = chats.recipe()
    for name, value in model.items():
        setattr(made.model, name, value)
    _, learner = chats.model_of(made)
    with torch.no_grad():
        torch.manual_seed(3)
        for name, weight in learner.tuned():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    return learner.language_model.eval()


@pytest.mark.parametrize("common", [0, 1, WINDOW + 12])
@pytest.mark.parametrize("name", TOYS)
def test_states_are_those_of_each_text_alone(name: str, common: int) -> None:
    config = ModelConfig(base=name)
    model = load_base(config).model if TOYS[name].hears else load_text_base(config).model
    texts = texts_of(np.random.default_rng(0), 14, common)
    assert max(map(len, texts)) > WINDOW + common
    agree(model, texts, common)


@pytest.mark.parametrize(
    "how", [{}, {"tuning": "full"}, {"quantization": "nf4"}, {"quantization": "int8"}, {"added_tokens": ["<|new|>"]}]
)
def test_states_with_an_adapter_are_those_of_each_text_alone(how: dict[str, Any]) -> None:
    model = tuned(**how)
    agree(model, texts_of(np.random.default_rng(1), 9, 5), 5, atol=0.05 if how.get("quantization") == "int8" else 2e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=8),
    st.lists(st.integers(3, 5), max_size=60),
)
def test_any_tree_is_read_as_its_texts(texts: list[list[int]], common: list[int]) -> None:
    model = load_text_base(ModelConfig(base="toy:gemma3")).model
    agree(model, [np.array(common + text, np.int64) for text in texts], len(common))


def test_texts_beyond_the_short_formula_are_read_alike() -> None:
    model = load_text_base(ModelConfig(base="toy:qwen3")).model
    agree(model, texts_of(np.random.default_rng(2), 3, 7, longest=SHORT + 200), 7)


def foreign(kind: str) -> Any:
    small = {"vocab_size": 700, "hidden_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    if kind == "mamba":
        return transformers.MambaForCausalLM(transformers.MambaConfig(state_size=4, **small)).eval()
    if kind == "lfm2":
        layers = {"layer_types": ["conv", "full_attention"]}
        return transformers.Lfm2ForCausalLM(transformers.Lfm2Config(**small, **heads, **layers)).eval()
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}
    return transformers.GptOssForCausalLM(transformers.GptOssConfig(**small, **heads, **experts)).eval()


@pytest.mark.parametrize("kind", ["mamba", "lfm2", "gpt_oss"])
def test_architectures_that_do_more_than_attend_are_read_whole(kind: str) -> None:
    agree(foreign(kind), texts_of(np.random.default_rng(3), 6, 4, longest=20), 4, trees=False)


def test_what_passes_for_plain_attention_is_proved_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_reading, "why_not_apart", lambda model: "")
    agree(foreign("lfm2"), texts_of(np.random.default_rng(3), 4, 4, longest=20), 4, trees=False)


def test_the_model_is_left_as_it_was() -> None:
    model = tuned()
    text = np.arange(9)
    before, attention = alone(model, text), adapters.bare(model).config._attn_implementation
    with reading(model) as reader:
        assert torch.equal(alone(model, text), before), "calls without a tree are answered as before"
        assert isinstance(reader, TreeReader)
    assert adapters.bare(model).config._attn_implementation == attention == "luthier_packed"
    assert torch.equal(alone(model, text), before)


def test_a_prefix_is_kept_in_one_copy_a_layer() -> None:
    model = load_text_base(ModelConfig(base="toy:gemma2")).model
    with torch.no_grad(), reading(model) as reader:
        prefix = reader.prefix(np.arange(20))
    assert sorted(prefix.layers) == [0, 1]
    config = model.config
    for key_GPD, value_GPD in prefix.layers.values():
        assert key_GPD.shape == value_GPD.shape == (config.num_key_value_heads, 20, config.head_dim)


def test_lengths_that_stretch_positions_are_known() -> None:
    config = load_text_base(ModelConfig(base="toy:phi3")).model.config
    assert tree_reading.stretches_beyond(config) is None
    config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 64}
    assert tree_reading.stretches_beyond(config) == 64
    config.rope_parameters = {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {"rope_type": "default"}}
    assert tree_reading.stretches_beyond(config) == config.max_position_embeddings
