"""Both voices obey every control, and the same arguments give the same samples."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.voice import (
    FILLERS,
    RATE,
    VARIANTS,
    Delivery,
    EspeakVoice,
    FormantVoice,
    Speaker,
    Voice,
    mispronounce,
    open_voice,
    plan,
    render,
)
from luthier.errors import RequestError, SourceError

TEXT = "I usually go hiking with two classmates"
HAVE_ESPEAK = importlib.util.find_spec("espeakng_loader") is not None
needs_espeak = pytest.mark.skipif(not HAVE_ESPEAK, reason="the espeakng_loader wheel is not installed")


@pytest.fixture(params=["formant", pytest.param("espeak", marks=needs_espeak)])
def voice(request: pytest.FixtureRequest) -> Iterator[Voice]:
    opened = open_voice(request.param)
    yield opened
    opened.close()


def seconds(delivery: Delivery, voice: Voice, tries: int = 8) -> float:
    clips = [render(TEXT, delivery, Speaker(), np.random.default_rng(i), voice) for i in range(tries)]
    return float(np.mean([len(clip) for clip in clips])) / RATE


def pitch_track(sound: np.ndarray) -> np.ndarray:
    """F0 in Hz of the voiced 40 ms windows, by the highest autocorrelation between 60 and 350 Hz."""
    found = []
    for start in range(0, len(sound) - 640, 320):
        window = sound[start : start + 640] - sound[start : start + 640].mean()
        power = np.correlate(window, window, "full")[639:]
        lags = power[RATE // 350 : RATE // 60] / (power[0] + 1e-9)
        if power[0] > 1 and lags.max() > 0.6:
            found.append(RATE / (RATE // 350 + int(lags.argmax())))
    return np.array(found)


def spread(sound: np.ndarray) -> float:
    """Interquartile range of log2 F0, in octaves: jumps of an octave hardly move it."""
    low, high = np.percentile(np.log2(pitch_track(sound)), [25, 75])
    return float(high - low)


def test_a_clip_is_float32_at_16_khz_within_full_scale(voice: Voice) -> None:
    clip = render(TEXT, Delivery(), Speaker(), np.random.default_rng(0), voice)
    assert clip.dtype == np.float32
    assert clip.ndim == 1
    assert 1.0 < len(clip) / RATE < 5.0
    assert 0.01 < np.abs(clip).max() <= 1.0


def test_a_faster_speaker_takes_less_time(voice: Voice) -> None:
    slow, middle, fast = (seconds(Delivery(rate=rate), voice, tries=1) for rate in (0.0, 0.5, 1.0))
    assert slow > 1.1 * middle > 1.2 * fast


@pytest.mark.parametrize("fault", ["pause", "filler", "repair"])
def test_a_fault_that_takes_time_takes_more_the_more_there_is_of_it(voice: Voice, fault: str) -> None:
    none, some, much = (seconds(Delivery(**{fault: amount}), voice) for amount in (0.0, 0.5, 1.0))
    assert none + 0.1 < some < much - 0.1


def test_pauses_are_silence(voice: Voice) -> None:
    def silent(pause: float) -> float:
        clip = render(TEXT, Delivery(pause=pause), Speaker(), np.random.default_rng(1), voice)
        frames = clip[: len(clip) // 160 * 160].reshape(-1, 160)
        return float((np.abs(frames).max(1) < 0.1 * np.abs(clip).max()).mean())

    assert silent(1.0) > silent(0.0) + 0.15


def test_a_monotone_speaker_has_a_narrower_pitch_range(voice: Voice) -> None:
    lively, flat = (spread(voice.speak(TEXT, 200, melody, Speaker())) for melody in (1.0, 0.0))
    assert lively > 2 * flat
    assert lively > 0.1


def test_a_higher_speaker_is_higher(voice: Voice) -> None:
    low, high = (
        float(np.median(pitch_track(voice.speak(TEXT, 200, 0.2, Speaker(pitch=pitch))))) for pitch in (0.1, 0.9)
    )
    assert high > 1.2 * low


@pytest.mark.parametrize("name", ["formant", pytest.param("espeak", marks=needs_espeak)])
def test_the_same_calls_of_a_fresh_voice_give_the_same_samples(name: str) -> None:
    delivery = Delivery(0.3, 0.5, 0.5, 0.5, 0.5, 0.5)

    def three() -> list[bytes]:
        opened = open_voice(name)  # type: ignore[arg-type]
        rng = np.random.default_rng(5)
        clips = [render(TEXT, delivery, Speaker.draw(rng), rng, opened).tobytes() for _ in range(3)]
        opened.close()
        return clips

    assert three() == three()


def test_without_a_voice_the_result_depends_on_the_arguments_alone() -> None:
    first, second = (render(TEXT, Delivery(), Speaker(), np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, second)


def test_level_and_noise_are_those_of_the_speaker() -> None:
    quiet, loud = (
        render(TEXT, Delivery(), Speaker(level_db=db), np.random.default_rng(0), FormantVoice())
        for db in (-30.0, -20.0)
    )
    assert 20 * np.log10(loud.std() / quiet.std()) == pytest.approx(10, abs=0.5)
    clean, noisy = (
        render(TEXT, Delivery(), Speaker(snr_db=db), np.random.default_rng(0), FormantVoice()) for db in (40.0, 15.0)
    )
    assert noisy[:1000].std() > 10 * clean[:1000].std()


@needs_espeak
def test_espeak_knows_every_variant() -> None:
    opened = EspeakVoice()
    clips = [opened.speak("hello", 200, 0.5, Speaker(variant=variant)) for variant in VARIANTS]
    assert min(len(clip) for clip in clips) > RATE // 10
    tones = {tuple(np.abs(np.fft.rfft(clip, 4096))[:200].round(1)) for clip in clips}
    assert len(tones) == len(VARIANTS)
    opened.close()
    opened.close()
    with pytest.raises(SourceError, match="closed"):
        opened.speak("hello", 200, 0.5, Speaker())


def test_without_the_wheel_the_formant_voice_speaks_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert open_voice().name == "formant"
    assert "not installed" in capsys.readouterr().err
    with pytest.raises(SourceError, match="espeakng_loader"):
        open_voice("espeak")


def test_no_fault_is_the_text_itself() -> None:
    assert [phrase.text for phrase in plan(TEXT, Delivery(), np.random.default_rng(0))] == [TEXT]


def test_every_fault_is_in_the_plan() -> None:
    rng = np.random.default_rng(0)
    words = " ".join(p.text for p in plan(TEXT, Delivery(filler=1, repair=1), rng)).split()
    assert sum(word in FILLERS for word in words) == 2
    kept = [word for word in words if word not in FILLERS]
    assert sum(one == two for one, two in itertools.pairwise(kept)) == 2
    wrong = " ".join(p.text for p in plan(TEXT, Delivery(mispronounce=1), rng)).split()
    assert 3 <= sum(one != two for one, two in zip(wrong, TEXT.split(), strict=True)) <= 4
    assert sum(p.silence > 0.3 for p in plan(TEXT, Delivery(pause=1), rng)) == 3


@given(st.text(min_size=1, max_size=12), st.integers(0, 99))
def test_a_wrong_word_is_another_word(word: str, seed: int) -> None:
    assert mispronounce(word, np.random.default_rng(seed)) != word.lower()


@given(st.text(max_size=60), *[st.floats(0, 1)] * 4, st.integers(0, 99))
def test_any_text_with_words_can_be_planned(
    text: str, pause: float, filler: float, repair: float, wrong: float, seed: int
) -> None:
    delivery = Delivery(0.5, pause, filler, repair, wrong)
    if not text.split():
        with pytest.raises(RequestError):
            plan(text, delivery, np.random.default_rng(seed))
        return
    phrases = plan(text, delivery, np.random.default_rng(seed))
    assert len(" ".join(phrase.text for phrase in phrases).split()) >= len(text.split())
    assert all(0 <= phrase.silence < 1 for phrase in phrases)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_control_outside_0_to_1_is_refused(value: float) -> None:
    with pytest.raises(RequestError, match=r"delivery\.pause"):
        Delivery(pause=value)


def test_a_speaker_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RequestError, match="nobody"):
        Speaker(variant="nobody")


def test_what_cannot_be_spoken_is_refused(voice: Voice) -> None:
    with pytest.raises(SourceError):
        voice.speak("", 200, 0.5, Speaker())
    with pytest.raises(RequestError, match="no voice 'opera'"):
        open_voice("opera")  # type: ignore[arg-type]
