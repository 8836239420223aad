"""What a sweep is asked to do, and what it then is: its axes, its objective, and what is wrong with them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.errors import RecipeError
from luthier.files import sha256_file
from luthier.sweeping import sense
from luthier.sweeping.figures import VALIDATION
from luthier.sweeping.space import corners, parse_grid, parse_search, product


@dataclass(frozen=True)
class SweepRequest:
    """What is asked for. `grid` and `search` are words as on the command line; one of them or `seeds` must be there."""

    recipe: Path
    out: Path
    overrides: Sequence[str] = ()
    grid: Sequence[str] = ()
    seeds: str = ""
    search: Sequence[str] = ()
    trials: int = 20
    """Trials of a search."""
    objective: str = VALIDATION
    stage: str = ""
    jobs: int = 1
    resume: bool = False

    def words(self) -> list[str]:
        """The request as a command line, without --resume."""
        flags = [("--set", w) for w in self.overrides]
        flags += [("--grid", w) for w in self.grid] + [("--search", w) for w in self.search]
        flags += [("--seeds", self.seeds)] if self.seeds else []
        flags += [("--trials", str(self.trials))] if self.search else []
        flags += [("--objective", self.objective)] if self.objective != VALIDATION else []
        flags += [("--stage", self.stage)] if self.stage else []
        flags += [("--jobs", str(self.jobs))] if self.jobs != 1 else []
        return ["luthier", "sweep", str(self.recipe), "--out", str(self.out), *itertools.chain(*flags)]


def planned(request: SweepRequest) -> dict[str, Any]:
    """What is the same whenever this sweep is asked for. Raises RecipeError with every problem."""
    problems: list[str] = []
    axes = parse_grid(request.grid, request.seeds, problems)
    space = parse_search(request.search, problems)
    if request.search:
        problems += sense.search_problems(request.trials, request.seeds, request.grid)
    elif not (request.grid or request.seeds):
        problems.append("nothing is varied (give --grid KEY=V1,V2, --seeds 1,2,3 or --search KEY=LOW..HIGH)")
    if request.jobs < 1:
        problems.append(f"--jobs {request.jobs}: must be at least 1")
    if request.resume and not (request.out / "sweep.json").is_file():
        problems.append(f"--resume: {request.out} is not a sweep (no sweep.json in it)")
    if not request.resume and request.out.exists() and (not request.out.is_dir() or any(request.out.iterdir())):
        problems.append(f"--out {request.out}: exists already (give another, or --resume to go on with it)")
    combinations = corners(space) if request.search else product(axes)
    read: list[sense.Stages] = []
    if (space or axes) and not (space and axes):
        read = sense.load_all(request.recipe, request.overrides, combinations, problems)
    if read:
        objective = sense.objective_of(request.objective, request.stage, read[0], problems)
    if problems:
        raise RecipeError(str(request.recipe), problems)
    return {
        "recipe": str(request.recipe),
        "recipe_sha256": sha256_file(request.recipe),
        "overrides": list(request.overrides),
        "grid": {axis.key: list(axis.values) for axis in axes},
        "search": list(request.search),
        "objective": asdict(objective),
        "comparable": len({sense.measure(stages, objective) for stages in read}) == 1,
        "stages": list(read[0]),
        "seed": next(iter(read[0].values())).seed,
    }
