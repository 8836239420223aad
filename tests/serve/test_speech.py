"""Speech: what espeak says is heard, whatever container it comes in; silence and noise are nobody's words."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from luthier.errors import RequestError
from luthier.serve.settings import Limits, SpeechSettings
from luthier.serve.speech import choose
from luthier.serve.speech.faster import FasterWhisper, local_model
from luthier.serve.speech.pocket import PocketSphinx
from luthier.serve.speech.sound import pcm16, silence
from luthier.serve.uploads import Uploads
from support.sounds import RATE, containers, noises, say, written

SENTENCES = """what is the weather today | open the door please | one two three four five | what time is it
i think that people should read more books | how are you today | please open the window | where is the house
the weather is cold today | i want to read a book | he is a good man | seven eight nine | what is your name
please close the door | how much does it cost | we live in a small house | the water is very cold | tell me the time
i do not know | where are you going today""".replace("\n", " | ").split(" | ")
BOOKS = "i think that people should read more books"


def word_errors(said: str, heard: str) -> int:
    """Levenshtein's distance between two texts, in words."""
    row = list(range(len(heard.split()) + 1))
    for count, word in enumerate(said.split(), 1):
        corner, row[0] = row[0], count
        for place, other in enumerate(heard.split(), 1):
            corner, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, corner + (word != other))
    return row[-1]


@pytest.fixture(scope="module")
def pocket() -> Iterator[PocketSphinx]:
    engine = PocketSphinx()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def uploads() -> Iterator[Uploads]:
    made = Uploads(Limits())
    yield made
    made.close()


def test_pocketsphinx_hears_three_words_in_four_of_what_espeak_says(pocket: PocketSphinx) -> None:
    errors = sum(word_errors(text, pocket.transcribe(say(text)).text) for text in SENTENCES)
    rate = errors / sum(len(text.split()) for text in SENTENCES)
    print(f"word error rate {rate:.3f}")
    assert rate < 0.25


def test_a_sentence_is_heard_alike_in_every_container(pocket: PocketSphinx, uploads: Uploads) -> None:
    heard = {
        kind: pocket.transcribe(uploads.sound(data, kind).wave_L).text for kind, data in containers(say(BOOKS)).items()
    }
    assert heard.pop("wav 16 kHz") == BOOKS
    assert word_errors(BOOKS, heard.pop("wav 8 kHz")) <= 3, "half of the spectrum is gone"
    assert word_errors(BOOKS, heard.pop("mp4 aac")) <= 1
    assert set(heard.values()) == {BOOKS}, heard


def test_a_tone_keeps_its_pitch_level_and_length_in_every_container(uploads: Uploads) -> None:
    tone = (0.3 * np.sin(2 * np.pi * 1000 * np.arange(2 * RATE) / RATE)).astype(np.float32)
    for kind, data in containers(tone).items():
        sound = uploads.sound(data, kind)
        middle = sound.wave_L[RATE // 5 : -RATE // 5]
        spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 16 * len(middle)))
        assert abs(np.argmax(spectrum) * RATE / 16 / len(middle) - 1000) < 0.5, kind
        assert abs(math.sqrt(2 * np.mean(middle**2)) - 0.3) < 0.003, kind
        assert abs(sound.seconds - 2) < (0.05 if "aac" in kind else 0.001), kind


def test_sound_on_one_side_of_two_comes_at_half_its_amplitude_and_is_heard(
    pocket: PocketSphinx, uploads: Uploads
) -> None:
    wave = say(BOOKS)
    sound = uploads.sound(written(np.stack([wave, 0 * wave], axis=1), RATE, "WAV", "FLOAT"), "left.wav")
    assert np.allclose(sound.wave_L, wave / 2, atol=1e-7)
    assert (sound.rate, sound.channels, sound.format) == (RATE, 2, "wav")
    assert pocket.transcribe(sound.wave_L).text == BOOKS


def test_words_have_times_in_order_within_the_recording(pocket: PocketSphinx) -> None:
    late = np.concatenate([np.zeros(RATE, np.float32), say(BOOKS)])
    heard = pocket.transcribe(late)
    assert " ".join(word.text for word in heard.words) == heard.text
    times = [moment for word in heard.words for moment in (word.start, word.end)]
    assert times == sorted(times)
    assert times[0] >= 0.9
    assert times[-1] <= heard.seconds
    assert all(0 <= word.probability <= 1 for word in heard.words)
    assert len({word.probability for word in heard.words}) > 1


