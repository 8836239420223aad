"""What lands on disk: the records that reports, comparisons and other programs read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class StepRecord:
    """One line of metrics.jsonl. `loss` is the weighted mean since the last line, `seconds` since the start."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float | None
    tokens: int
    seconds: float
    validation_loss: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass
class Prediction:
    """One line of predictions.jsonl: what was recorded, and what the model says of it.

    `passed` (key `pass`): the recorded grade reaches the pass mark. `answer`: the model's, 1 when
    `p_pass` > 0.5. `p_pass`: probability of `event`, as the model gives it; `p_pass_calibrated` after the
    temperature fitted on validation. The last three are there with the ordinal read-out.
    """

    id: str
    source: str
    group: str
    grade: float
    passed: bool
    answer: int
    p_pass: float
    p_pass_calibrated: float
    event: str
    held_back: list[float] = field(default_factory=list)
    p_panel: float | None = None
    p_rater: float | None = None
    grade_mean: float | None = None

    def to_json(self) -> dict[str, Any]:
        found = {("pass" if key == "passed" else key): value for key, value in asdict(self).items()}
        return {key: value for key, value in found.items() if value is not None}


@dataclass
class StageRecord:
    """stage.json of a finished stage. Written last: where it is, the stage is whole."""

    name: str
    start_from: str
    learned_tokens: str
    steps: int
    epochs: float
    seconds: float
    trainable_parameters: int
    total_parameters: int
    scale: dict[str, float]
    target: dict[str, str]
    target_table: list[list[float]]
    checks: dict[str, Any]
    calibration: dict[str, Any]
    answers_per_second: dict[str, float]
    adapter_sha256: str
    base_sha256: str
    learning: dict[str, Any]
    dropped_at_encoding: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class ChatStageRecord:
    """stage.json of a finished chat stage. Written last: where it is, the stage is whole."""

    name: str
    start_from: str
    base: str
    trained: dict[str, Any]
    """What the training says of itself: steps, epochs, seconds, rows, tokens, learning, best."""
    trainable_parameters: int
    total_parameters: int
    rows: int
    tokens: int
    target_tokens: int
    dropped_at_encoding: dict[str, int]
    dropped_first: dict[str, str]
    """By reason: the first row that was left out for it, and what was wrong."""
    shortened: int
    """Rows that kept only the turns that fit."""
    unstopped: int
    """Answers that the template ends with no stop token."""
    tokens_per_second: float
    peak_memory: int
    """Bytes: of the GPU where there is one, else of the process."""
    adapter_sha256: str
    base_sha256: str
    tokenizer_sha256: str
    """Of the tokenizer with its chat template, as the base has it."""
    lessons_sha256: str
    """Of what was learned from: every row's ids and weights, and so its mask. Training losses over other lessons say
    nothing of each other."""
    packing: bool
    kind: str = "chat"
    """chat, exam or describe."""
    architecture: str = ""
    """The base's, as its config.json has it (model_type)."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class ChatAnswer:
    """What a model said. `stopped`: it ended by itself, within the tokens that it was given."""

    text: str
    stopped: bool
    tokens: int


@dataclass
class ChatSample:
    """One line of samples.jsonl: a held-out question, and its answers before and after training.

    `turns` have `role` and `text`, with `[image sha256:...]` where a medium stands; `reference` is the answer that the
    row holds. A stage that is still training has no `after`.
    """

    id: str
    source: str
    turns: list[dict[str, str]]
    reference: str
    before: ChatAnswer
    after: ChatAnswer | None = None


@dataclass
class DescribePrediction:
    """One line of predictions.jsonl of a describe stage: a held-out picture, and what the model said of it.

    `read`: the answer's fields, None where it is not in the form. `scores` and `constant` have a figure for each score
    of a field (`price.log_error`); the latter is what the best constant of the training rows gets there. `before` is
    there where the picture was described before training too.
    """

    id: str
    source: str
    group: str
    answer: str
    stopped: bool
    """Whether the answer ended by itself."""
    read: dict[str, str] | None
    truth: dict[str, str]
    scores: dict[str, float]
    constant: dict[str, float]
    before: DescribedAnswer | None = None

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        return found if self.before else {key: value for key, value in found.items() if key != "before"}


@dataclass
class DescribedAnswer:
    """One answer about a picture; as in DescribePrediction."""

    answer: str
    read: dict[str, str] | None
    scores: dict[str, float]


@dataclass
class RunManifest:
    """run.json: what a run is made of."""

    name: str
    status: str
    created: str
    seed: int
    stages: list[str]
    command: str
    versions: dict[str, str]
    machine: dict[str, Any]
    hashes: dict[str, str]
    finished: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
