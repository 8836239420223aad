"""Speaks a sentence well or badly: text and a `Delivery` in, 16 kHz mono float32 out, no file, no network.

Two voices share every control. `EspeakVoice` is espeak-ng from the `espeakng_loader` wheel; `FormantVoice`
is a small harmonic synthesiser in numpy, for machines without the wheel. Pauses, fillers, repairs and wrong
sounds are made here, in the text and between its phrases, so that both voices commit the same faults.
This module knows nothing of grades, judges or tables.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import tempfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from luthier.console import say
from luthier.errors import RequestError, SourceError

Audio = npt.NDArray[np.float32]
VoiceName = Literal["auto", "espeak", "formant"]
RATE = 16_000
VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m7", "f1", "f2", "f3", "f4", "f5")
FILLERS = ("um", "uh", "er")
VOWELS = "aeiou"
WRONG_SOUNDS = {
    "th": "s",
    "v": "b",
    "r": "l",
    "l": "r",
    "p": "f",
    "d": "t",
    "z": "j",
    "n": "m",
    "s": "sh",
    "w": "v",
    "k": "g",
    "f": "p",
    "m": "n",
    "t": "d",
    "g": "k",
    "b": "v",
    "h": "f",
    "c": "ch",
}


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a sentence is spoken. Each field is in 0..1; only `rate` is better when high.

    Raises RequestError for a value outside 0..1.
    """

    rate: float = 0.5
    """Speaking speed: 0 is about 180 words a minute, 1 about 300."""
    pause: float = 0.0
    """Silence between words: number and length of the gaps grow together."""
    filler: float = 0.0
    """"um" and "uh": none at 0, two in a sentence at 1."""
    repair: float = 0.0
    """Repeated words: none at 0, two in a sentence at 1."""
    mispronounce: float = 0.0
    """Share of words with a wrong vowel or consonant: none at 0, half at 1."""
    monotone: float = 0.0
    """Pitch: a wide melody at 0, flat at 1."""

    def __post_init__(self) -> None:
        for item in fields(self):
            if not 0.0 <= getattr(self, item.name) <= 1.0:
                raise RequestError(
                    f"delivery.{item.name} is {getattr(self, item.name)}, outside 0..1",
                    "give a quantile: 0.5 is the middle",
                )


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who speaks: what a listener must hear past. `pitch` in 0..1; `level_db` is RMS re full scale.

    Raises RequestError for a variant that is not in VARIANTS.
    """

    variant: str = "m3"
    pitch: float = 0.5
    level_db: float = -24.0
    snr_db: float = 30.0

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:  # espeak would speak with its default voice and not say so
            raise RequestError(f"no speaker variant {self.variant!r}", f"one of {', '.join(VARIANTS)}")

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Speaker:
        """A random speaker, drawn without looking at how well they speak."""
        return cls(
            variant=str(rng.choice(VARIANTS)),
            pitch=float(rng.uniform(0.2, 0.8)),
            level_db=float(rng.uniform(-30, -21)),
            snr_db=float(rng.uniform(20, 40)),
        )


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words spoken in one breath, and the silence after them in seconds."""

    text: str
    silence: float


class Voice(Protocol):
    """What a synthesiser must do; `melody` is the pitch range in 0..1."""

    name: str

    def speak(self, text: str, words_per_minute: float, melody: float, speaker: Speaker) -> Audio:
        """One phrase at 16 kHz, peak about 1, silence at its ends not trimmed."""

    def close(self) -> None:
        """Give back what the voice holds."""


