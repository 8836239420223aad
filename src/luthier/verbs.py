"""The public API: one function a verb. Each returns its figures as a mapping and prints for people on stderr."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from luthier.console import say, table
from luthier.errors import ExistsError, Interrupted, LuthierError, RecipeError, RequestError
from luthier.files import read_json, write_json, write_text
from luthier.outcome.exams.tables import for_terminal
from luthier.outcome.exams.view import of_stage
from luthier.outcome.pagerecords import Records
from luthier.quickstart import free_folder, headline, lay_out, shipped_recipes
from luthier.recipe import Recipe, Scale
from luthier.recipefile import digest, load_recipe, stage_recipes, to_yaml
from luthier.records import RunManifest
from luthier.rundir import RunDir, StageDir, StageOptions, refuse_existing

_LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "numpy",
    "scipy",
    "pyarrow",
    "soundfile",
    "av",
    "soxr",
    "safetensors",
    "huggingface-hub",
)
_EXTRAS = {
    "serve": ("the pages and the API", ("gradio", "markdown-it-py", "pocketsphinx", "prometheus-client")),
    "whisper": ("about 100 languages heard", ("faster-whisper",)),
    "gguf": ("GGUF files written", ("gguf",)),
}
"""Extras of this package that a page or an export wants: what for, and the libraries."""


def new(kind: str, folder: Path) -> dict[str, Any]:
    """Write a commented recipe of a kind."""
    recipes = shipped_recipes()
    if kind not in recipes:
        raise RequestError(f"no recipe of the kind {kind!r} yet", f"kinds that run today: {', '.join(recipes)}")
    path = folder / f"{kind}.yaml"
    if path.exists():
        raise ExistsError(f"{path}: exists already", "name another folder")
    write_text(path, recipes[kind])
    say(f"wrote {path}; next: luthier check {path}")
    return {"recipe": str(path)}


def check(recipe: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that can be known before training. Raises RecipeError with what must be mended."""
    from luthier.check import check as run_check

    found = run_check(load_recipe(recipe, overrides))
    for section in found.sections:
        say(section + "\n")
    if found.problems:
        raise RecipeError(str(recipe), found.problems)
    say("nothing to mend")
    return found.figures


def run(
    recipe: Path,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    verify: bool = False,
) -> dict[str, Any]:
    """Data, stages, evaluation and report, as the recipe says. Returns the headline scores.

    `verify`, with `resume`, first goes from one checkpoint of the run to the next once more and compares every byte.
    """
    if verify and not resume:
        raise RequestError("--verify: there is nothing to prove before a run has checkpoints", "give --resume too")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RequestError("WORLD_SIZE is above 1: a run uses one process today", "start luthier without torchrun")
    loaded = load_recipe(recipe, overrides)
    folder = out or Path("runs") / (loaded.name or recipe.stem)
    line = _command(recipe, folder, overrides)
    try:
        _look_ahead(recipe, loaded, folder, resume)
    except KeyboardInterrupt as error:
        begin_again = f"{line} --resume" if resume else line
        raise Interrupted("interrupted before anything was done", begin_again) from error
    return _run(
        recipe, loaded, open_run(loaded, folder, line, resume), StageOptions(resume, verify, f"{line} --resume")
    )


def _look_ahead(recipe: Path, loaded: Recipe, folder: Path, resume: bool) -> None:
    """Refuse what cannot work before the run's folder is made: it would stand in the way of the mended recipe."""
    if resume:
        _reopen(loaded, folder)
    else:
        refuse_existing(folder)
    for stage in stage_recipes(loaded).values():
        if stage.publish.push:
            from luthier.publishing.request import find_endpoint

            find_endpoint(stage.publish.token_env)  # a token that is missing is better known now than after training
    from luthier.stages.preflight import look_ahead, refuse

    refuse(str(recipe), look_ahead(_waiting(RunDir(folder), loaded), folder))


def _waiting(rundir: RunDir, loaded: Recipe) -> dict[str, Recipe]:
    """Stages that are not finished."""
    return {name: stage for name, stage in stage_recipes(loaded).items() if not rundir.stage(name).finished}


