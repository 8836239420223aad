"""Packed rows cannot read one another: logits and gradients beside transformers' eager attention on each row alone."""

from __future__ import annotations

import copy
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.errors import RequestError
from luthier.models import attention
from luthier.models.attention import packed_kwargs, use_packed_attention

WINDOW = 5
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "gemma2": ("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 4, "sliding_window": WINDOW}),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 8, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi3": ("phi3", {"sliding_window": None}),
    "phi3 with a window": ("phi3", {"sliding_window": WINDOW}),
    "mistral": ("mistral", {"sliding_window": WINDOW}),
}
LENGTHS = (7, 1, 12, 7, 3)
"""Longer and shorter than the window, of equal length, and of one token."""


def tiny(family: str, **facts: Any) -> Any:
    """A random model with attention sharp enough that a leak shows."""
    model_type, own = FAMILIES[family]
    fields = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.15,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(5)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(fields | own | facts))).eval()


@cache
def pair(family: str) -> tuple[Any, Any]:
    """The same weights with packed attention and with the reference, transformers' eager attention."""
    model = tiny(family)
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("eager")
    use_packed_attention(model)
    return model, reference


def line(lengths: Any, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids (1, T) and position ids that restart."""
    ids = torch.randint(3, 64, (1, sum(lengths)), generator=torch.Generator().manual_seed(seed))
    return ids, torch.cat([torch.arange(length) for length in lengths])[None]


def packed_logits(model: Any, lengths: Any, **inputs: torch.Tensor) -> torch.Tensor:
    return model(position_ids=line(lengths)[1], **packed_kwargs(lengths, "cpu"), **inputs).logits


def alone_logits(model: Any, ids: torch.Tensor, lengths: Any) -> torch.Tensor:
    return torch.cat([model(input_ids=row, use_cache=False).logits for row in ids.split(list(lengths), dim=1)], dim=1)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 14), min_size=1, max_size=7), seed=st.integers(0, 99))
def test_a_packed_row_has_the_logits_it_has_alone(family, lengths, seed):
    model, reference = pair(family)
    ids, _ = line(lengths, seed)
    with torch.no_grad():
        packed, alone = packed_logits(model, lengths, input_ids=ids), alone_logits(reference, ids, lengths)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def tuned(family: str, how: str) -> Any:
    """The model in training, in double precision: plain, recomputing its activations, or under LoRA."""
    model = tiny(family).double()
    if "LoRA" in how:
        torch.manual_seed(6)
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    if "recomputing" in how:
        model.gradient_checkpointing_enable({"use_reentrant": "reentrant" in how})
    return model.train()


def gradient(model: Any, ids: torch.Tensor, scored: slice, **inputs: Any) -> torch.Tensor:
    """(T, D) gradient of the loss of the scored positions with respect to the embeddings of all."""
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings, **inputs).logits
    logits[0, scored].log_softmax(-1)[:, 7].sum().backward()
    assert embeddings.grad is not None
    return embeddings.grad[0]


HOW = ["plain", "recomputing", "recomputing, reentrant", "LoRA", "LoRA, recomputing"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_row_has_no_gradient_in_another(family, how):
    model = tuned(family, how)
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("eager")
    use_packed_attention(model)
    ids, position_ids = line(LENGTHS)
    third = slice(sum(LENGTHS[:2]), sum(LENGTHS[:3]))
    packed = gradient(model, ids, third, position_ids=position_ids, **packed_kwargs(LENGTHS, "cpu"))
    assert torch.all(packed[: third.start] == 0)
    assert torch.all(packed[third.stop :] == 0)
    alone = gradient(reference, ids[:, third], slice(None))
    # Eager attention takes its softmax in single precision whatever the model's.
    assert (packed[third] - alone).abs().max() < 1e-5 * alone.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_leak_where_the_borders_are_not_told(family):
    model, reference = pair(family)
    ids, position_ids = line(LENGTHS)
    told_nothing = {"position_ids": position_ids, **packed_kwargs((sum(LENGTHS),), "cpu")}
    with torch.no_grad():
        assert (model(ids, **told_nothing).logits - alone_logits(reference, ids, LENGTHS)).abs().max() > 0.5
    last_row = slice(sum(LENGTHS[:4]), None)
    assert gradient(model, ids, last_row, **told_nothing)[: last_row.start].abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_padded_on_the_right_have_the_logits_they_have_alone(family):
    model, reference = pair(family)
    ids, _ = line(LENGTHS)
    rows = [row[0] for row in ids.split(list(LENGTHS), dim=1)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    with torch.no_grad():
        for inputs in (packed_kwargs([padded.shape[1]], "cpu"), {}):
            logits = model(padded, **inputs).logits
            kept = torch.cat([logits[i, : len(row)] for i, row in enumerate(rows)])
            torch.testing.assert_close(kept[None], alone_logits(reference, ids, LENGTHS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_a_cache_and_left_padding_is_that_of_eager_attention(family):
    ids = torch.tensor([[0, 0, 0, 5, 9], [4, 7, 8, 3, 6]])
    answers = [
        model.generate(
            input_ids=ids,
            attention_mask=(ids != 0).long(),
            max_new_tokens=9,
            min_new_tokens=9,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        for model in pair(family)
    ]
    assert torch.equal(answers[0].sequences, answers[1].sequences)
    # The scores of rows that hold padding differ in what eager gives a query on padding, and in nothing else.
    for ours, theirs in zip(answers[0].scores, answers[1].scores, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


class Watch(TorchDispatchMode):
    """Notes reads of a tensor on the host, and the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._local_scalar_dense.default:
            self.reads.append(str(func))
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_call_reads_nothing_on_the_host_and_builds_no_mask_of_the_line(family):
    model, _ = pair(family)
    lengths = [9] * 40
    ids, position_ids = line(lengths)
    inputs = packed_kwargs(lengths, "cpu")
    with torch.no_grad():
        with Watch() as ours:
            model(ids, position_ids=position_ids, **inputs)
        with Watch() as theirs:
            model(ids, position_ids=position_ids, use_cache=False)
    assert ours.reads == []
    assert ours.largest < len(ids[0]) ** 2 <= theirs.largest
    assert theirs.reads


def in_full(query_TD, key_TD, value_TD, borders, _borders, longest, _longest, *, window_size, **options):
    """The two GPU kernels as their documentation describes them, by a mask over the whole line (no dropout)."""
    ends = borders.tolist()
    assert borders.dtype == torch.int32
    assert longest == _longest == max(end - start for start, end in pairwise(ends))
    row = torch.bucketize(torch.arange(ends[-1]), borders[1:], right=True)
    distance = torch.arange(ends[-1])[:, None] - torch.arange(ends[-1])
    allowed = (row[:, None] == row) & (distance >= 0)
    if window_size[0] >= 0:
        allowed &= distance <= window_size[0]
    groups = query_TD.shape[1] // key_TD.shape[1]
    scores = torch.einsum("qhd,khd->hqk", query_TD, key_TD.repeat_interleave(groups, 1))
    scores = scores * (options.get("softmax_scale") or options["scale"])
    if options.get("softcap"):
        scores = options["softcap"] * torch.tanh(scores / options["softcap"])
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value_TD.repeat_interleave(groups, 1))


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_gpu_kernels_are_called_for_the_same_attention(monkeypatch, family, flash):
    if family == "gemma2" and not flash:
        pytest.skip("torch's kernel does not cap scores, and is not asked to")
    model, reference = pair(family)
    monkeypatch.setattr(attention, "_fits_one_kernel", lambda *_: True)
    monkeypatch.setattr(attention, "_flash_kernel", lambda: in_full if flash else None)
    monkeypatch.setattr(attention.varlen, "varlen_attn", in_full)
    ids, _ = line(LENGTHS)
    with torch.no_grad():
        packed, alone = packed_logits(model, LENGTHS, input_ids=ids), alone_logits(reference, ids, LENGTHS)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_on_a_gpu_in_half_precision(family):
    model, reference = (copy.deepcopy(model).to("cuda", torch.bfloat16) for model in pair(family))
    ids, position_ids = (part.cuda() for part in line(LENGTHS))
    with torch.no_grad():
        packed = model(ids, position_ids=position_ids, **packed_kwargs(LENGTHS, "cuda")).logits
        alone = alone_logits(reference, ids, LENGTHS)
    assert torch.nn.functional.cosine_similarity(packed.float(), alone.float(), dim=-1).min() > 0.99


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_attention_dropout_follows_the_seed_and_is_off_in_evaluation(family):
    model = tiny(family, attention_dropout=0.5)
    use_packed_attention(model)
    ids, _ = line(LENGTHS)

    def logits(seed: int, training: bool) -> torch.Tensor:
        torch.manual_seed(seed)
        return packed_logits(model.train(training), LENGTHS, input_ids=ids).detach()

    assert torch.equal(logits(1, True), logits(1, True))
    assert not torch.allclose(logits(1, True), logits(2, True))
    assert torch.equal(logits(1, False), logits(2, False))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3"])