class EspeakVoice:
    """espeak-ng 1.52 through ctypes. Raises SourceError when it cannot start.

    espeak keeps oscillator state from one phrase to the next, so what it says depends on what it said before.
    Each object therefore loads a private copy of the library: the same calls give the same samples. Not for
    use from two threads at once.
    """

    name = "espeak-ng"

    def __init__(self) -> None:
        if importlib.util.find_spec("espeakng_loader") is None:
            raise SourceError(
                "the espeak-ng voice needs espeakng_loader, which is not installed",
                "pip install espeakng-loader, or use the formant voice",
            )
        import espeakng_loader

        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            copy = shutil.copy(espeakng_loader.get_library_path(), Path(folder))
            self._library = ctypes.CDLL(str(copy))
        # 2: samples come back before espeak_Synth returns, with no thread (mode 1 sleeps 15 ms a phrase);
        # 0x8000: return an error code where espeak would end the process.
        data = str(espeakng_loader.get_data_path()).encode()
        self._rate = int(self._library.espeak_Initialize(2, 0, data, 0x8000))
        if self._rate <= 0:
            raise SourceError(
                f"espeak-ng could not read its voices in {data.decode()}",
                "use the formant voice, or install into a folder with a shorter path",
            )
        self._samples: list[bytes] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._collect)  # kept: espeak holds only its address
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))

    def _collect(self, samples: int | None, count: int, _events: int | None) -> int:
        if samples and count > 0:
            self._samples.append(ctypes.string_at(samples, 2 * count))
        return 0

    def speak(self, text: str, words_per_minute: float, melody: float, speaker: Speaker) -> Audio:
        """One phrase. Raises SourceError when espeak is closed or says nothing."""
        import soxr

        if self._rate == 0:
            raise SourceError("this espeak-ng voice is closed", "open another with open_voice()")
        self._samples.clear()
        if self._library.espeak_SetVoiceByName(f"en-us+{speaker.variant}".encode()) != 0:
            raise SourceError("espeak-ng has no American English voice", "use the formant voice")
        settings = ((1, words_per_minute), (3, 20 + 60 * speaker.pitch), (4, 95 * melody))
        for parameter, value in settings:
            self._library.espeak_SetParameter(parameter, round(value), 0)
        data = text.encode()
        self._library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 1, 0, 1, None, None)
        heard = np.frombuffer(b"".join(self._samples), np.int16).astype(np.float32) / 32768
        if not heard.any():
            raise SourceError(f"espeak-ng was silent on {text!r}", "give it a text with words")
        return np.asarray(soxr.resample(heard, self._rate, RATE), np.float32)

    def close(self) -> None:
        """Free the voice data; the object cannot speak afterwards."""
        if self._rate:  # espeak crashes when it is ended twice
            self._library.espeak_Terminate()
        self._rate = 0


FORMANTS = {
    "a": (730, 1190, 2440),
    "e": (530, 1840, 2480),
    "i": (300, 2250, 2950),
    "o": (570, 900, 2410),
    "u": (320, 870, 2240),
    "y": (330, 2000, 2800),
    "l": (360, 1100, 2600),
    "r": (420, 1250, 1650),
    "w": (300, 650, 2200),
    "m": (270, 1000, 2200),
    "n": (270, 1500, 2500),
}
"""First three formants in Hz (vowels: Peterson and Barney 1952, men)."""
HISS = {**dict.fromkeys("szxc", 0.5), **dict.fromkeys("fvh", 0.25), **dict.fromkeys("tkpqdbgj", 0.35)}


class FormantVoice:
    """Letters as vowels, hums and hisses: unintelligible, but fast, slow, flat or lively on demand."""

    name = "formant"
    frame = 80  # samples: 5 ms between values of pitch, formants and loudness

    def speak(self, text: str, words_per_minute: float, melody: float, speaker: Speaker) -> Audio:
        """One phrase; the same text gives the same samples. Raises SourceError for a text without letters."""
        letters = [letter for letter in re.sub(r"[^a-z ]", "", text.lower()) if letter != " "]
        if not letters:
            raise SourceError(f"{text!r} has no letters to speak", "give it a text with words")
        rng = np.random.default_rng(zlib.crc32(text.encode()))
        # 5.2 letters make the word of "words a minute"; a vowel lasts twice as long as a consonant.
        weight = np.array([1.5 if letter in VOWELS else 0.75 for letter in letters])
        second = RATE / self.frame
        frames = np.maximum(2, (weight * 60 * second / (5.2 * words_per_minute)).round().astype(int))
        steps = int(frames.sum())
        grid = np.arange(steps * self.frame) / self.frame
        middle = np.cumsum(frames) - frames / 2
        at = np.arange(steps)
        accents = rng.normal(0, 1, len(letters)).cumsum()
        accents = (accents - accents.mean()) / (accents.std() + 1e-6)
        base = (85 if speaker.variant.startswith("m") else 150) * 2 ** (0.6 * speaker.pitch)
        pitch = base * 2 ** (0.35 * melody * (np.interp(at, middle, accents) - at / steps))
        tracks = np.array([FORMANTS.get(letter, (500, 1500, 2500)) for letter in letters], float)
        scale = 1.0 if speaker.variant.startswith("m") else 1.15
        formants = np.array([np.interp(at, middle, track) for track in tracks.T]) * scale
        voiced = np.repeat([1.0 if x in VOWELS else 0.5 if x in FORMANTS else 0.06 for x in letters], frames)
        hiss = np.repeat([HISS.get(letter, 0.0) for letter in letters], frames)
        smooth = np.ones(5) / 5
        voiced, hiss = np.convolve(voiced, smooth, "same"), np.convolve(hiss, smooth, "same")
        phase = 2 * np.pi * np.cumsum(np.interp(grid, at, pitch)) / RATE
        sound = np.zeros(len(grid))
        for harmonic in range(1, int(3600 / base) + 1):
            distance = (harmonic * pitch - formants) / np.array([[80.0], [110.0], [160.0]])
            gain = voiced * (np.array([[1.0], [0.6], [0.3]]) / (1 + distance**2)).sum(0)
            sound += np.interp(grid, at, gain) * np.sin(harmonic * phase)
        noise = np.diff(rng.normal(0, 0.2, len(grid) + 1))  # the difference tilts white noise upwards
        sound += np.interp(grid, at, hiss) * noise
        return np.asarray(sound / np.abs(sound).max(), np.float32)

    def close(self) -> None:
        """Nothing is held."""


