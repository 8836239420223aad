"""The recipe as a tree of small dataclasses: every option declared once, with its type, default and meaning.

The string below a field is its documentation: `luthier new`, the docs and error messages read it. Checks that
need more than one field are in `Recipe.problems`, which reports all of them at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EVENTS = ("panel", "rater", "latent")
READOUTS = ("tokens", "head", "ordinal")
KINDS = ("verdict", "chat")
FORMATS = (
    "auto",
    "graded",
    "sharegpt",
    "messages",
    "ultrachat",
    "alpaca",
    "prompt_completion",
    "text",
    "image_caption",
)
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
class Source:
    """One table of rows."""

    name: str = ""
    """Filled from the key in `data.sources`."""
    hub: str = ""
    """A hub dataset id."""
    split: str = "train"
    """Which split of the hub dataset."""
    revision: str = ""
    """A hub revision to pin."""
    path: str = ""
    """A local file or folder; it is read in place of the hub id."""
    audio_folder: str = ""
    """Where relative recording names are looked up; empty: beside the table."""
    limit: int = 0
    """Read the first so many rows; 0: all of them."""
    format: str = "auto"
    """auto, graded, sharegpt, messages, ultrachat, alpaca, prompt_completion, text or image_caption."""
    columns: dict[str, str] = field(default_factory=dict)
    """Where a table's names differ from the format's: `{prompt: question, completion: reply, group: page}`."""
    sample_by: str = "line"
    """For text files: line, paragraph or document makes a row."""
    streaming: bool = False
    """Read a hub table row by row as it arrives, through `datasets`, in place of fetching its files first."""
    license: str = ""
    """SPDX name of the source's licence, kept with each row."""
    attribution: str = ""
    """Whom to name, kept with each row."""
    weight: float = 0.0
    """Its share of an epoch in relation to the other weights; 0 for all sources: as many rows as each has."""
    cap: int = 0
    """At most so many of its rows in one epoch; 0: no cap."""
    epochs: float = 1.0
    """How often each of its rows may come in one epoch of the mixture."""


@dataclass
class Columns:
    """Names of columns: the first that a table has is taken."""

    audio: list[str] = field(default_factory=lambda: ["audio", "wav_path", "wav_file", "path"])
    prompt: list[str] = field(default_factory=lambda: ["prompt", "question", "text"])
    grade: list[str] = field(default_factory=lambda: ["grade", "score", "total"])
    group: list[str] = field(default_factory=lambda: ["speaker", "speaker_id"])
    """What must never be on both sides of a split."""
    id: list[str] = field(default_factory=lambda: ["utt_id", "id"])
    raters: list[str] = field(default_factory=list)
    """Single raters that may be trained on; those that are there are read."""
    held_back: list[str] = field(default_factory=list)
    """Raters kept for evaluation alone."""
    keep: list[str] = field(default_factory=list)
    """Numeric columns carried along beside the rows."""


@dataclass
class Limits:
    """Bounds on a recording; one outside them is dropped with its reason."""

    minimum_seconds: float = 0.1
    maximum_seconds: float = 60.0
    silence_peak: float = 1.0e-4
    """A recording whose largest absolute sample is below this is silent."""
    maximum_pixels: int = 64_000_000
    """A picture of more pixels is dropped before it is decoded."""


@dataclass
class Duplicates:
    """Which rows count as the same; the first of them stays, the others are merged into it and listed."""

    exact: bool = True
    """Equal content after Unicode, case and white space are normalised."""
    near: float = 0.0
    """Jaccard similarity of word shingles from which two texts are one, such as 0.8; 0: not looked for."""
    shingle: int = 3
    """Words in a shingle."""
    semantic: float = 0.0
    """Cosine similarity of embeddings from which two texts are one, such as 0.95; 0: not looked for."""
    semantic_model: str = ""
    """A folder with a static embedding model (model2vec), for `semantic`."""
    images: int = -1
    """Bits in which two perceptual hashes (of 64) may differ, such as 4; -1: not looked for."""
    audio: float = 0.0
    """Share of bits in which two sound fingerprints may differ, such as 0.2; 0: not looked for."""
    scope: str = ""
    """table or source: where to look; empty is table, but source for `task.kind: verdict`, whose stages differ."""


@dataclass
class Balance:
    """Evens out the classes of graded rows in the training split."""

    method: str = ""
    """down (drop), up (repeat), weights (weigh the loss), or empty for none."""
    by: str = "verdict"
    """verdict (pass or fail), grade, or choice."""


@dataclass
class Mix:
    """How many rows each source gives to an epoch; see also a source's weight, cap and epochs."""

    temperature: float = 0.0
    """Shares in proportion to size^(1/temperature): 1 as the sizes are, larger evens them out; 0: not used."""
    total: int = 0
    """Rows of an epoch; 0: as many as the sources' caps and epochs give."""