def _run(recipe: Path, loaded: Recipe, rundir: RunDir, options: StageOptions) -> dict[str, Any]:
    with rundir.lock():
        rundir.update_manifest(status="running")
        try:
            unsent = _work(recipe, loaded, rundir, options)
        except KeyboardInterrupt as error:
            rundir.update_manifest(status="interrupted")
            raise Interrupted("interrupted; what was done is kept", options.resume_line) from error
        except Exception as error:
            rundir.update_manifest(status="interrupted" if isinstance(error, Interrupted) else "failed")
            if isinstance(error, RecipeError) and not options.resume and not rundir.began:
                rundir.clear()  # nothing was trained, and the mended recipe may want the same folder
            raise
        rundir.update_manifest(status="finished", finished=_now())
        report(rundir.path)
    say(headline(rundir.path))
    for name in stage_recipes(loaded):
        for view in of_stage(Records(rundir.stage(name).path)):
            say(f"\nstage {name}, {for_terminal(view)}")
    say(f"report: {rundir.report}")
    if unsent:
        raise unsent[0]
    return {
        "run": str(rundir.path),
        "report": str(rundir.report),
        "stages": {name: read_json(rundir.stage(name).scores) for name in stage_recipes(loaded)},
        "published": {
            name: read_json(rundir.stage(name).published)["url"]
            for name, stage in stage_recipes(loaded).items()
            if stage.publish.push
        },
    }


def open_run(loaded: Recipe, folder: Path, line: str, resume: bool) -> RunDir:
    """A new run folder with its recipe and manifest, or the one to go on with (of the same recipe)."""
    if resume:
        rundir = _reopen(loaded, folder)
        if not rundir.recipe.is_file():  # killed between the two first writes of a run
            write_text(rundir.recipe, to_yaml(loaded))
        return rundir
    rundir = RunDir.create(folder)
    write_json(
        rundir.manifest,
        RunManifest(
            name=loaded.name,
            status="new",
            created=_now(),
            seed=loaded.seed,
            stages=list(stage_recipes(loaded)),
            command=line,
            versions=versions(),
            machine={},
            hashes={"recipe": digest(loaded)},
        ).to_json(),
    )
    write_text(rundir.recipe, to_yaml(loaded))
    return rundir


def _reopen(loaded: Recipe, folder: Path) -> RunDir:
    """The run in a folder. Raises RequestError where there is none, or one that was begun with another recipe."""
    rundir = RunDir.open(folder, "leave out --resume to begin a run there, or give the --out that the run was given")
    if rundir.read_manifest()["hashes"]["recipe"] != digest(loaded):
        raise RequestError(
            f"{folder}: was begun with another recipe or other --set values",
            f"give the same ones (they are in {rundir.recipe}), or another --out",
        )
    return rundir


def _work(recipe: Path, loaded: Recipe, rundir: RunDir, options: StageOptions) -> list[LuthierError]:
    """The table, then stage after stage. Returns what kept finished stages from being published."""
    from luthier.data.building.build import build
    from luthier.data.building.mixture import MANIFEST as TABLE
    from luthier.data.building.stagecache import default_cache
    from luthier.data.table import read_manifest
    from luthier.runtime.devices import describe
    from luthier.stages.preflight import look_at_rows, refuse
    from luthier.stages.run import run_stage
    from luthier.stages.sources import table_request

    stages = stage_recipes(loaded)
    unsent: list[LuthierError] = []
    if not (rundir.data / TABLE).is_file():
        # Large sets of chats are worth keeping for the next run; graded answers are read anew.
        cache = default_cache() if loaded.task.of_text else None
        say(build(table_request(stages), rundir.data, cache).ledger.table())
    refuse(str(recipe), look_at_rows(_waiting(rundir, loaded), rundir.data))
    data = str(read_manifest(rundir.data)["digest"])
    rundir.update_manifest(machine=describe(), hashes={**rundir.read_manifest()["hashes"], "data": data})
    for name in stages:
        base = run_stage(rundir, name, stages, options)
        rundir.update_manifest(hashes={**rundir.read_manifest()["hashes"], "base": base})
        if stages[name].publish.push:
            unsent += _publish(rundir, name, stages[name])
    return unsent


def _publish(rundir: RunDir, name: str, stage: Recipe) -> list[LuthierError]:
    """Publish a finished stage. A hub that is down must not keep the next stage from being trained."""
    from luthier.publishing.publish import publish
    from luthier.publishing.request import PublishRequest

    try:
        publish(rundir, name, PublishRequest.of(stage))
    except LuthierError as error:
        say(f"stage {name} is trained, and not published: {error}")
        return [type(error)(f"stage {name} is trained, and not published: {error.message}", error.mend)]
    return []


def report(folder: Path) -> Path:
    """Write report.html of a run, or of an examination, from its records, and the card of each stage that sat exams."""
    from luthier.outcome.cards import exam_card
    from luthier.outcome.exampage import write_exam_page
    from luthier.outcome.report import write_report

    if (folder / "exam-run.json").is_file():
        return write_exam_page(folder)
    for stage in sorted(RunDir.open(folder).path.glob("stages/*")):
        card = exam_card(stage)
        if card:
            write_text(StageDir(stage).card, f"# {stage.name}\n\n{card}")
    return write_report(folder)