def open_voice(name: VoiceName = "auto") -> Voice:
    """A fresh voice. `auto` is espeak where the wheel is installed and starts, else the formant voice.

    Which one, and why, is said. Raises RequestError for another name, and for
    `espeak` SourceError when it cannot start.
    """
    if name == "formant":
        return FormantVoice()
    if name not in ("auto", "espeak"):
        raise RequestError(f"there is no voice {name!r}", "one of auto, espeak, formant")
    try:
        return EspeakVoice()
    except (SourceError, OSError) as error:
        if name == "espeak":
            raise
        say(f"the formant voice speaks: {error}")
        return FormantVoice()


def plan(text: str, delivery: Delivery, rng: np.random.Generator) -> list[Phrase]:
    """Cut a text into phrases and commit the faults of `delivery` that are heard as words or as silence."""
    words = text.split()
    if not words:
        raise RequestError("there is nothing to say", "give a text with words")

    def some(amount: float, limit: int) -> set[int]:
        # The fraction is rounded by a coin, so that the expected count follows the control smoothly.
        count = min(int(amount + rng.random()), limit)
        return set(rng.choice(limit, count, replace=False).tolist())

    wrong = some(0.5 * delivery.mispronounce * len(words), len(words))
    repeated, filled = some(2 * delivery.repair, len(words)), some(2 * delivery.filler, len(words))
    breaks = some(3 * delivery.pause, len(words) - 1)
    phrases: list[Phrase] = []
    pending: list[str] = []

    def breathe(silence: float) -> None:
        if pending:
            phrases.append(Phrase(" ".join(pending), silence))
            pending.clear()

    for number, word in enumerate(words):
        if number in filled:
            breathe(0.06)
            phrases.append(Phrase(str(rng.choice(FILLERS)), 0.10))
        spoken = mispronounce(word, rng) if number in wrong else word
        pending.append(spoken)
        if number in repeated:
            breathe(0.08)
            pending.append(spoken)
        if number in breaks:
            breathe((0.10 + 0.35 * delivery.pause) * float(rng.uniform(0.8, 1.2)))
    breathe(0.0)
    return phrases


def mispronounce(word: str, rng: np.random.Generator) -> str:
    """The word with one vowel and, where it has a known one, one consonant exchanged; never the same word."""
    low = word.lower()
    places = [index for index, letter in enumerate(low) if letter in VOWELS]
    if places:
        index = int(rng.choice(places))
        low = low[:index] + str(rng.choice([v for v in VOWELS if v != low[index]])) + low[index + 1 :]
    known = [sound for sound in WRONG_SOUNDS if sound in low]
    if known:
        sound = str(rng.choice(known))
        low = low.replace(sound, WRONG_SOUNDS[sound], 1)
    return low if low != word.lower() else low + "a"


def render(
    text: str, delivery: Delivery, speaker: Speaker, rng: np.random.Generator, voice: Voice | None = None
) -> Audio:
    """Speak a sentence. Returns (n,) float32 in -1..1 at 16 kHz, with room noise at the speaker's SNR.

    Without `voice` a fresh one is opened and closed, so the result depends on the arguments alone.
    """
    speech = voice or open_voice()
    try:
        parts = [np.zeros(RATE // 10, np.float32)]
        for phrase in plan(text, delivery, rng):
            speed = 180.0 if phrase.text in FILLERS else 180 + 120 * delivery.rate
            heard = speech.speak(phrase.text, speed, 1 - delivery.monotone, speaker)
            parts += [_trim(heard), np.zeros(int(phrase.silence * RATE), np.float32)]
        parts.append(np.zeros(RATE // 10, np.float32))
    finally:
        if voice is None:
            speech.close()
    sound = np.concatenate(parts)
    level = 10 ** (speaker.level_db / 20)
    sound *= level / np.sqrt(np.mean(sound[sound != 0] ** 2))
    sound += rng.normal(0, level * 10 ** (-speaker.snr_db / 20), len(sound)).astype(np.float32)
    return np.clip(sound, -1, 1)


def _trim(sound: Audio) -> Audio:
    """Cut the silence at both ends: all silence in a clip is then there on purpose."""
    loud = np.flatnonzero(np.abs(sound) > 0.02 * np.abs(sound).max())
    return sound[loud[0] : loud[-1] + 1]
