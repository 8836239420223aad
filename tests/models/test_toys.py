"""The toy twins: same weights whatever came before, plain transformers loads them, and they hear."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from luthier.data.mediasource import Facts
from luthier.errors import RequestError
from luthier.models.chat import ChatTemplate
from luthier.models.senses.base import senses_of
from luthier.models.toy_tokenizer import SPECIAL_TOKENS, TOKENIZER_FILE, load_tokenizer, train_tokenizer
from luthier.models.toys import TOYS, WINDOW, build_toy, write_toy

HEARING = "toy:phi4-multimodal"
SEEING = sorted(name for name, toy in TOYS.items() if toy.sight)
TEXT_TWINS = sorted(set(TOYS) - {HEARING, *SEEING})


def _heard_logits(model, tokenizer, extractor, frequency):
    """Logits at the last position after one second of a tone; the whole real forward, audio path included."""
    wave = 0.1 * torch.sin(2 * torch.pi * frequency * torch.arange(16000) / 16000)
    sound = extractor([wave.numpy()], sampling_rate=16000, return_tensors="pt")
    prompt = "<|user|>" + tokenizer.audio_token * int(sound["audio_embed_sizes"][0]) + "<|end|><|assistant|>"
    with torch.no_grad():
        return model(**tokenizer(prompt, return_tensors="pt"), **sound, logits_to_keep=1).logits[0, -1]


@pytest.mark.parametrize("name", sorted(TOYS))
def test_weights_depend_on_the_seed_alone_and_leave_the_global_state(name):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build_toy(name)[0].state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(7)
    second, other = build_toy(name)[0].state_dict(), build_toy(name, seed=1)[0].state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_plain_transformers_loads_the_hearing_twin_equal(tmp_path: Path):
    write_toy(HEARING, tmp_path)
    loaded = (
        AutoModelForCausalLM.from_pretrained(tmp_path).eval(),
        AutoTokenizer.from_pretrained(tmp_path),
        AutoFeatureExtractor.from_pretrained(tmp_path),
    )
    ours = build_toy(HEARING)
    weights, expected = loaded[0].state_dict(), ours[0].state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    # Equal weights at other memory addresses may be summed in another order: the last bits of logits move.
    torch.testing.assert_close(_heard_logits(*loaded, 440), _heard_logits(*ours, 440), rtol=1e-5, atol=1e-5)
    assert loaded[0].config.eos_token_id == ours[0].config.eos_token_id
    messages = [{"role": "user", "content": "1"}]
    assert loaded[1].apply_chat_template(messages) == ours[1].apply_chat_template(messages)


@pytest.mark.parametrize("name", SEEING)
def test_plain_transformers_loads_a_seeing_twin_equal_with_its_eyes(name, tmp_path: Path):
    write_toy(name, tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    model, tokenizer, _ = build_toy(name)
    assert type(loaded) is type(model)
    weights, expected = loaded.state_dict(), model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    ours, theirs = (senses_of(model, tokenizer, where) for where in (name, str(tmp_path)))
    assert ours is not None
    assert theirs is not None
    facts = Facts("image", 90, 61)
    assert ours.spell(facts) == theirs.spell(facts)
    picture = Image.effect_noise((90, 61), 60).convert("RGB")
    pairs = zip(
        ours.prepare("image", picture).inputs.values(), theirs.prepare("image", picture).inputs.values(), strict=True
    )
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", TEXT_TWINS)
def test_plain_transformers_loads_a_text_twin_equal(name, tmp_path: Path):
    write_toy(name, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    model, tokenizer, extractor = build_toy(name)
    assert type(loaded) is type(model)
    ids = tokenizer("a short text", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    assert extractor is None


@pytest.mark.parametrize("name", sorted(TOYS))
def test_one_step_on_a_chat_lowers_its_loss(name):
    model, tokenizer, _ = build_toy(name)
    chat = [
        {"role": "user", "content": "What do you do on Sundays?"},
        {"role": "assistant", "content": "I walk by the river with my dog, and then we eat soup at my mother's table."},
    ]
    ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]
    assert ids.shape[1] > WINDOW
    before = model(ids, labels=ids).loss
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.02 * parameter.grad
        assert model(ids, labels=ids).loss < before - 0.01


def test_the_twin_of_a_family_has_what_its_family_is_tested_for():
    configs = {name: build_toy(name)[0].config for name in TEXT_TWINS}
    kinds = ["sliding_attention", "full_attention"]
    assert configs["toy:gemma2"].layer_types == configs["toy:gemma3"].layer_types == kinds
    assert configs["toy:gemma2"].attn_logit_softcapping == 50.0
    assert {n for n, config in configs.items() if getattr(config, "sliding_window", None)} == {
        "toy:gemma2",
        "toy:gemma3",
        "toy:mistral",
        "toy:phi3",
    }
    assert {n for n, config in configs.items() if not config.tie_word_embeddings} == {"toy:mistral", "toy:phi3"}


def test_a_text_twin_is_the_plain_class_of_its_family():
    model = build_toy("toy:llama", seed=3)[0]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        plain = LlamaForCausalLM(LlamaConfig(**model.config.to_diff_dict())).state_dict()
    assert all(torch.equal(plain[key], value) for key, value in model.state_dict().items())


def test_another_sound_gives_other_logits():
    twin = build_toy(HEARING)
    low, high = _heard_logits(*twin, 220), _heard_logits(*twin, 1760)
    assert (low - high).abs().max() > 0.01
    torch.testing.assert_close(low, _heard_logits(*twin, 220), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(TOYS))
def test_configuration_points_at_the_tokenizer_and_leaves_spare_rows(name):
    model, tokenizer, _ = build_toy(name)
    config = model.config
    of_text = config.get_text_config()
    assert of_text.vocab_size - len(tokenizer) >= 64
    assert of_text.vocab_size % 64 == 0
    tied = model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert tied == config.tie_word_embeddings
    assert (of_text.bos_token_id, of_text.pad_token_id) == (tokenizer.bos_token_id, tokenizer.pad_token_id)
    stop = ChatTemplate.of(tokenizer).stop
    assert {tokenizer.eos_token_id, stop} <= set(model.generation_config.eos_token_id)
    if name == HEARING:
        assert config.audio_config.audio_token_id == tokenizer.convert_tokens_to_ids("<|audio|>")
        assert config.vision_config.image_token_id == tokenizer.convert_tokens_to_ids("<|image|>")


@pytest.mark.parametrize("token", [*SPECIAL_TOKENS, "0", "1"])
def test_special_tokens_and_verdicts_are_single_tokens(token):
    tokenizer = load_tokenizer()
    ids = tokenizer(f"a{token}b")["input_ids"]
    assert ids.count(tokenizer.convert_tokens_to_ids(token)) == 1
    assert tokenizer(token)["input_ids"] == [tokenizer.convert_tokens_to_ids(token)]


def test_digits_stay_apart():
    tokenizer = load_tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer("101")["input_ids"]) == ["1", "0", "1"]


TOKENIZER = load_tokenizer()


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_comes_back(text):
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text
    assert all(index < len(TOKENIZER) for index in ids)


def test_chat_template_is_that_of_phi4():
    messages = [
        {"role": "system", "content": "Judge."},
        {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "Pass?"}]},
    ]
    assert load_tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|system|>Judge.<|end|><|user|><|audio|>Pass?<|end|><|assistant|>"
    )


def test_shipped_tokenizer_is_what_training_makes():
    text = TOKENIZER_FILE.read_text(encoding="utf-8")
    assert train_tokenizer().to_str() == text
    assert len(text.encode()) < 60_000


def test_unknown_name_names_the_toys():
    with pytest.raises(RequestError, match="toy:phi4-multimodal"):
        build_toy("toy:phi5")