def test_packed_rows_under_autocast(family):
    model, _ = pair(family)
    ids, _ = line(LENGTHS)
    with torch.no_grad():
        full = packed_logits(model, LENGTHS, input_ids=ids)
        with torch.autocast("cpu", torch.bfloat16):
            half = packed_logits(model, LENGTHS, input_ids=ids)
    assert torch.nn.functional.cosine_similarity(full, half.float(), dim=-1).min() > 0.98


@pytest.mark.parametrize(
    ("model_type", "facts"),
    [
        ("gpt_oss", {"num_local_experts": 2, "head_dim": 8}),
        ("mamba", {}),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
        ("llama4_text", {"num_local_experts": 2, "head_dim": 8, "intermediate_size_mlp": 32}),
        ("bloom", {"n_head": 4}),
    ],
)
def test_an_architecture_whose_rows_would_meet_is_refused_by_name(model_type, facts):
    size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {} if model_type in ("mamba", "bloom") else {"num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(size | heads | facts)))
    with pytest.raises(RequestError, match=rf"{model_type} .*\n.*train\.packing: false"):
        use_packed_attention(model)


def test_rows_that_do_not_fill_the_line_are_refused():
    model, _ = pair("llama")
    ids, position_ids = line((3, 4))
    with pytest.raises(RequestError, match="rows of 6 tokens in a line of 7"):
        model(ids, position_ids=position_ids, **packed_kwargs((3, 3), "cpu"))
    with pytest.raises(RequestError, match="one token or more"):
        packed_kwargs((3, 0), "cpu")


def test_rows_lost_on_their_way_to_the_layers_are_refused():
    model, _ = pair("llama")
    ids, position_ids = line((3, 4))
    inputs = packed_kwargs((3, 4), "cpu")
    del inputs["packed_rows"]
    with pytest.raises(RequestError, match="was not told the rows"):
        model(ids, position_ids=position_ids, **inputs)
