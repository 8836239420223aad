"""The receipt: what it counts, and that it can find a difference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from luthier.exporting import receipt
from luthier.exporting.export import adapter_receipt, export
from luthier.exporting.kinds import ExportRequest, open_subject
from luthier.exporting.receipt import Readings, compare, questions
from luthier.files import read_jsonl
from luthier.models.chat import load_tokenizer
from support.chatrun import chat_run

Answers = st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_run(tmp_path_factory.mktemp("chat"))


@given(Answers, st.data())
def test_differences_are_those_of_a_token_by_token_reading(trainer, data):
    here = [data.draw(st.lists(st.integers(0, 3), max_size=6)) for _ in trainer]
    found = compare(here, Readings(trainer, []))
    firsts = []
    for one, other in zip(here, trainer, strict=True):
        padded = [[*ids, *[None] * 6][:6] for ids in (one, other)]
        firsts += [next((i for i in range(6) if padded[0][i] != padded[1][i]), None)]
    assert found["prompts_that_differ"] == sum(one != other for one, other in zip(here, trainer, strict=True))
    assert found["first_difference"] == min((at for at in firsts if at is not None), default=None)
    assert (found["agreement"] == 1.0) == (found["tokens_that_differ"] == 0) == (here == trainer)


def test_a_gap_of_one_logit_is_the_largest_gap():
    one = [torch.zeros(3, 5), torch.zeros(1, 5)]
    other = [torch.zeros(3, 5), torch.zeros(1, 5)]
    other[0][2, 4] = -0.25
    found = compare(Readings([[1, 2], []], one), Readings([[1, 2], []], other))
    assert (found["max_logit_gap"], found["max_logit_gap_prompt"]) == (0.25, 0.0)


def test_an_exported_adapter_differs_nowhere_from_the_trainer(run, tmp_path):
    found = export(ExportRequest(run, "adapter", out=tmp_path / "out"))["receipt"]
    assert found == json.loads((tmp_path / "out" / "receipt.json").read_text())
    form = found["forms"]["adapter"]
    assert (form["prompts_that_differ"], form["tokens_that_differ"], form["max_logit_gap"]) == (0, 0, 0.0)
    assert form["tokenizer_sha256"] == found["tokenizer_sha256"]
    assert found["forms"]["gguf"] == {"ran": False, "reason": "not part of this export"}
    assert found["prompts"]["count"] == form["prompts"] > 5
    assert "held-out rows" in found["prompts"]["origin"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert found["template_sha256"][:12] in card


def test_control_an_adapter_with_another_weight_is_found_to_differ(run, tmp_path):
    export(ExportRequest(run, "adapter", out=tmp_path / "out", receipt=False))
    weights = tmp_path / "out" / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in sorted(tensors) if "lora_B" in name)
    tensors[name] += 0.05
    save_file(tensors, weights)
    form = adapter_receipt(open_subject(run), tmp_path / "out")["forms"]["adapter"]
    assert form["max_logit_gap"] > 1e-3


def test_prompts_are_held_out_rows_and_end_where_the_answer_begins(run):
    subject = open_subject(run)
    tokenizer = load_tokenizer(str(subject.folder))
    asked = questions(subject, tokenizer, longest=200)
    assert len(asked.prompts) == len(read_jsonl(subject.stage.predictions)) <= receipt.PROMPTS
    assert all(tokenizer.decode(ids).endswith("<|assistant|>") for ids in asked.prompts)
    assert questions(subject, tokenizer, longest=0).origin == "neutral questions"


def test_recordings_get_the_same_probabilities_from_the_exported_adapter(finished, tmp_path):
    found = export(ExportRequest(finished, "adapter", out=tmp_path / "out"))["receipt"]
    recorded = {row["id"]: row["p_pass"] for row in read_jsonl(finished / "stages" / "1964" / "predictions.jsonl")}
    form = found["forms"]["adapter"]
    assert (form["recordings_that_differ"], form["max_p_gap"]) == (0, 0.0)
    assert form["p_pass"] == pytest.approx(list(recorded.values())[: form["recordings"]], abs=1e-6)
