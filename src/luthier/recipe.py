"""The recipe as a tree of small dataclasses: every option declared once, with its type, default and meaning.

The string below a field is its documentation: `luthier new`, the docs and error messages read it. Checks that
need more than one field are in `Recipe.problems`, which reports all of them at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from luthier.recipe_data import DataConfig, data_problems

EVENTS = ("panel", "rater", "latent")
READOUTS = ("tokens", "head", "ordinal")
KINDS = ("verdict", "chat")
SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "constant")


@dataclass
class LoraSettings:
    """Low-rank adapters on the decoder (Hu et al. 2021, arXiv 2106.09685)."""

    r: int = 16
    """Rank."""
    alpha: int = 32
    """Scale: the update is multiplied by alpha / r."""
    dropout: float = 0.05
    """Dropout on the adapter's input."""
    target_modules: str = ""
    """A regular expression over module names; empty takes the family's anchored decoder pattern."""


@dataclass
class LearnedTokens:
    """Token embeddings that are trained: the read-out token, and a soft prompt before the sound."""

    readout: str = "<|verdict|>"
    """The token at whose position the verdict is read."""
    soft_prompt: int = 0
    """How many learned tokens stand before the sound (0: none)."""
    learning_rate: float = 1.0e-3
    """Their own learning rate; no weight decay applies to them."""


@dataclass
class ModelConfig:
    """The base model and what of it is tuned."""

    base: str = ""
    """A hub id, a local folder, or `toy:FAMILY`."""
    revision: str = ""
    """The hub revision; empty takes the family's pinned one."""
    builtin_adapter: str = ""
    """A folder of the base (such as speech-lora) that is merged into it before tuning; empty: none."""
    dtype: str = "float32"
    """float32 or bfloat16: how frozen weights are held; what is trained stays float32."""
    tuning: str = "lora"
    """lora, or full: every weight that the sound and the prompt pass through."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    learned_tokens: LearnedTokens = field(default_factory=LearnedTokens)
    train_encoder: bool = False
    """With lora: tune the sound encoder too (every weight of it)."""
    train_projector: bool = False
    """With lora: tune the projector between encoder and decoder too."""
    max_tokens: int = 2048
    """Rows whose prompt and sound are longer are dropped and counted."""


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
    """verdict: graded recordings, pass or fail with its probability. chat: answers in conversations (tables and
    checks only: it does not train yet)."""
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


@dataclass
class TrainConfig:
    """The arithmetic of a run."""

    epochs: float = 5
    max_steps: int = 0
    """Stop after so many optimizer steps; 0: as the epochs say."""
    learning_rate: float = 5.0e-5
    batch_size: int = 16
    """Rows in one optimizer step, over all devices and accumulation."""
    micro_batch_size: int = 8
    """Rows in one forward pass; accumulation follows from batch_size."""
    schedule: str = "linear"
    """linear, cosine, cosine_with_restarts or constant."""
    warmup_ratio: float = 0.05
    warmup_steps: int = 0
    """Wins over warmup_ratio when above 0."""
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_epsilon: float = 1.0e-8
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0: never."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    save_every: int = 50
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay (at least 2, the best one beside them)."""
    workers: int = 0
    """Processes that prepare batches."""
    select: str = "last"
    """last, or best: the epoch with the lowest validation loss becomes the final adapter."""
    gradient_checkpointing: bool = False


@dataclass
class EvaluateConfig:
    """How held-out answers are scored."""

    batch_size: int = 32
    resamples: int = 1000
    """Bootstrap resamples (of speakers) behind each interval."""
    deafness_test: bool = True
    """Score the test rows once more with recordings swapped between speakers."""


@dataclass
class TrackConfig:
    """Trackers that mirror our own records."""

    trackers: list[str] = field(default_factory=list)


@dataclass
class PublishConfig:
    """Where a finished stage may be published; nothing is sent unless `push` is true."""

    repo: str = ""
    private: bool = True
    push: bool = False


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
            *_model_problems(self),
            *data_problems(self.data, self.task.kind),
            *_task_problems(self),
            *_train_problems(self),
        ]


def _model_problems(recipe: Recipe) -> list[str]:
    model, found = recipe.model, []
    if not model.base:
        found.append("model.base: missing (a hub id, a folder, or toy:phi4-multimodal)")
    if model.tuning not in ("lora", "full"):
        found.append(f"model.tuning: {model.tuning!r} is not lora or full")
    if model.dtype not in ("float32", "bfloat16"):
        found.append(f"model.dtype: {model.dtype!r} is not float32 or bfloat16")
    if model.dtype == "bfloat16" and model.train_encoder != model.train_projector:
        found.append(
            "model.train_encoder and model.train_projector: with bfloat16 both or neither (float32 and "
            "bfloat16 modules would meet)"
        )
    if model.lora.r < 1:
        found.append(f"model.lora.r: {model.lora.r} is below 1")
    if not 0 <= model.lora.dropout < 1:
        found.append(f"model.lora.dropout: {model.lora.dropout} is outside 0..1")
    if model.learned_tokens.soft_prompt < 0:
        found.append("model.learned_tokens.soft_prompt: below 0")
    return found


def _task_problems(recipe: Recipe) -> list[str]:
    task, found = recipe.task, []
    scale = task.scale
    if task.kind not in KINDS:
        found.append(f"task.kind: {task.kind!r} does not run yet ({' and '.join(KINDS)} do)")
    if task.kind == "chat":
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


def _train_problems(recipe: Recipe) -> list[str]:
    train, found = recipe.train, []
    for name in ("learning_rate", "batch_size", "micro_batch_size", "log_every", "save_every"):
        if getattr(train, name) <= 0:
            found.append(f"train.{name}: must be above 0")
    if train.epochs <= 0 and train.max_steps <= 0:
        found.append("train.epochs: must be above 0 (or give train.max_steps)")
    if train.schedule not in SCHEDULES:
        found.append(f"train.schedule: {train.schedule!r} is not one of {', '.join(SCHEDULES)}")
    if train.select not in ("last", "best"):
        found.append(f"train.select: {train.select!r} is not last or best")
    if train.select == "best" and recipe.data.validation_fraction == 0:
        found.append("train.select: best needs data.validation_fraction above 0")
    if train.keep_checkpoints < 2:
        found.append("train.keep_checkpoints: at least 2, or a kill while saving leaves none")
    for name in ("max_steps", "warmup_steps", "weight_decay", "max_grad_norm", "workers"):
        if getattr(train, name) < 0:
            found.append(f"train.{name}: must not be below 0")
    if recipe.seed < 0:
        found.append("seed: must not be below 0")
    if recipe.evaluate.batch_size < 1:
        found.append("evaluate.batch_size: must be at least 1")
    if recipe.evaluate.resamples < 20:
        found.append("evaluate.resamples: at least 20, or an interval says nothing")
    if recipe.track.trackers:
        found.append("track.trackers: no tracker runs yet (leave it empty; metrics.jsonl and report.html are written)")
    if recipe.publish.push:
        found.append("publish.push: publishing does not run yet (set it to false; a stage's adapter/ can be uploaded)")
    if not 0 <= train.warmup_ratio < 1:
        found.append(f"train.warmup_ratio: {train.warmup_ratio} is outside 0..1")
    return found
