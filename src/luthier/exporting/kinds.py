"""What is exported, and how: the stage of a finished run (or one checkpoint of it), and every option declared once.

Knows a run's folders and recipe; refuses to know weights, templates and what a kind of export consists of.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from luthier.errors import RequestError
from luthier.recipe import Recipe
from luthier.recipe_model import DTYPES
from luthier.rundir import RunDir, StageDir, refuse_existing

KINDS = ("adapter", "merged", "gguf", "ollama", "space")
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_k_m", "q5_k_m", "q6_k", "q4_0")
PARTS = ("merged", "adapter")


@dataclass(frozen=True)
class Subject:
    """A stage whose model leaves the machine."""

    run: RunDir
    name: str
    """Of the stage."""
    recipe: Recipe
    """As this stage has it."""
    folder: Path
    """The PEFT folder: the final adapter, or a checkpoint."""
    step: int | None = None
    """Of the checkpoint; None for the final adapter."""

    @property
    def stage(self) -> StageDir:
        return self.run.stage(self.name)

    @property
    def of_text(self) -> bool:
        """A chat's model; else one that judges recordings."""
        return self.recipe.task.of_text

    @property
    def label(self) -> str:
        """RUN-STAGE, or RUN-STAGE-step-000050."""
        return "-".join([self.run.path.resolve().name, self.name, *([self.folder.name] if self.step else [])])


@dataclass(frozen=True)
class ExportRequest:
    """What `luthier export` is told."""

    run: Path
    to: str
    stage: str = ""
    """Empty: the last finished one."""
    checkpoint: str = ""
    """Such as step-000050, in place of the final adapter."""
    out: Path | None = None
    """A new folder; None: exports/LABEL-KIND."""
    base_name: str = ""
    """The hub id of the base, where the run read it from a local folder."""
    dtype: str = ""
    """Of merged weights; empty: that of the run."""
    allow_gap: float | None = None
    """The largest logit gap of a merge, in place of the limit for its number format."""
    receipt: bool = True
    """Whether the same prompts are put to every form of the model."""
    type: str = ""
    """How a GGUF holds its weights; empty: q8_0, and f16 for an adapter's."""
    what: str = "merged"
    """Of a GGUF: the merged model, or the adapter alone."""
    template: Path | None = None
    """Ollama: a Go template, for a chat template that is not one of the known."""
    llama_cpp: Path | None = None
    """A checkout of llama.cpp, for architectures that are not written here."""
    beside: tuple[str, ...] = ()
    """Space: further models on the same base, each RUN or RUN:STAGE or RUN:STAGE@step-000050."""
    from_hub: tuple[str, ...] = ()
    """Space: the repositories that hold the models, in order; empty: their files lie in the folder."""
    zero_gpu: bool = False
    title: str = ""

    def check(self) -> None:
        """Raise RequestError for words that do not go together."""
        for wrong, what, mend in (
            (self.to not in KINDS, f"--to {self.to}: no such kind", f"choose one of {', '.join(KINDS)}"),
            (self.dtype not in ("", *DTYPES), f"--dtype {self.dtype}", f"choose one of {', '.join(DTYPES)}"),
            (self.type not in ("", *GGUF_TYPES), f"--type {self.type}", f"choose one of {', '.join(GGUF_TYPES)}"),
            (self.what not in PARTS, f"--what {self.what}", f"choose one of {', '.join(PARTS)}"),
            (bool(self.type) and self.to in ("adapter", "merged"), f"--type: {self.to} has none", "leave it out"),
            (self.what != "merged" and self.to != "gguf", "--what: is for --to gguf", "leave it out"),
            (bool(self.dtype) and self.to in ("adapter", "space"), f"--dtype: {self.to} has none", "leave it out"),
            (
                self.to != "space" and bool(self.beside or self.from_hub or self.zero_gpu or self.title),
                "--with, --from-hub, --zero-gpu and --title are for --to space",
                "leave them out",
            ),
            (self.zero_gpu and bool(self.type), "--zero-gpu and --type: a GGUF runs on a processor", "leave one out"),
            (
                bool(self.from_hub) and len(self.from_hub) != 1 + len(self.beside),
                f"--from-hub: {len(self.from_hub)} repositories for {1 + len(self.beside)} models",
                "give one for the run and one for each --with, in order",
            ),
        ):
            if wrong:
                raise RequestError(what, mend)

    def place(self, subject: Subject) -> Path:
        """The folder to be made. Raises ExistsError where it is there, RequestError where it lies in the run."""
        out = self.out or Path("exports") / f"{subject.label}-{self.to}"
        refuse_existing(out)
        if subject.run.path.resolve() in (out.resolve(), *out.resolve().parents):
            raise RequestError(f"--out {out}: lies in the run, to which nothing is added", "name a place outside")
        return out


def open_subject(path: Path, stage: str = "", checkpoint: str = "") -> Subject:
    """A finished stage of a run, or a checkpoint of it. Raises RequestError for one that is not there."""
    from luthier.engines.finding import finished_stages

    run = RunDir.open(path)
    finished = {one.path.name: recipe for one, recipe in finished_stages(run)}
    name = stage or list(finished)[-1]
    if name not in finished:
        raise RequestError(
            f"{path}: stage {name} is not finished (finished: {', '.join(finished)})",
            "let the run finish, or name another --stage",
        )
    place = run.stage(name)
    if not checkpoint:
        return Subject(run, name, finished[name], place.adapter)
    known = sorted(item.name for item in place.checkpoints.glob("step-*"))
    if checkpoint not in known:
        raise RequestError(
            f"--checkpoint {checkpoint}: stage {name} has none of that name", f"choose of {', '.join(known) or 'none'}"
        )
    return Subject(run, name, finished[name], place.checkpoints / checkpoint, int(checkpoint.removeprefix("step-")))


def named_subject(words: str) -> Subject:
    """RUN, RUN:STAGE or RUN:STAGE@step-000050, as `--with` takes them. A folder whose name has a colon is one too."""
    if Path(words).is_dir():
        return open_subject(Path(words))
    run, _, rest = words.rpartition(":")
    stage, _, checkpoint = rest.partition("@")
    return open_subject(Path(run or words), stage if run else "", checkpoint)


def is_place(base: str) -> bool:
    """Whether a base is named by a folder: also by one that is no longer there, whose path is nobody's business."""
    return Path(base).is_absolute() or base.startswith((".", "~")) or Path(base).is_dir()


def base_name(subject: Subject, given: str = "") -> tuple[str, str]:
    """(the name by which others find the base, what is to be said of it or "")."""
    base = subject.recipe.model.base
    if given:
        return given, ""
    if not is_place(base):
        toy = f"{base} is known to luthier alone: it has no weights on a hub" if base.startswith("toy:") else ""
        return base, toy
    return Path(base).name, (
        f"the base was read from a local folder, so the adapter names it {Path(base).name!r}, which no hub knows; "
        "give --base-name ID to name its repository"
    )