def quickstart(out: Path | None = None, kind: str = "speaking") -> dict[str, Any]:
    """Synthetic data, a toy model, stages, a report. Without `out`: the first free quickstart-run folder."""
    out = out or free_folder("quickstart-run")
    recipe = lay_out(out, kind)
    if kind != "expert":
        return run(recipe, out / "run")
    from luthier.runtime.threads import one_thread

    with one_thread():  # its steps take hundredths of a second: threads would wait longer than they work
        return run(recipe, out / "run")


def rehearse(recipe: Path, out: Path | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe end to end at toy size, on simulated rows where a source cannot be reached."""
    from luthier.rehearse import rehearsal

    loaded = load_recipe(recipe, overrides)
    folder = out or Path(tempfile.mkdtemp(prefix="luthier-rehearsal-"))
    refuse_existing(folder)
    import yaml

    tree = rehearsal(loaded, folder / "standins")
    path = folder / "rehearsal.yaml"
    write_text(path, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    from luthier.runtime.threads import one_thread

    with one_thread():  # on a model this small, threads that wait for one another cost more than they give
        return run(path, folder / "run")


def predict(folder: Path, inputs: Sequence[Path], question: str = "", stage: str = "") -> Iterator[dict[str, Any]]:
    """Judge recordings with a finished stage (the last one by default). Yields one mapping per input, in order."""
    from luthier.predict import predict as run_predict

    yield from run_predict(RunDir.open(folder), inputs, question, stage)


def score(
    predictions: Path, labels: Path | None = None, pass_mark: float = 4.0, event: str = "panel"
) -> dict[str, Any]:
    """Metrics of verdicts from a file of predictions, of ours or from elsewhere."""
    from luthier.assess.outside import read_predictions, score_outside

    outside = read_predictions(predictions, labels)
    scores = score_outside(outside, Scale(pass_mark=pass_mark), event=event or outside.event or "panel")
    rows = [
        [
            name,
            f"{value['value']:.4f}",
            "–" if not value.get("ci") else f"{value['ci'][0]:.3f} .. {value['ci'][1]:.3f}",
            value["n"],
        ]
        for name, value in scores.items()
        if isinstance(value, dict) and "value" in value
    ]
    say(table(["score", "value", "95 % interval", "n"], rows))
    for line in outside.unreadable[:10]:
        say(f"unreadable, counted as wrong: {line}")
    if outside.note:
        say(outside.note)
    return scores


def doctor() -> dict[str, Any]:
    """Versions, devices, and what is missing with the line that installs it."""
    found = versions()
    missing = [name for name in (*_LIBRARIES, "espeakng-loader") if name not in found and not _version(name)]
    rows = [[name, version] for name, version in found.items()]
    rows += [[name, f"missing: pip install {name}"] for name in missing]
    figures: dict[str, Any] = {"versions": found, "missing": missing}
    if "torch" in found:
        from luthier.runtime.devices import describe

        figures["machine"] = describe()
        rows += [[key, value] for key, value in figures["machine"].items()]
    figures["extras"] = _extras()
    rows += [[f"{name}: {one['for']}", one["mend"] or "installed"] for name, one in figures["extras"].items()]
    say(table(["part", "found"], rows))
    return figures


def _extras() -> dict[str, dict[str, str]]:
    """What is optional: what it is for, and the line that installs it, empty where it is there."""
    from luthier.engines.llamaserver import INSTALL, has_llamacpp

    found = {}
    for name, (purpose, libraries) in _EXTRAS.items():
        absent = [library for library in libraries if not _version(library)]
        mend = f"missing {', '.join(absent)}: pip install 'luthier[{name}]'" if absent else ""
        found[name] = {"for": purpose, "mend": mend}
    found["llama.cpp"] = {"for": "GGUF files run", "mend": "" if has_llamacpp() else f"missing: {INSTALL}"}
    return found


def versions() -> dict[str, str]:
    """Installed versions of what matters to a run."""
    found = {name: _version(name) for name in ("luthier", *_LIBRARIES)}
    return {name: version for name, version in found.items() if version}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _command(recipe: Path, out: Path, overrides: Sequence[str]) -> str:
    sets = [word for override in overrides for word in ("--set", override)]
    return shlex.join(["luthier", "run", os.fspath(recipe), "--out", os.fspath(out), *sets])


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
