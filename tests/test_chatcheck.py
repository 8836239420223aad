"""`luthier check` of a chat recipe: what it prints, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from luthier import chatcheck
from luthier.models.text_base import load_text_base
from luthier.models.tokens import add_text_tokens
from luthier.models.toy_tokenizer import load_tokenizer
from luthier.recipe import Recipe
from luthier.stages import preflight
from support.children import ROOT, Luthier

RECIPE = ROOT / "recipes" / "assistant.yaml"


def chats(count: int, answer: str = "The answer to it is {}.") -> list[dict[str, Any]]:
    return [
        {
            "conversations": [
                {"from": "human", "value": f"What is the {word} of the matter that we spoke of on day {i}?"},
                {"from": "gpt", "value": answer.format(f"{word} {i}")},
            ]
        }
        for i in range(count)
        for word in ("colour", "weight")
    ]


def sources(folder: Path, **rows: list[dict[str, Any]]) -> list[str]:
    words = ["--set", "train.validate_every=0"]  # a hundredth of so few rows is none to validate on
    for name in ("finetome", "sharegpt-english", "ultrachat"):
        path = folder / f"{name}.jsonl"
        found = rows.get(name.replace("-", "_"), chats(12, f"In {name} it is {{}}, as is known."))
        path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
        words += ["--set", f"data.sources.{name}.path={path}"]
    return words


def test_a_chat_recipe_is_checked_with_its_template(luthier: Luthier, tmp_path: Path) -> None:
    words = sources(tmp_path)
    done = luthier(
        "check", RECIPE, "--json", "--set", "model.base=toy:llama", *words, env={"LUTHIER_CACHE": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert sum(figures["rows"].values()) == figures["splits"]["train"] + figures["splits"].get("validation", 0) == 72
    assert figures["template"]["rows"] == figures["splits"]["train"]
    assert 0 < figures["template"]["tokens_supervised"] < figures["template"]["tokens_total"]
    for part in ("licence", "MIT", "ledger", "mixture", "tokens: min", "⟦", "nothing to mend", "60 steps of 8"):
        assert part in done.stderr
    assert figures["tokens"]["main"] >= 60 * 8 * figures["template"]["tokens_min"]
    assert figures["memory"]["main"]["total"] > figures["memory"]["main"]["base weights"] > 0
    seconds, low, high = figures["seconds"]["main"]
    assert 0 < low <= seconds <= high
    for part in ("at the peak", "activations", "of training on this machine"):
        assert part in done.stderr
    learned = done.stderr.partition("what is learned")[2].partition("\n")[2]
    assert "as is known" in learned.partition("⟦")[2].partition("⟧")[0]


def test_added_tokens_are_counted_as_a_run_counts_them() -> None:
    recipe = Recipe()
    recipe.model.base, recipe.model.added_tokens = "toy:smolvlm", ["<|part of a suit|>"]
    base = load_text_base(recipe.model)
    (added,) = add_text_tokens(base, recipe.model.added_tokens, 0).values()
    text = "blue <|part of a suit|> red"
    for tokenizer in (chatcheck._tokenizer(recipe), preflight._tokenizer(recipe)):
        assert added in tokenizer(text)["input_ids"] == base.tokenizer(text)["input_ids"]


def test_rows_that_no_run_learns_are_said_with_the_mend(luthier: Luthier, tmp_path: Path) -> None:
    words = [*sources(tmp_path), "--set", "model.base=toy:llama", "--set", "model.max_tokens=40"]
    words += ["--set", "train.truncation=reject"]
    done = luthier("check", RECIPE, *words, env={"LUTHIER_CACHE": str(tmp_path)})
    assert "over 40 tokens: " in done.stderr
    assert "no run learns them: raise model.max_tokens" in done.stderr


def test_every_problem_is_told_at_once(luthier: Luthier, tmp_path: Path) -> None:
    words = sources(tmp_path)[4:]
    done = luthier("check", RECIPE, *words, "--set", "model.base=nobody/nothing")
    assert done.returncode == 2
    assert "data.sources.finetome" in done.stderr
    assert "model.base: the tokenizer of nobody/nothing" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"conversations": [{"from": "human", "value": "Hello, who is there?"}]}] * 3, "nothing_supervised"),
        (chats(3, "He said <|end|> and left, {}."), "reserved_token"),
    ],
)
def test_rows_that_would_teach_nothing_or_break_the_template_are_refused_with_counts(
    luthier: Luthier, tmp_path: Path, rows: list[dict[str, Any]], reason: str
) -> None:
    words = sources(tmp_path, finetome=rows)
    overrides = ["--set", "model.base=toy:llama", "--set", "data.steps=[]", *words]
    done = luthier("check", RECIPE, *overrides, env={"LUTHIER_CACHE": str(tmp_path)})
    assert done.returncode == 2
    assert f"chat template: {reason} in " in done.stderr
    assert "mend:" in done.stderr


def test_a_base_that_cannot_fit_is_told_before_its_weights_are_looked_for(luthier: Luthier, tmp_path: Path) -> None:
    base = tmp_path / "base"
    tokenizer = load_tokenizer()
    LlamaConfig(vocab_size=768, hidden_size=2**17, intermediate_size=2**18, num_hidden_layers=2).save_pretrained(base)
    tokenizer.save_pretrained(base)
    words = sources(tmp_path)
    done = luthier("check", RECIPE, "--set", f"model.base={base}", *words, env={"LUTHIER_CACHE": str(tmp_path)})
    assert done.returncode == 2
    assert "1 problem" in done.stderr
    assert "stage main: memory: " in done.stderr
    assert "model.quantization: nf4" in done.stderr
    assert "model.safetensors" not in done.stderr
