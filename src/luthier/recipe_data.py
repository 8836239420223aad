"""The data part of a recipe: sources, columns, bounds, steps, duplicates, balance and mixture, each option once.

The string below a field is its documentation.
"""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

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
    "described",
)
COLUMN_ROLES = (
    "messages",
    "prompt",
    "completion",
    "system",
    "instruction",
    "input",
    "output",
    "history",
    "text",
    "image",
    "audio",
    "video",
    "label",
    "group",
    "id",
    "tools",
    "grade",
)
"""What a source's `columns` may name; the formats read no other."""


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
    """auto, graded, sharegpt, messages, ultrachat, alpaca, prompt_completion, text, image_caption, or described (the
    default of task.kind: describe: columns written as task.describe says)."""
    columns: dict[str, str] = field(default_factory=dict)
    """Where a table's names differ from the format's: `{prompt: question, completion: reply, group: page}`."""
    sample_by: str = "line"
    """For text files: line, paragraph or document makes a row."""
    passage_words: int = 0
    """Texts (rows that answer nothing) of more words are cut into passages of at most so many (and ten times as many
    characters), at the ends of paragraphs or else sentences, each a row, all of one group; 0: texts stay whole."""
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
    image: list[str] = field(default_factory=lambda: ["image", "image_path"])
    """Of graded pictures; looked for where a table has no recordings."""
    video: list[str] = field(default_factory=lambda: ["video", "video_path"])
    """Of graded videos; looked for where a table has neither recordings nor pictures."""
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
    maximum_video_seconds: float = 600.0
    """A longer video is dropped."""


@dataclass
class Frames:
    """Which frames of a video are looked at."""

    by: str = "rate"
    """rate (so many a second), count (so many, evenly spread), or scene (the middle frame of each shot)."""
    rate: float = 1.0
    """Frames a second, for `rate`; of a video of changing rate the frame that is shown at each moment."""
    count: int = 8
    """For `count`."""
    threshold: float = 27.0
    """For `scene`: how much the content must change (PySceneDetect's ContentDetector)."""
    maximum: int = 64
    """At most so many; where there would be more they are spread evenly over the video."""
    sound: bool = False
    """Whether the sound track is heard too, where the base hears."""


@dataclass
class Augmentation:
    """How training rows' pictures and sound are changed, anew in each epoch; drawn by (seed, epoch, row id). 0: not."""

    crop: float = 0.0
    """The largest share of a picture's area that may be cut away; what is left has the size of the whole."""
    flip: bool = False
    """Mirror half of the pictures; only where no text is to be read in them."""
    colour: float = 0.0
    """Brightness, contrast and saturation change by at most this share."""
    noise: float = 0.0
    """Standard deviation of the noise that is added, as a share of the range of a pixel, or of a recording's level."""
    speed: float = 0.0
    """Recordings are played faster or slower by at most this share (and so higher or lower)."""
    gain: float = 0.0
    """Recordings are made louder or softer by at most so many decibels."""

    @property
    def of_pictures(self) -> bool:
        """Whether pictures change."""
        return bool(self.crop or self.flip or self.colour or self.noise)

    @property
    def of_sound(self) -> bool:
        """Whether recordings change."""
        return bool(self.noise or self.speed or self.gain)


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
    frames: Frames = field(default_factory=Frames)
    augment: Augmentation = field(default_factory=Augmentation)
    steps: list[Any] = field(default_factory=list)
    """Names of steps, each a name or `{name: {parameter: value}}`; docs/steps.md lists them."""
    duplicates: Duplicates = field(default_factory=Duplicates)
    balance: Balance = field(default_factory=Balance)
    mix: Mix = field(default_factory=Mix)


def data_problems(data: DataConfig, kind_of_task: str) -> list[str]:
    """What is wrong with the data part that needs more than one field to see."""
    found: list[str] = []
    for kind in ("train", "test"):
        names = getattr(data, kind)
        if not names and (kind == "train" or kind_of_task == "verdict"):
            found.append(f"data.{kind}: no source named (one or more of: {', '.join(data.sources) or 'none defined'})")
        found += [
            f"data.{kind}: {name!r} is not in data.sources (there: {', '.join(data.sources)})"
            for name in names
            if name not in data.sources
        ]
        found += [f"data.{kind}: {name!r} is there twice" for name, count in Counter(names).items() if count > 1]
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
    found += _limits_problems(data.limits) + _media_problems(data.frames, data.augment)
    return found + _duplicates_problems(data) + _mix_problems(data)


def _source_problems(where: str, source: Source) -> list[str]:
    found = []
    if source.format not in FORMATS:
        found.append(f"{where}.format: {source.format!r} is not one of {', '.join(FORMATS)}")
    if source.sample_by not in ("line", "paragraph", "document"):
        found.append(f"{where}.sample_by: {source.sample_by!r} is not line, paragraph or document")
    for name in ("limit", "cap", "weight", "passage_words"):
        if getattr(source, name) < 0:
            found.append(f"{where}.{name}: must not be below 0")
    if source.epochs <= 0:
        found.append(f"{where}.epochs: must be above 0")
    if source.streaming and source.path:
        found.append(
            f"{where}.streaming: only a hub table streams, and path is read in place of the hub (leave one out)"
        )
    for role in source.columns:
        if role not in COLUMN_ROLES:
            close = difflib.get_close_matches(str(role), COLUMN_ROLES, n=1)
            meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(COLUMN_ROLES)}"
            found.append(f"{where}.columns.{role}: unknown role ({meant})")
    return found


def _limits_problems(limits: Limits) -> list[str]:
    found = []
    if limits.maximum_pixels < 1:
        found.append("data.limits.maximum_pixels: must be at least 1")
    if limits.minimum_seconds > limits.maximum_seconds:
        found.append(
            f"data.limits.minimum_seconds: {limits.minimum_seconds} is above maximum_seconds ({limits.maximum_seconds})"
        )
    return found


def _media_problems(frames: Frames, augment: Augmentation) -> list[str]:
    found = []
    if frames.by not in ("rate", "count", "scene"):
        found.append(f"data.frames.by: {frames.by!r} is not rate, count or scene")
    for name in ("rate", "count", "threshold", "maximum"):
        if not getattr(frames, name) > 0:
            found.append(f"data.frames.{name}: must be above 0")
    for name in ("crop", "colour", "noise", "speed"):
        if not 0 <= getattr(augment, name) < 1:
            found.append(f"data.augment.{name}: {getattr(augment, name)} is outside 0..1")
    if augment.gain < 0:
        found.append("data.augment.gain: must not be below 0")
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
