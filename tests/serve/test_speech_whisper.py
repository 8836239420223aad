"""Whisper by transformers and by CTranslate2: toys that learned two sentences write them; what is not believed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from luthier.errors import RequestError
from luthier.serve.settings import SpeechSettings
from luthier.serve.speech.choose import open_transcriber
from luthier.serve.speech.faster import FasterWhisper
from luthier.serve.speech.sound import DOUBTED, Gate
from luthier.serve.speech.whisper import Whisper
from support.sounds import RATE, noises, say
from support.whispers import teach, write_whisper

WORDS = ("what is the weather today", "open the door please")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A toy Whisper that learned two sentences, and their recordings."""
    folder = tmp_path_factory.mktemp("whisper")
    write_whisper(folder, multilingual=False)
    said = {text: say(text) for text in WORDS}
    teach(folder, said)
    return folder, said


def test_a_tuned_whisper_writes_what_it_learned_with_the_times_of_words(taught) -> None:
    folder, said = taught
    engine = open_transcriber(SpeechSettings(model=str(folder)))
    assert isinstance(engine, Whisper)
    for text, wave in said.items():
        heard = engine.transcribe(wave)
        assert (heard.text, heard.language, heard.engine) == (text, "en", "whisper")
        assert [word.text for word in heard.words] == text.split()
    assert "silent" in engine.transcribe(np.zeros(RATE, np.float32)).note
    with pytest.raises(RequestError, match="the most is 60 s"):
        engine.transcribe(np.zeros(61 * RATE, np.float32))
    engine.close()
    assert engine.transcribe(wave).text == text


@pytest.fixture(scope="module")
def converted(taught, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in CTranslate2's layout."""
    pytest.importorskip("faster_whisper")
    from ctranslate2.converters import TransformersConverter

    folder = tmp_path_factory.mktemp("ct2") / "model"
    TransformersConverter(str(taught[0]), copy_files=["tokenizer.json"]).convert(str(folder), quantization="int8")
    return folder


def test_faster_whisper_writes_what_it_learned_with_the_times_of_words(taught, converted: Path) -> None:
    engine = open_transcriber(SpeechSettings(model=str(converted)))
    assert isinstance(engine, FasterWhisper)
    for text, wave in taught[1].items():
        heard = engine.transcribe(wave)
        assert (heard.text, heard.language, heard.engine) == (text, "en", "faster-whisper")
        assert [word.text for word in heard.words] == text.split()
        assert all(0 <= word.start <= word.end and 0 <= word.probability <= 1 for word in heard.words)
    for name in ("white", "hum", "tone"):
        heard = engine.transcribe(noises()[name])
        assert (heard.text, heard.note) == ("", "nobody spoke: no voice was found"), name


def test_faster_whisper_refuses_a_model_and_a_language_that_it_cannot_have(converted: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="knows no language 'xx'"):
        FasterWhisper(str(converted), "xx").transcribe(say("yes"))
    with pytest.raises(RequestError, match="cannot have the model"):
        FasterWhisper(str(tmp_path)).transcribe(say("yes"))


@pytest.mark.parametrize(
    ("about", "believed"),
    [
        ({}, True),
        ({"no_speech_prob": 0.7}, False),
        ({"avg_logprob": -1.2}, False),
        ({"compression_ratio": 3.0}, False),
    ],
)
def test_a_segment_is_believed_by_all_three_signs(about: dict[str, float], believed: bool) -> None:
    facts = {"no_speech_prob": 0.1, "avg_logprob": -0.3, "compression_ratio": 1.2} | about
    word = SimpleNamespace(word=" Thanks", start=0.1, end=0.4, probability=0.9)
    segment = SimpleNamespace(text=" Thanks", words=[word], **facts)
    engine = FasterWhisper("base")
    engine._model = SimpleNamespace(
        transcribe=lambda wave, **_: ([segment], SimpleNamespace(language="en", duration_after_vad=1.0))
    )
    heard = engine.transcribe(say("yes"))
    assert (heard.text, heard.note) == (("Thanks", "") if believed else ("", DOUBTED))


def test_a_whisper_of_many_languages_tells_which_it_heard(tmp_path: Path) -> None:
    write_whisper(tmp_path)
    open_gate = Gate(1.1, -1e9, 1e9)
    heard = Whisper(str(tmp_path), gate=open_gate).transcribe(say(WORDS[0]))
    assert heard.language in ("en", "zh", "no")
    assert Whisper(str(tmp_path), "no", open_gate).transcribe(say(WORDS[0])).language == "no"
    with pytest.raises(RequestError, match="tlh"):
        Whisper(str(tmp_path), "tlh", open_gate).transcribe(say(WORDS[0]))


def test_a_whisper_without_timestamps_hears_half_a_minute(tmp_path: Path) -> None:
    write_whisper(tmp_path, stamps=False)
    engine = Whisper(str(tmp_path), gate=Gate(1.1, -1e9, 1e9))
    assert engine.transcribe(say(WORDS[0])).words == ()
    with pytest.raises(RequestError, match="hears 30 s at most"):
        engine.transcribe(noises()["white"].repeat(16))


def test_a_folder_that_is_no_whole_whisper_is_refused_before_it_is_needed(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="model_type is None"):
        Whisper(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(RequestError, match="model_type is llama"):
        Whisper(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(RequestError, match="no weights in safetensors"):
        Whisper(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(RequestError, match="an adapter"):
        Whisper(str(tmp_path))
