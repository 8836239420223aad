"""The words of `luthier sweep`: a grid of settings, seeds, or a search; every trial a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from luthier.cliwords import add_recipe, add_verb


def sweep_parser(verbs: Any) -> None:
    """Add `sweep` to the command line."""
    verb = add_verb(
        verbs,
        "sweep",
        _sweep,
        "settings in a grid or a search; every trial a run, one table at the end",
        "luthier sweep recipes/assistant.yaml --grid train.learning_rate=1e-4,2e-4 --grid model.lora.r=8,16",
    )
    add_recipe(verb)
    verb.add_argument(
        "--grid", action="append", default=[], metavar="KEY=V1,V2", help="values of a key; all combinations are run"
    )
    verb.add_argument("--seeds", default="", metavar="1,2,3", help="run each combination once with each seed")
    verb.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="KEY=SPACE",
        help="let Optuna choose: LOW..HIGH, LOW..HIGH:log or A|B|C; weak trials are stopped early",
    )
    verb.add_argument("--trials", type=int, default=20, help="trials of a search (default: 20)")
    verb.add_argument(
        "--objective",
        default="validation_loss",
        metavar="SCORE",
        help="what trials are ordered by: validation_loss (default) or a key of scores.json",
    )
    verb.add_argument("--stage", default="", help="of which stage (default: the last)")
    verb.add_argument("--out", type=Path, help="a new folder (default: sweeps/NAME)")
    verb.add_argument("--jobs", type=int, default=1, help="trials at the same time (default: 1)")
    verb.add_argument("--resume", action="store_true", help="go on with the sweep in --out; finished trials stay")


def _sweep(options: argparse.Namespace) -> Any:
    from luthier.sweep import SweepRequest, sweep

    request = SweepRequest(
        recipe=options.recipe,
        out=options.out or Path("sweeps") / options.recipe.stem,
        overrides=options.overrides,
        grid=options.grid,
        seeds=options.seeds,
        search=options.search,
        trials=options.trials,
        objective=options.objective,
        stage=options.stage,
        jobs=options.jobs,
        resume=options.resume,
    )
    return sweep(request)
