"""A speaking exam whose truth is known: answers are spoken on the spot and judged by simulated judges.

A speaker's quality moves six audible controls; the judges see only the weighted sum Q of those controls plus
noise of their own. What a perfect listener could know is therefore Q, and P(pass | Q) has a closed form: each
answer carries it, so that a model is compared with the best score that anything could reach on the very same
answers. This module knows nothing of models, targets or metrics; the sounds are made by `voice`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import permutations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf
from scipy.special import ndtr

from luthier.console import progress, say
from luthier.data.voice import RATE, Audio, Delivery, Speaker, Voice, VoiceName, open_voice, render
from luthier.errors import RequestError
from luthier.files import atomic_folder

Floats = npt.NDArray[np.float64]
WEIGHTS = {"rate": 0.35, "pause": 0.30, "filler": 0.10, "repair": 0.05, "mispronounce": 0.05, "monotone": 0.15}
"""How much each control counts in Q; the most audible count most."""
LOADING = 0.85
"""Correlation of each control with the quality of the answer."""
SPEAKER_SHARE = 0.6
"""Share of the variance of quality that lies between speakers; the rest lies between their answers."""
CLIPS_A_SPEAKER = 5
SIZES: Mapping[str, tuple[int, int]] = {"1764": (220, 120), "1964": (140, 120)}
"""Answers in (train, test) of each form."""


@dataclass(frozen=True, slots=True)
class Judges:
    """Graded-response judges (Samejima 1969): grade k+1 when Q - severity + sd * noise passes k thresholds.

    Two judges of the bench, drawn at random, grade an answer, and both grade anew while they differ by more
    than one; their mean is the grade. A third grades alone and is held back. All probabilities are exact:
    averages over who judges, normal tails over how.
    """

    thresholds: tuple[float, ...] = (-3.17, -1.94, -0.21, 1.38)
    sd: float = 0.5
    severities: tuple[float, ...] = (-0.1, 0.0, 0.1)
    severity: float = 0.0
    """Added to every judge: how hard the form is."""

    def __post_init__(self) -> None:
        if len(self.severities) < 3 or self.sd <= 0 or list(self.thresholds) != sorted(self.thresholds):
            raise RequestError(f"{self} cannot judge", "three judges or more, sd > 0, thresholds rising")

    def grade_probabilities(self, quality: Floats) -> Floats:
        """P(grade = 1..5 | Q) of each judge alone: (n,) -> (n, judges, 5)."""
        cuts = np.asarray(self.thresholds)[None, None, :] + self.severity
        cuts = cuts + np.asarray(self.severities)[None, :, None]
        above = ndtr((quality[:, None, None] - cuts) / self.sd)
        ones = np.ones((*above.shape[:2], 1))
        return np.asarray(-np.diff(np.concatenate([ones, above, 0 * ones], axis=2), axis=2))

    def p_panel(self, quality: Floats) -> Floats:
        """P(mean of the two judges >= 4 | Q), (n,) -> (n,), given that the two end within one."""
        alone = self.grade_probabilities(quality)
        first, second = np.meshgrid(np.arange(1, 6), np.arange(1, 6), indexing="ij")
        agreed, passed = np.abs(first - second) <= 1, first + second >= 8
        chances = []
        for one, two in permutations(range(len(self.severities)), 2):
            both = alone[:, one, :, None] * alone[:, two, None, :]
            chances.append((both * (agreed & passed)).sum((1, 2)) / (both * agreed).sum((1, 2)))
        return _open_interval(np.mean(chances, axis=0))

    def p_rater(self, quality: Floats) -> Floats:
        """P(one judge drawn at random, grading alone, gives >= 4 | Q), (n,) -> (n,)."""
        return _open_interval(self.grade_probabilities(quality)[:, :, 3:].sum(2).mean(1))

    def judge(self, quality: Floats, rng: np.random.Generator) -> Floats:
        """Grades 1..5 by two judges who agreed within one, and by a third alone: (n,) -> (n, 3)."""
        bench = np.asarray(self.severities) + self.severity
        grades = np.empty((len(quality), 3))
        for number, value in enumerate(quality):
            seen_by = value - rng.permutation(bench)[:3]
            while True:
                heard = seen_by + self.sd * rng.normal(size=3)
                grades[number] = 1 + np.searchsorted(self.thresholds, heard)
                if abs(grades[number, 0] - grades[number, 1]) <= 1:
                    break
        return grades


@dataclass(frozen=True, slots=True)
class Item:
    """A question, and answers to it: a template with two gaps and the words for each."""

    prompt: str
    template: str
    first: tuple[str, ...]
    second: tuple[str, ...]

    def answer(self, rng: np.random.Generator) -> str:
        """A random answer; what is said never depends on how well it is spoken."""
        return self.template.format(str(rng.choice(self.first)), str(rng.choice(self.second)))


@dataclass(frozen=True, slots=True)
class Answer:
    """One spoken answer with its grades and its truth, as it stands in a parquet file."""

    utt_id: str
    form_id: str
    speaker: str
    prompt: str
    audio: dict[str, object] = field(repr=False)
    grade: float
    rater_1: float
    rater_2: float
    rater_3: float
    p_panel: float
    p_rater: float


@dataclass(frozen=True, slots=True)
class SimulatedForm:
    """A form and its answers by split (`train`, `test`); no speaker is in two splits."""

    name: str
    rows: dict[str, list[Answer]]


def simulate(form: str, n_train: int, n_test: int, seed: int, voice: Voice | None = None) -> SimulatedForm:
    """Draw, speak and judge the answers of one form (`1764` or `1964`).

    The result depends on the arguments alone, and on which voice speaks; without `voice` a fresh one is
    opened. Raises RequestError for an unknown form or a size below one.
    """
    if form not in ITEMS or min(n_train, n_test) < 1:
        raise RequestError(
            f"form {form!r} with {n_train} and {n_test} answers cannot be simulated",
            f"name one of {', '.join(ITEMS)} and sizes of at least 1",
        )
    speech = voice or open_voice()
    try:
        rows = {}
        for split, count in (("train", n_train), ("test", n_test)):
            answers = _answers(form, split, count, seed, speech)
            rows[split] = list(progress(answers, f"form {form}, {split}", count))
    finally:
        if voice is None:
            speech.close()
    return SimulatedForm(form, rows)


def qualities(count: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Speaker number (n,), controls c (n, 6) and rendered quality Q (n,); c and Q are standard normal.

    Q = sum w c / norm, with c = .85 q + sqrt(1 - .85^2) e.
    """
    weights = np.array(list(WEIGHTS.values()))
    speaker = np.arange(count) // CLIPS_A_SPEAKER
    between = rng.normal(size=speaker[-1] + 1)[speaker]
    quality = np.sqrt(SPEAKER_SHARE) * between + np.sqrt(1 - SPEAKER_SHARE) * rng.normal(size=count)
    controls = LOADING * quality[:, None] + np.sqrt(1 - LOADING**2) * rng.normal(size=(count, len(weights)))
    norm = np.sqrt(LOADING**2 * weights.sum() ** 2 + (1 - LOADING**2) * (weights**2).sum())
    return speaker, controls, controls @ weights / norm


