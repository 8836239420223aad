"""The recipe as a tree of small dataclasses: every option declared once, with its type, default and meaning.

The string below a field is its documentation: `luthier new`, the docs and error messages read it. Checks that
need more than one field are in `Recipe.problems`, which reports all of them at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from luthier.recipe_data import DataConfig, data_problems
from luthier.recipe_describe import DescribeSettings, describe_problems
from luthier.recipe_exam import ExamSettings, exam_problems
from luthier.recipe_model import ModelConfig, model_problems
from luthier.recipe_train import TrainConfig, train_problems

EVENTS = ("panel", "rater", "latent")
READOUTS = ("tokens", "head", "ordinal")
KINDS = ("verdict", "chat", "exam", "describe")
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
_OF_VERDICTS = (
    "model.builtin_adapter model.learned_tokens learned_tokens "
    "task.instruction task.answers task.scale task.event task.target task.readout task.mass_weight "
    "task.ranking_weight evaluate.deafness_test"
).split()
_OF_DESCRIPTIONS = "task.describe evaluate.describe_rows evaluate.describe_before".split()
_UNREAD = {
    "chat": [*_OF_VERDICTS, *_OF_DESCRIPTIONS],
    "exam": [*_OF_VERDICTS, *_OF_DESCRIPTIONS],
    "describe": _OF_VERDICTS,
    "verdict": (
        "model.quantization model.added_tokens train.micro_batch_tokens train.truncation train.label_smoothing "
        "train.torch_compile evaluate.validation_rows evaluate.samples evaluate.sample_tokens evaluate.exams "
        "evaluate.examine evaluate.examine_every evaluate.choose_by model.lora.parts train.feature_store data.augment"
    ).split()
    + _OF_DESCRIPTIONS,
}
"""Keys that a task does not read, with all that is below them."""
_TAKEN_OVER = (
    "task.kind model.base model.revision model.builtin_adapter model.quantization model.tuning model.lora.r "
    "model.lora.alpha model.lora.use_rslora model.lora.use_dora model.lora.parts model.lora.target_modules "
    "model.modules_to_save model.added_tokens model.learned_tokens.readout model.learned_tokens.soft_prompt "
    "model.train_encoder model.train_projector"
).split()
"""Keys that a stage shares with the one it starts from, or the adapter does not fit it."""


@dataclass
class Scale:
    """The grades: where they begin and end, their step, and the mark at which an answer passes."""

    minimum: float = 1.0
    maximum: float = 5.0
    step: float = 0.5
    pass_mark: float = 4.0


@dataclass
class TargetSettings:
    """How a grade becomes the probability that is trained on."""

    method: str = "votes"
    """votes, hard, table, linear, logistic, raters or custom."""
    temperature: float = 0.25
    """For logistic: the width of the slope, in grades."""
    table: dict[Any, Any] = field(default_factory=dict)
    """For table: grade -> [answer, probability] or [answer, low, high], the probability of that answer."""
    smoothing: float = 0.5
    """For raters: pseudo-votes added to each side (0.5 is Jeffreys' prior)."""
    function: str = ""
    """For custom: `module:function`, called with (grade, raters, scale)."""


@dataclass
class TaskConfig:
    """What is asked of the model."""

    kind: str = "verdict"
    """verdict: graded recordings, pass or fail with its probability. chat: answers in conversations. exam: trained as
    chats are, and judged by the exams of evaluate.exams. describe: pictures described in a fixed form; trained as chats
    are, and scored field by field."""
    instruction: str = "Listen to the answer to the question below. Does it pass? Answer 1 for pass, 0 for fail."
    """Stands before the question in every prompt."""
    answers: dict[str, str] = field(default_factory=lambda: {"pass": "1", "fail": "0"})
    """The two answers; each must be a single token."""
    scale: Scale = field(default_factory=Scale)
    event: str = "rater"
    """Whose probability p_pass is: panel (the recorded grade passes), rater (a random rater passes it), latent."""
    target: TargetSettings = field(default_factory=TargetSettings)
    readout: str = "tokens"
    """tokens (two answer tokens at one position), head (a linear head), ordinal (cumulative logits over grades)."""
    mass_weight: float = 0.1
    """Weight of the term that keeps the two answers likely among all tokens (tokens read-out)."""
    ranking_weight: float = 0.0
    """Weight of the pairwise ranking term on pairs across the pass mark (Burges et al. 2005)."""
    describe: DescribeSettings = field(default_factory=DescribeSettings)

    @property
    def of_text(self) -> bool:
        """Whether rows are texts and chats: those of every task but verdicts."""
        return self.kind in ("chat", "exam", "describe")


@dataclass
class EvaluateConfig:
    """How held-out answers are scored."""

    batch_size: int = 32
    resamples: int = 1000
    """Bootstrap resamples (of speakers) behind each interval."""
    validation_rows: int = 200
    """Chat: validation rows that are scored at every look during training; 0: all of them."""
    samples: int = 4
    """Chat: held-out questions that are answered for the report, before and after training."""
    sample_tokens: int = 96
    """Chat: the longest of these answers, in tokens."""
    describe_rows: int = 0
    """Describe: the first so many held-out rows are described and scored; 0: all of them."""
    describe_before: bool = False
    """Describe: also before training. A base that was never told the form gives few answers that can be read."""
    deafness_test: bool = True
    """Score the test rows once more with recordings swapped between speakers."""
    exams: dict[str, ExamSettings] = field(default_factory=dict)
    """Chat and exam: the exams that checkpoints sit, each named after its source in data.sources."""
    examine: str = "after"
    """When: during training, at each checkpoint, or after it."""
    examine_every: int = 1
    """Examine every so many checkpoints, and always the last."""
    choose_by: str = ""
    """The exam that train.select: exam and early stopping go by; its scores flatter the checkpoint that they choose,
    the others' do not."""


@dataclass
class TrackConfig:
    """Trackers that mirror our own records."""

    trackers: list[str] = field(default_factory=list)
    """Any of tensorboard, wandb, trackio, mlflow; our own metrics.jsonl is always written first."""
    project: str = "luthier"
    """The project or experiment that trackers file a run under."""


@dataclass
class PublishConfig:
    """Where a finished stage is published; nothing is sent unless `push` is true, or `luthier publish` is called."""

    repo: str = ""
    """NAMESPACE/NAME on the hub, a repository of its own for each stage (with `${vars}` of the stage in it)."""
    private: bool = True
    """Whether the repository is made for its owner alone; a public one that exists is then refused."""
    push: bool = False
    """Publish a stage as soon as it is finished."""
    update: bool = False
    """Replace what another run, or somebody, has put there."""
    license: str = ""
    """SPDX name of the licence that the adapter is given; empty: the card says that none was."""
    token_env: str = ""
    """For another hub than the default one ($HF_ENDPOINT): the environment variable that holds its token."""


@dataclass
class Recipe:
    """One recipe. `stages` maps a stage's name to the keys that it overrides."""

    name: str = ""
    vars: dict[str, str] = field(default_factory=dict)
    seed: int = 17
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    start_from: str = ""
    """The stage whose adapter this stage starts from (a stage's key)."""
    learned_tokens: str = "reuse"
    """reuse the learned tokens of `start_from`, or make them new (a stage's key)."""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Everything wrong that needs more than one field to see, as `key: reason (mend)` lines."""
        return [
            *model_problems(self.model),
            *data_problems(self.data, self.task.kind),
            *_task_problems(self),
            *_unread_problems(self),
            *train_problems(self.train),
            *_run_problems(self),
            *_examination_problems(self),
        ]


def repository_problems(stages: Mapping[str, Recipe]) -> list[str]:
    """Stages that would be published to one repository, where the second would replace the first."""
    taken: dict[str, str] = {}
    found = []
    for name, stage in stages.items():
        repo = stage.publish.repo
        if stage.publish.push and repo in taken:
            found.append(
                f"stages.{name}.publish.repo: {repo} is that of stage {taken[repo]} too (put a variable that differs "
                "into publish.repo, such as ${form_id})"
            )
        taken.setdefault(repo, name)
    return found


def start_problems(stages: Mapping[str, Recipe]) -> list[str]:
    """What keeps a stage from starting where its `start_from` ended, as `stages.NAME.key: reason (mend)` lines."""
    found = []
    for name, stage in stages.items():
        if stage.start_from not in stages:
            continue
        earlier = stages[stage.start_from]
        lora = stage.model.tuning == earlier.model.tuning == "lora"
        for key in _TAKEN_OVER:
            here, there = _value(stage, key), _value(earlier, key)
            if here != there and (lora or not key.startswith("model.lora.")):
                found.append(
                    f"stages.{name}.{key}: {here!r}, and {there!r} in stage {stage.start_from}, whose adapter this "
                    "stage starts from (make them the same, or leave start_from out)"
                )
    return found


def _value(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = getattr(tree, name)
    return tree


def _leaves(here: Any, default: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """(key, value, default) of a field and of all below it."""
    if not is_dataclass(here):
        yield key, here, default
        return
    for item in fields(here):
        yield from _leaves(getattr(here, item.name), getattr(default, item.name), f"{key}.{item.name}")


def _unread_problems(recipe: Recipe) -> list[str]:
    """Keys that are set and that the task would leave unread without a word."""
    kind, default = recipe.task.kind, Recipe()
    # The rows of a chat's added tokens are trained at the rate of learned tokens.
    read = {"model.learned_tokens.learning_rate"} if recipe.task.of_text and recipe.model.added_tokens else set()
    leaves = [leaf for key in _UNREAD.get(kind, ()) for leaf in _leaves(_value(recipe, key), _value(default, key), key)]
    return [
        f"{key}: means nothing for task.kind: {kind} (leave it out)"
        for key, here, usual in leaves
        if here != usual and key not in read
    ]


def _task_problems(recipe: Recipe) -> list[str]:
    task, found = recipe.task, []
    scale = task.scale
    if task.kind not in KINDS:
        found.append(f"task.kind: {task.kind!r} does not run yet ({' and '.join(KINDS)} do)")
    if task.kind == "describe":
        found += describe_problems(task.describe)
    else:
        found += [
            f"data.sources.{name}.format: described goes with task.kind: describe (which says how it is written)"
            for name, source in recipe.data.sources.items()
            if source.format == "described"
        ]
    if task.of_text:
        return found
    if task.event not in EVENTS:
        found.append(f"task.event: {task.event!r} is not one of {', '.join(EVENTS)}")
    if task.readout not in READOUTS:
        found.append(f"task.readout: {task.readout!r} is not one of {', '.join(READOUTS)}")
    if not scale.minimum < scale.pass_mark <= scale.maximum or scale.step <= 0:
        found.append("task.scale: minimum < pass_mark <= maximum and step > 0 must hold")
    if set(task.answers) != {"pass", "fail"}:
        found.append("task.answers: needs exactly the keys pass and fail")
    if task.mass_weight < 0 or task.ranking_weight < 0:
        found.append("task.mass_weight and task.ranking_weight: must not be negative")
    if task.ranking_weight > 0 and recipe.train.micro_batch_size < 2:
        found.append("task.ranking_weight: pairs need train.micro_batch_size of at least 2")
    return found


def _run_problems(recipe: Recipe) -> list[str]:
    train, found = recipe.train, []
    if train.select == "best" and recipe.data.validation_fraction == 0:
        found.append("train.select: best needs data.validation_fraction above 0")
    if train.early_stopping_patience and recipe.data.validation_fraction == 0 and train.select != "exam":
        found.append("train.early_stopping_patience: needs data.validation_fraction above 0")
    if train.validate_every and recipe.data.validation_fraction == 0:
        found.append("train.validate_every: needs data.validation_fraction above 0 (or leave it out)")
    if train.optimizer == "muon" and recipe.model.tuning != "full":
        found.append("train.optimizer: muon is for whole matrices (set model.tuning: full, or take adamw)")
    if train.loraplus_ratio and (recipe.model.tuning != "lora" or train.optimizer in ("adafactor", "muon")):
        found.append("train.loraplus_ratio: goes with model.tuning: lora and an AdamW or Lion optimizer (set it to 0)")
    if recipe.seed < 0:
        found.append("seed: must not be below 0")
    if recipe.evaluate.batch_size < 1:
        found.append("evaluate.batch_size: must be at least 1")
    if recipe.evaluate.resamples < 20:
        found.append("evaluate.resamples: at least 20, or an interval says nothing")
    for name in ("validation_rows", "samples", "sample_tokens", "describe_rows"):
        if getattr(recipe.evaluate, name) < 0:
            found.append(f"evaluate.{name}: must not be below 0")
    for tracker in recipe.track.trackers:
        if tracker not in TRACKERS:
            found.append(f"track.trackers: {tracker!r} is not one of {', '.join(TRACKERS)}")
    return found + _publish_problems(recipe.publish)


def _publish_problems(publish: PublishConfig) -> list[str]:
    if publish.push and not publish.repo:
        return ["publish.push: needs publish.repo (NAMESPACE/NAME)"]
    if publish.repo and not repository_id(publish.repo):
        return [f"publish.repo: {publish.repo!r} is no NAMESPACE/NAME of a hub (letters, digits, single . - and _)"]
    return []


def repository_id(text: str) -> bool:
    """Whether a text can be NAMESPACE/NAME on a hub, by the rules that huggingface_hub checks."""
    return (
        re.fullmatch(r"[A-Za-z0-9]\w*(?:[.-]\w+)*/\w+(?:[.-]\w+)*", text, re.ASCII) is not None
        and len(text) <= 96
        and not text.endswith(".git")
    )


def _examination_problems(recipe: Recipe) -> list[str]:
    """What is wrong with the exams, and with what is chosen by them."""
    evaluate, train, data, found = recipe.evaluate, recipe.train, recipe.data, []
    chooses = train.select == "exam"
    if evaluate.examine not in ("during", "after"):
        found.append(f"evaluate.examine: {evaluate.examine!r} is not during or after")
    if evaluate.examine_every < 1:
        found.append("evaluate.examine_every: must be at least 1")
    if not evaluate.exams:
        if recipe.task.kind == "exam" or chooses:
            why = "task.kind: exam" if recipe.task.kind == "exam" else "train.select: exam"
            found.append(f"evaluate.exams: {why} needs one (NAME: {{}}, with its file in data.sources.NAME)")
        return found
    for name, exam in evaluate.exams.items():
        found += exam_problems(f"evaluate.exams.{name}", exam)
        for key, source in (("", name), (".pool", exam.pool)):
            if source and source not in data.sources:
                found.append(f"evaluate.exams.{name}{key}: {source!r} is not in data.sources (say there where it is)")
        if name in (*data.train, *data.test, exam.pool):
            found.append(f"evaluate.exams.{name}: is a source of rows too (an exam is for nothing else)")
    if evaluate.choose_by and evaluate.choose_by not in evaluate.exams:
        found.append(f"evaluate.choose_by: {evaluate.choose_by!r} is not one of {', '.join(evaluate.exams)}")
    if chooses and not evaluate.choose_by:
        found.append(f"evaluate.choose_by: train.select: exam needs it (one of {', '.join(evaluate.exams)})")
    if train.keep_checkpoints and (chooses or evaluate.examine == "after"):
        found.append("train.keep_checkpoints: 0 (all), or there is nothing left to examine after training")
    if chooses and train.early_stopping_patience and evaluate.examine != "during":
        found.append("evaluate.examine: early stopping by an exam needs during")
    return found
