"""What `luthier exam` is asked for: which exams, put how, and whom to examine. Loads no weights and reads no exam."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier.errors import RecipeError, RequestError
from luthier.evaluate.candidates import BASE, Candidate, find_candidates
from luthier.recipe_exam import ExamSettings, exam_problems
from luthier.recipe_model import DTYPES, QUANTIZATIONS, ModelConfig
from luthier.recipefile import load_recipe, stage_recipes
from luthier.rundir import RunDir


@dataclass(frozen=True)
class ExamRequest:
    """`run` is RUN or RUN:STAGE, in the place of models and adapters. Empty `dtype` and `quantization`: as the run has
    them, else float32 and none."""

    exams: Sequence[Path]
    models: Sequence[str] = ()
    adapters: Sequence[Path] = ()
    run: str = ""
    settings: ExamSettings = field(default_factory=ExamSettings)
    dtype: str = ""
    quantization: str = ""
    table: Path | None = None
    """A training table: which items its rows touch is reported."""
    out: Path | None = None
    resume: bool = False
    cache: bool = True

    def refuse(self) -> None:
        """Raise RecipeError with everything that is wrong with the words alone."""
        problems = exam_problems("exam", self.settings)
        found = [f"--{problem.removeprefix('exam.').removeprefix('exam: ')}" for problem in problems]
        named = [*self.exams, *map(Path, filter(None, (self.settings.pool, self.settings.labels))), self.table]
        found += [f"{path}: is not there (give a file that is)" for path in named if path and not path.exists()]
        if not self.exams:
            found.append("EXAM: none is given (give one or more files)")
        if self.settings.labels and len(self.exams) > 1:
            found.append("--labels: go with one exam (examine the others by themselves)")
        if bool(self.run) == bool(self.models):
            found.append("--model, --run: one of them says who is examined (--model NAME, or --run RUN:STAGE)")
        if self.adapters and len(self.models) != 1:
            found.append("--adapter: goes with exactly one --model (the base of the adapters)")
        if len(set(self.models)) < len(self.models):
            found.append("--model: one is named twice (name each once)")
        if self.dtype and self.dtype not in DTYPES:
            found.append(f"--dtype: {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if self.quantization not in QUANTIZATIONS:
            found.append(f"--quantization: {self.quantization!r} is not nf4 or int8")
        if self.resume and self.out is None:
            found.append("--resume: of which examination? (give its folder with --out)")
        if found:
            raise RecipeError("exam", found)

    def examined(self) -> list[tuple[ModelConfig, list[Candidate]]]:
        """Each base with who is examined on it: alone, then with its adapters. Raises RequestError."""
        if self.run:
            return [self._run()]
        if len(self.models) == 1:
            return [(self._base(ModelConfig(base=self.models[0])), [Candidate(BASE), *find_candidates(self.adapters)])]
        names = _short(self.models)
        return [
            (self._base(ModelConfig(base=model)), [Candidate(name)])
            for model, name in zip(self.models, names, strict=True)
        ]

    def _base(self, config: ModelConfig) -> ModelConfig:
        return replace(config, dtype=self.dtype or config.dtype, quantization=self.quantization or config.quantization)

    def _run(self) -> tuple[ModelConfig, list[Candidate]]:
        """The base and the checkpoints of a stage; its adapter where no checkpoint was kept."""
        path, _, name = self.run.rpartition(":") if not Path(self.run).is_dir() else (self.run, "", "")
        run = RunDir.open(Path(path or name), "give --run RUN or RUN:STAGE")
        stages = stage_recipes(load_recipe(run.recipe))
        stage = name if path and name else list(stages)[-1]
        if stage not in stages or not stages[stage].task.of_text:
            raise RequestError(
                f"--run {self.run}: has no stage {stage!r} that was trained on text",
                f"stages of this run: {', '.join(stages)}",
            )
        place = run.stage(stage)
        folder = place.checkpoints if any(place.checkpoints.glob("step-*")) else place.adapter
        return self._base(stages[stage].model), [Candidate(BASE), *find_candidates([folder])]

    def words(self) -> list[str]:
        """The request as a command line, without --resume."""
        settings = self.settings
        pairs: list[tuple[str, Any]] = [
            *(("--model", model) for model in self.models),
            *(("--adapter", folder) for folder in self.adapters),
            ("--run", self.run),
            ("--method", settings.method if settings.method != "letters" else ""),
            ("--normalization", settings.normalization if settings.normalization != "none" else ""),
            ("--prompts", ",".join(settings.prompts) if settings.prompts != ["question"] else ""),
            ("--shots", settings.shots or ""),
            ("--pool", settings.pool),
            ("--labels", settings.labels),
            ("--answers", settings.answers),
            ("--quantization", self.quantization),
            ("--dtype", self.dtype),
            ("--table", self.table or ""),
            ("--out", self.out or ""),
        ]
        flags = [
            ("--plain", not settings.chat_template),
            ("--one-order", not settings.both_orders),
            ("--no-cache", not self.cache),
        ]
        return [
            *("luthier", "exam", *map(str, self.exams)),
            *(str(word) for name, value in pairs if value != "" for word in (name, value)),
            *(name for name, given in flags if given),
        ]

    def line(self) -> str:
        """`words` as they are typed."""
        return shlex.join(self.words())


def _short(models: Sequence[str]) -> list[str]:
    """Names for folders: the last part of a hub id or path, or all of it where two end alike."""
    last = [model.rstrip("/").rpartition("/")[2].replace(":", "-") for model in models]
    if len(set(last)) == len(last) and BASE not in last:
        return last
    return [model.strip("/.").replace("/", "-").replace(":", "-") for model in models]