def delivery_of(controls: Floats) -> Delivery:
    """Six standard normal controls as quantiles; all but the rate count faults, so they are turned round."""
    quantiles = dict(zip(WEIGHTS, ndtr(controls).tolist(), strict=True))
    return Delivery(**{name: u if name == "rate" else 1 - u for name, u in quantiles.items()})


def write_forms(
    folder: Path, seed: int = 0, sizes: Mapping[str, tuple[int, int]] = SIZES, voice: VoiceName = "auto"
) -> dict[str, Path]:
    """Write `form-<form>-<split>.parquet` for every form into a new folder; name without suffix -> path.

    Columns: those of `Answer`; `audio` is struct<bytes, path> with FLAC bytes. The folder appears whole, with
    a manifest, or not at all. Raises ExistsError when it is there already.
    """
    paths: dict[str, Path] = {}
    with atomic_folder(folder, {"seed": seed, "sizes": {k: list(v) for k, v in sizes.items()}}) as inside:
        for form, (n_train, n_test) in sizes.items():
            speech = open_voice(voice)
            say(f"form {form}: {n_train + n_test} answers, spoken by {speech.name}")
            try:
                made = simulate(form, n_train, n_test, seed, speech)
            finally:
                speech.close()
            for split, answers in made.rows.items():
                name = f"form-{form}-{split}"
                table = pa.Table.from_pylist([asdict(answer) for answer in answers], schema=SCHEMA)
                pq.write_table(table, inside / f"{name}.parquet", compression="none")
                paths[name] = folder / f"{name}.parquet"
    return paths


SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("utt_id", "form_id", "speaker", "prompt")]
    + [("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
    + [(name, pa.float64()) for name in ("grade", "rater_1", "rater_2", "rater_3", "p_panel", "p_rater")]
)


def _answers(form: str, split: str, count: int, seed: int, voice: Voice) -> Iterator[Answer]:
    rng = np.random.default_rng([seed, int(form), len(split)])
    speaker_of, controls, quality = qualities(count, rng)
    judges = Judges(severity=SEVERITY[form])
    grades = judges.judge(quality, rng)
    panel, rater = judges.p_panel(quality), judges.p_rater(quality)
    speakers = [Speaker.draw(rng) for _ in range(speaker_of[-1] + 1)]
    for number in range(count):
        item = ITEMS[form][number % len(ITEMS[form])]
        name = f"{form}-{split}-{number:04d}"
        delivery, speaker = delivery_of(controls[number]), speakers[speaker_of[number]]
        sound = render(item.answer(rng), delivery, speaker, rng, voice)
        one, two, three = grades[number].tolist()
        yield Answer(
            utt_id=name,
            form_id=form,
            speaker=f"{form}-{split}-s{speaker_of[number]:03d}",
            prompt=item.prompt,
            audio={"bytes": _flac(sound), "path": f"{name}.flac"},
            grade=(one + two) / 2,
            rater_1=one,
            rater_2=two,
            rater_3=three,
            p_panel=float(panel[number]),
            p_rater=float(rater[number]),
        )


def _flac(sound: Audio) -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, sound, RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _open_interval(chance: Floats) -> Floats:
    # Far out in the tails the difference of two normal tails rounds to 0 or 1; a logit must stay finite.
    return np.clip(chance, 1e-12, 1 - 1e-12)


SEVERITY = {"1764": 0.0, "1964": 0.10}
_PEOPLE = ("my family", "my friends", "my brother", "two classmates")
ITEMS: Mapping[str, tuple[Item, ...]] = {
    "1764": (
        Item("What do you usually do on weekends?", "I usually {} with {}", ("go hiking", "cook"), _PEOPLE),
        Item(
            "How do you go to school or work?",
            "I take the {} and it takes {} minutes",
            ("bus", "train"),
            ("ten", "thirty", "forty"),
        ),
        Item(
            "What kind of food do you like?",
            "I really like {} because it is {}",
            ("noodles", "curry", "rice"),
            ("cheap", "tasty", "healthy"),
        ),
        Item(
            "Tell me about your best friend.",
            "My best friend is {} and loves {}",
            ("funny", "quiet", "kind"),
            ("music", "drawing", "sports"),
        ),
        Item("What did you do last summer?", "Last summer I visited {} with {}", ("the beach", "Japan"), _PEOPLE),
        Item(
            "Do you like your hometown?",
            "Yes, it is {} and the people are {}",
            ("small", "busy", "green"),
            ("friendly", "polite"),
        ),
        Item("How often do you exercise?", "I {} in the park {} a week", ("run", "walk"), ("once", "twice")),
        Item(
            "What would you like to learn?",
            "I want to learn {} when I have more {}",
            ("cooking", "guitar", "French"),
            ("time", "money"),
        ),
    ),
    "1964": (
        Item(
            "Should students have part-time jobs?",
            "I think it teaches them {} and {}",
            ("patience", "respect"),
            ("saving", "planning"),
        ),
        Item(
            "How has the internet changed your life?",
            "I can {} and {} without leaving home",
            ("study", "work"),
            ("shop", "chat", "bank"),
        ),
        Item(
            "Describe a place you want to visit.",
            "I would love to see the {} in {}",
            ("museums", "mountains"),
            ("Italy", "Canada", "Peru"),
        ),
        Item(
            "What makes a good teacher?",
            "A good teacher is {} and explains {}",
            ("patient", "fair", "lively"),
            ("slowly", "clearly", "everything"),
        ),
        Item(
            "How do you deal with stress?",
            "When I feel tired I {} and {}",
            ("rest", "stretch", "read"),
            ("drink tea", "listen to music"),
        ),
        Item(
            "Is it better to live in a city?",
            "The city has more {} but less {}",
            ("jobs", "shops", "noise"),
            ("nature", "quiet", "space"),
        ),
        Item(
            "Talk about a gift you remember.",
            "My {} gave me a {} for my birthday",
            ("uncle", "sister"),
            ("camera", "bicycle", "novel"),
        ),
        Item(
            "How can we protect nature?",
            "People should use less {} and plant more {}",
            ("plastic", "paper", "water"),
            ("trees", "flowers"),
        ),
    ),
}