def test_silence_and_noise_give_no_words_and_say_so(pocket: PocketSphinx) -> None:
    rng = np.random.default_rng(0)
    silent = {
        "zeros": np.zeros(RATE, np.float32),
        "last bit": (rng.integers(-1, 2, RATE) / 32768).astype(np.float32),
        "offset": np.full(RATE, 0.5, np.float32),
        "nothing": np.zeros(0, np.float32),
    }
    for name, wave in (silent | noises()).items():
        heard = pocket.transcribe(wave)
        assert (heard.text, heard.words) == ("", ()), name
        assert heard.note.startswith("nobody spoke"), name


def test_what_was_heard_before_changes_nothing(pocket: PocketSphinx) -> None:
    first = pocket.transcribe(say(BOOKS))
    pocket.transcribe(noises()["loud white"])
    assert pocket.transcribe(say(BOOKS)) == first
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: pocket.transcribe(say(BOOKS)), range(4))) == {first}


def test_other_threads_run_while_pocketsphinx_listens(pocket: PocketSphinx) -> None:
    done, gaps = Event(), []

    def tick() -> None:
        while not done.is_set():
            before = time.perf_counter()
            time.sleep(0.005)
            gaps.append(time.perf_counter() - before)

    thread = Thread(target=tick)
    thread.start()
    began = time.perf_counter()
    pocket.transcribe(np.tile(say(BOOKS), 4))
    took = time.perf_counter() - began
    done.set()
    thread.join()
    assert max(gaps) < took / 2, "the interpreter was held"


def test_a_minute_is_heard_and_no_more(pocket: PocketSphinx) -> None:
    pocket.transcribe(np.zeros(round(60.1 * RATE), np.float32))
    with pytest.raises(RequestError, match=r"61\.0 s of sound, the most is 60 s"):
        pocket.transcribe(np.zeros(61 * RATE, np.float32))
    with pytest.raises(RequestError, match="not finite"):
        pocket.transcribe(np.full(RATE, np.nan, np.float32))


def test_a_closed_engine_listens_again() -> None:
    engine = PocketSphinx()
    engine.close()
    text = engine.transcribe(say("how are you today")).text
    engine.close()
    engine.close()
    assert engine.transcribe(say("how are you today")).text == text == "how are you today"
    engine.close()


def test_samples_of_16_bits_are_rounded_and_clipped() -> None:
    wave = np.array([0, 1, -1, 2, -3, 0.5, 1 / 32767], np.float32)
    assert np.frombuffer(pcm16(wave), "<i2").tolist() == [0, 32767, -32767, 32767, -32767, 16384, 1]


def test_silence_is_told_by_the_loudest_moment() -> None:
    wave = np.zeros(RATE, np.float32)
    assert "silent" in silence(wave)
    wave[RATE // 2 : RATE // 2 + 480] = 0.01 * np.sin(np.arange(480))
    assert silence(wave) == ""
    assert "2 ms" in silence(wave[:32])


def test_without_a_model_on_the_machine_pocketsphinx_listens_and_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert local_model() == ""
    assert isinstance(choose.open_transcriber(SpeechSettings()), PocketSphinx)
    assert "pocketsphinx listens" in capsys.readouterr().err
    with pytest.raises(RequestError, match="nothing on this machine can listen to zh"):
        choose.open_transcriber(SpeechSettings(language="zh"))
    with pytest.raises(RequestError, match="the model small is not on this machine"):
        choose.open_transcriber(SpeechSettings(model="small"))


def test_a_cached_size_is_taken_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "models--Systran--faster-whisper-small"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert local_model() == ""
    for name in ("model.bin", "tokenizer.json"):
        (snapshot / name).write_bytes(b"")
    assert local_model() == local_model("small") == str(snapshot)
    assert isinstance(choose.open_transcriber(SpeechSettings()), FasterWhisper)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (SpeechSettings("siri"), "no engine 'siri'"),
        (SpeechSettings("pocketsphinx", "base"), "has one model"),
        (SpeechSettings("pocketsphinx", language="zh"), "knows no zh"),
        (SpeechSettings("whisper"), "needs a model"),
    ],
)
def test_settings_that_no_engine_can_keep_are_refused(settings: SpeechSettings, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        choose.open_transcriber(settings)


@pytest.mark.parametrize("engine", ["auto", "pocketsphinx", "faster-whisper"])
def test_what_is_not_installed_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setattr(choose, "_installed", lambda package: False)
    with pytest.raises(RequestError, match=r"pip install 'luthier\["):
        choose.open_transcriber(SpeechSettings(engine))
