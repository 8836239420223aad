"""A finished describe run over drawn product cards, made in seconds: 2 steps of a toy that sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier.data.cards import COLUMNS, write_cards

RECIPE = """
name: cards
model: {base: "BASE", max_tokens: 4096, lora: {r: 4}}
data: {sources: {products: {path: TABLE}}, train: [products], validation_fraction: 0.3}
task:
  kind: describe
  describe:
    group: GROUP
    columns: {category: CATEGORY, price: PRICE}
train: {max_steps: 2, batch_size: 4, micro_batch_size: 4, learning_rate: 3.0e-2, log_every: 1, save_every: 2}
evaluate: {resamples: 50, describe_rows: 4, samples: 0}
"""


def card_run(folder: Path, base: str = "toy:qwen3-vl", sets: Sequence[str] = ()) -> Path:
    """The run's folder, `folder`/run: stage `main`, its recipe beside it. `sets` are overrides."""
    from luthier import verbs

    text = RECIPE.replace("TABLE", str(write_cards(folder / "cards", 24, seed=5))).replace("BASE", base)
    for key, name in (("GROUP", "group"), ("CATEGORY", "category"), ("PRICE", "price")):
        text = text.replace(key, COLUMNS[name])
    recipe = folder / "cards.yaml"
    recipe.write_text(text)
    verbs.run(recipe, folder / "run", list(sets))
    return folder / "run"
