"""The tracking libraries, each behind the same three calls: made open, `log`, `close`.

Runs in a process of its own (`child`). Each library is imported when its mirror is made, after the environment has
been cleared of whatever would make it call home. Nothing is known here of recipes or of training.
"""

from __future__ import annotations

import io
import json
import netrc
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

Metrics = dict[str, float]
_PARAMETERS_AT_ONCE = 100  # MLflow takes no more in one call
_LONGEST_PARAMETER = 6000


@dataclass
class Opening:
    """What a mirror is opened with. `id` is empty for a new run; `step` is the last one that the run has kept."""

    project: str
    name: str
    folder: Path
    about: dict[str, Any]
    id: str = ""
    step: int = 0


class Mirror(Protocol):
    """A run in a tracker. `id` finds it again; `rewinds`: steps after a resumed one may be logged once more."""

    id: str
    note: str
    rewinds: bool

    def log(self, metrics: Metrics, step: int) -> None: ...

    def close(self, status: str) -> None: ...


@runtime_checkable
class Tables(Protocol):
    """A mirror that shows tables too. A cell is a text, a number, or the bytes of a JPEG (b"" for none)."""

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None: ...


class TensorBoard:
    """Event files; a resumed run opens one that hides the steps which the others have after it."""

    rewinds = True

    def __init__(self, opening: Opening) -> None:
        from tensorboardX import SummaryWriter

        self.id = opening.name
        self.note = ""
        purge = opening.step + 1 if opening.id else None
        self._writer = SummaryWriter(str(opening.folder / opening.name), purge_step=purge)
        if not opening.id:
            self._writer.add_text("about", "    " + json.dumps(opening.about, indent=1).replace("\n", "\n    "), 0)

    def log(self, metrics: Metrics, step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a kill loses nothing that was logged

    def close(self, status: str) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases: WANDB_MODE where it is set, else online with a key and a network, else offline."""

    rewinds = False

    def __init__(self, opening: Opening) -> None:
        os.environ["WANDB_CACHE_DIR"] = str(opening.folder / "cache")  # its logs would go to the home folder
        os.environ["WANDB_DATA_DIR"] = str(opening.folder / "data")  # and so would what waits to be sent
        import wandb

        self.id = opening.id or uuid.uuid4().hex[:8]
        self.note = ""
        quiet = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            save_code=False,
            init_timeout=30,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
            x_disable_viewer=True,
        )

        def start(mode: Any) -> Any:
            return wandb.init(
                project=opening.project,
                name=opening.name,
                id=self.id,
                resume="allow",
                allow_val_change=True,
                dir=str(opening.folder.parent),
                config=opening.about,
                mode=mode,
                settings=quiet,
            )

        mode = os.environ.get("WANDB_MODE") or ("online" if _wandb_key() else "offline")
        try:
            self._run = start(mode)
        except wandb.errors.CommError as error:
            if "WANDB_MODE" in os.environ:
                raise
            mode, self.note = "offline", f"its server was not reached ({error}); "
            wandb.teardown()  # or the first attempt still holds the id
            self._run = start(mode)
        if mode == "offline":
            self.note += f"kept offline; `wandb sync {opening.folder}/offline-run-*` sends it later"

    def log(self, metrics: Metrics, step: int) -> None:
        self._run.log(metrics, step=step)

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """The table, and its pictures with the other cells as captions: a table that was kept offline shows the word
        "Image" in their place after it was sent (wandb/wandb#4611)."""
        import wandb
        from PIL import Image

        def picture(data: bytes, caption: str | None = None) -> Any:
            return wandb.Image(Image.open(io.BytesIO(data)), caption=caption, file_type="jpg") if data else None

        cells = [[picture(cell) if isinstance(cell, bytes) else cell for cell in row] for row in rows]
        captioned = [
            picture(cell, " | ".join(str(other) for other in row if not isinstance(other, bytes)))
            for row in rows
            for cell in row
            if isinstance(cell, bytes) and cell
        ]
        self._run.log({name: wandb.Table(columns=columns, data=cells), f"{name}_pictures": captioned})

    def close(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "finished" else 1)


def _wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Trackio:
    """Trackio in a folder of the run; never a Space."""

    rewinds = False

    def __init__(self, opening: Opening) -> None:
        os.environ["TRACKIO_DIR"] = str(opening.folder)  # read when the library is imported
        import trackio

        self.id = opening.name
        self.note = ""
        self._run = trackio.init(
            project=opening.project,
            name=opening.name,
            space_id=None,
            config=opening.about,
            resume="allow" if opening.id else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, metrics: Metrics, step: int) -> None:
        self._run.log(metrics, step=step)

    def close(self, status: str) -> None:
        self._run.finish()


class MLflow:
    """MLflow through its client, which adds no user, command or repository by itself as its `start_run` does."""

    rewinds = False
    _STATUS: Mapping[str, str] = {"finished": "FINISHED", "failed": "FAILED"}

    def __init__(self, opening: Opening) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        local = f"sqlite:///{opening.folder / 'mlflow.db'}"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or local
        self.note = ""
        self._client = MlflowClient(tracking_uri=uri)
        if opening.id:
            self.id = opening.id
            self._client.update_run(self.id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(opening.project)
        artifacts = str(opening.folder / "artifacts") if uri == local else None
        experiment = found.experiment_id if found else self._client.create_experiment(opening.project, artifacts)
        self.id = self._client.create_run(experiment, run_name=opening.name).info.run_id
        told = [Param(name, value[:_LONGEST_PARAMETER]) for name, value in _flat(opening.about)]
        for start in range(0, len(told), _PARAMETERS_AT_ONCE):
            self._client.log_batch(self.id, params=told[start : start + _PARAMETERS_AT_ONCE])

    def log(self, metrics: Metrics, step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in metrics.items()])

    def close(self, status: str) -> None:
        self._client.set_terminated(self.id, self._STATUS.get(status, "KILLED"))


def _flat(tree: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """`a.b` -> text, with the letters that MLflow allows in a name."""
    found = []
    for key, value in tree.items():
        name = above + "".join(letter if letter.isalnum() or letter in "_-/ " else "_" for letter in key)
        if isinstance(value, dict):
            found.extend(_flat(value, f"{name}."))
        else:
            found.append((name[:250], value if isinstance(value, str) else json.dumps(value)))
    return found


MIRRORS: dict[str, Callable[[Opening], Mirror]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
    "mlflow": MLflow,
}
