"""`luthier run` inside an Amazon SageMaker training container: `python -m luthier.sagemaker train`.

Translates the container's contract and does nothing else. Channels named as the recipe's sources become their paths,
hyperparameters become --set values, the run lies where SageMaker keeps checkpoints and goes on from what it finds
there, what others need of a finished run is copied to the model's folder, and a failure is told in its file. Of AWS
itself it knows nothing: no network is used, and every place can be named by an SM_ variable.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import verbs
from luthier.cli import quiet_libraries
from luthier.console import say
from luthier.data.reading.folders import readable_files
from luthier.errors import Interrupted, LuthierError, RequestError
from luthier.files import read_json, write_text
from luthier.quickstart import shipped_recipes
from luthier.recipefile import read_tree

SHIPPED = "expert"
"""The recipe that is run where there is no channel called `recipe`."""
_MADE_AGAIN = shutil.ignore_patterns("checkpoints", "data", "features", "tokens", ".*")
"""What of a run's folder stays out of the model's: checkpoints, rows and caches."""
_FOREIGN = ("sagemaker_", "_")
"""Beginnings of hyperparameters that SageMaker and its tuner add for themselves."""


@dataclass(frozen=True)
class Container:
    """Where SageMaker puts what a training job is given, and where it looks for what the job leaves."""

    environ: Mapping[str, str]
    inputs: Path
    """A folder for each channel."""
    config: Path
    """hyperparameters.json, resourceconfig.json."""
    model: Path
    """Kept as model.tar.gz when the job is done."""
    output: Path
    """The file `failure`, and `data`, which is kept too."""
    checkpoints: Path
    """There only where the job has a place for checkpoints; copied out as it changes, and back before a restart."""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Container:
        """The container's usual places, or those that SM_ variables name."""
        root = Path(environ.get("LUTHIER_ML_ROOT", "/opt/ml"))
        inputs = Path(environ.get("SM_INPUT_DIR", root / "input"))
        return cls(
            environ,
            inputs / "data",
            Path(environ.get("SM_INPUT_CONFIG_DIR", inputs / "config")),
            Path(environ.get("SM_MODEL_DIR", root / "model")),
            root / "output",  # pages of AWS disagree on what SM_OUTPUT_DIR is
            root / "checkpoints",
        )

    @property
    def run(self) -> Path:
        """The run's folder."""
        kept = Path(self.environ.get("SM_OUTPUT_DATA_DIR", self.output / "data"))
        return (self.checkpoints if self.checkpoints.is_dir() else kept) / "run"

    def channel(self, name: str) -> Path | None:
        """A channel's one readable file, or its folder; None where there is no such channel."""
        folder = Path(self.environ.get(f"SM_CHANNEL_{name.upper()}", self.inputs / name))
        if not folder.is_dir():
            return folder if folder.is_file() else None
        found = readable_files(folder)
        return found[0] if len(found) == 1 else folder

    def hyperparameters(self) -> list[str]:
        """The job's hyperparameters as `key=value`; their values are texts, as SageMaker passes them."""
        path = self.config / "hyperparameters.json"
        found = read_json(path) if path.is_file() else json.loads(self.environ.get("SM_HPS", "{}"))
        if not isinstance(found, dict):
            raise RequestError(f"{path}: not a mapping of hyperparameters", "give train.learning_rate and the like")
        own = {key: value for key, value in found.items() if not key.startswith(_FOREIGN)}
        return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in own.items()]

    def refuse_several_hosts(self) -> None:
        """Raise RequestError where the job has several machines: each would train the same by itself."""
        path = self.config / "resourceconfig.json"
        hosts = read_json(path).get("hosts", []) if path.is_file() else []
        if len(hosts) > 1:
            raise RequestError(
                f"{path}: the job has {len(hosts)} machines, and a run uses one", "set its instance count to 1"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one training job. Returns its exit code: 0 done, 1 failed, 2 wrong request, 130 stopped."""
    quiet_libraries()
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SageMaker waits 120 seconds before it kills
    container = Container.of(os.environ)
    try:
        _train(container, options.recipe, options.set)
    except (Interrupted, KeyboardInterrupt):
        say(f"stopped; a job that finds {container.run} as it is now goes on with it")
        return Interrupted.exit_code
    except LuthierError as error:
        _fail(container, str(error))
        print(f"luthier: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        _fail(container, f"{type(error).__name__}: {error}")
        raise
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m luthier.sagemaker", description=main.__doc__)
    parser.add_argument(
        "recipe",
        help=f"a recipe, or `train`, as SageMaker says: the file of the channel `recipe`, else the shipped {SHIPPED}",
    )
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="wins over hyperparameters")
    return parser


def _train(container: Container, named: str, sets: Sequence[str]) -> None:
    container.refuse_several_hosts()
    recipe = _recipe(container) if named == "train" else Path(named)
    overrides = [*_sources(container, read_tree(recipe)), *container.hyperparameters(), *sets]
    for override in overrides:
        say(f"--set {override}")
    verbs.run(recipe, container.run, overrides, resume=(container.run / "run.json").is_file())
    shutil.copytree(container.run, container.model, ignore=_MADE_AGAIN, dirs_exist_ok=True)
    say(f"model: {container.model}")


def _recipe(container: Container) -> Path:
    """The recipe of a job that names none. A shipped one is written beside what the job is told."""
    found = container.channel("recipe")
    if found is None:
        path = container.output / f"{SHIPPED}.yaml"
        write_text(path, shipped_recipes()[SHIPPED])
        return path
    if found.is_dir():
        files = sorted(found.glob("*.yaml"))
        if len(files) != 1:
            raise RequestError(f"{found}: {len(files)} recipes (.yaml) are in the channel", "put one there")
        return files[0]
    return found


def _sources(container: Container, tree: dict[str, Any]) -> list[str]:
    """A path for each source that has a channel; channels that nothing is named after are told."""
    data = tree.get("data") or {}
    names = [str(name) for name in data.get("sources") or {}] if isinstance(data, dict) else []
    channels = {path.name for path in container.inputs.glob("*")} if container.inputs.is_dir() else set()
    for name in sorted(channels - {*names, "recipe"}):
        say(f"channel {name}: the recipe has no source of this name (it has {', '.join(names)})")
    paths = {name: container.channel(name) for name in names}
    return [f"data.sources.{name}.path={path}" for name, path in paths.items() if path is not None]


def _fail(container: Container, text: str) -> None:
    """Say why the job failed, where SageMaker reads its reason from."""
    container.output.mkdir(parents=True, exist_ok=True)
    (container.output / "failure").write_text(text, encoding="utf-8", errors="replace")


if __name__ == "__main__":
    sys.exit(main())