@dataclass
class DataConfig:
    """Where rows come from and how they are split."""

    sources: dict[str, Source] = field(default_factory=dict)
    train: list[str] = field(default_factory=list)
    """Names of the sources to train on."""
    test: list[str] = field(default_factory=list)
    """Names of the held-out sources to score."""
    validation_fraction: float = 0.1
    """Share of the training groups set aside for calibration and for choosing a checkpoint."""
    test_fraction: float = 0.0
    """Share of the groups of the training sources set aside as a test split when the table is built."""
    columns: Columns = field(default_factory=Columns)
    limits: Limits = field(default_factory=Limits)
    steps: list[Any] = field(default_factory=list)
    """Names of steps, each a name or `{name: {parameter: value}}`; docs/steps.md lists them."""
    duplicates: Duplicates = field(default_factory=Duplicates)
    balance: Balance = field(default_factory=Balance)
    mix: Mix = field(default_factory=Mix)


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
        return [*_model_problems(self), *_data_problems(self), *_task_problems(self), *_train_problems(self)]


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


def _data_problems(recipe: Recipe) -> list[str]:
    data, found = recipe.data, []
    for kind in ("train", "test"):
        names = getattr(data, kind)
        if not names and (kind == "train" or recipe.task.kind == "verdict"):
            found.append(f"data.{kind}: no source named (one or more of: {', '.join(data.sources) or 'none defined'})")
        found += [
            f"data.{kind}: {name!r} is not in data.sources (there: {', '.join(data.sources)})"
            for name in names
            if name not in data.sources
        ]
    found += [f"data.train and data.test: {name!r} is in both" for name in data.train if name in data.test]
    found += [
        f"data.sources.{name}: neither hub nor path is given"
        for name, source in data.sources.items()
        if not source.hub and not source.path
    ]
    if not 0 <= data.validation_fraction < 0.9:
        found.append(f"data.validation_fraction: {data.validation_fraction} is outside 0..0.9")
    if not 0 <= data.test_fraction < 0.9 or data.validation_fraction + data.test_fraction >= 1:
        found.append("data.test_fraction: must be in 0..0.9 and leave rows to train on beside validation_fraction")
    for name, source in data.sources.items():
        found += _source_problems(f"data.sources.{name}", source)
    return found + _duplicates_problems(data) + _mix_problems(data)


def _source_problems(where: str, source: Source) -> list[str]:
    found = []
    if source.format not in FORMATS:
        found.append(f"{where}.format: {source.format!r} is not one of {', '.join(FORMATS)}")
    if source.sample_by not in ("line", "paragraph", "document"):
        found.append(f"{where}.sample_by: {source.sample_by!r} is not line, paragraph or document")
    for name in ("limit", "cap", "weight"):
        if getattr(source, name) < 0:
            found.append(f"{where}.{name}: must not be below 0")
    if source.epochs <= 0:
        found.append(f"{where}.epochs: must be above 0")
    return found


def _duplicates_problems(data: DataConfig) -> list[str]:
    settings, found = data.duplicates, []
    for name in ("near", "semantic"):
        if not 0 <= getattr(settings, name) <= 1:
            found.append(f"data.duplicates.{name}: a similarity lies in 0..1 (0 looks for none)")
    if settings.semantic and not settings.semantic_model:
        found.append("data.duplicates.semantic_model: semantic needs a folder with a model2vec model")
    if not 0 <= settings.audio < 0.5:
        found.append("data.duplicates.audio: a bit error rate below 0.5 (chance) is expected; 0 looks for none")
    if not -1 <= settings.images <= 16:
        found.append("data.duplicates.images: bits of 64, in 0..16; -1 looks for none")
    if settings.shingle < 1:
        found.append("data.duplicates.shingle: at least 1 word")
    if settings.scope not in ("", "table", "source"):
        found.append(f"data.duplicates.scope: {settings.scope!r} is not table or source")
    return found


def _mix_problems(data: DataConfig) -> list[str]:
    found = []
    if data.balance.method not in ("", "down", "up", "weights"):
        found.append(f"data.balance.method: {data.balance.method!r} is not down, up or weights")
    if data.balance.by not in ("verdict", "grade", "choice"):
        found.append(f"data.balance.by: {data.balance.by!r} is not verdict, grade or choice")
    if data.mix.temperature < 0 or data.mix.total < 0:
        found.append("data.mix: temperature and total must not be below 0")
    weighted = [name for name in data.train if name in data.sources and data.sources[name].weight > 0]
    if data.mix.temperature and weighted:
        found.append("data.mix.temperature: shares come from it or from weights, not from both")
    if weighted and len(weighted) < len(data.train):
        found.append(f"data.sources: {', '.join(weighted)} has a weight, so each source of data.train needs one")
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
