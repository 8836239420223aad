"""Which engine listens: the one that was asked for, or the best that this machine has without a download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from luthier.console import say
from luthier.errors import RequestError
from luthier.serve.settings import SpeechSettings
from luthier.serve.speech.base import Transcriber
from luthier.serve.speech.faster import PREFERRED, FasterWhisper, local_model
from luthier.serve.speech.pocket import PocketSphinx
from luthier.serve.speech.whisper import Whisper

ENGINES = ("auto", "pocketsphinx", "faster-whisper", "whisper")
INSTALL = {
    "pocketsphinx": "pip install 'luthier[serve]'",
    "faster_whisper": "pip install 'luthier[whisper]'",
}


def open_transcriber(settings: SpeechSettings) -> Transcriber:
    """The engine by the settings, its choice said. Models are loaded at the first recording.

    `auto` without a model: faster-whisper where it is installed and a model of it is on this machine, else
    pocketsphinx for English. `auto` with a model: the engine that reads it. Raises RequestError for an engine that is
    not installed, with its install line, and for a model or language that the engine cannot have.
    """
    if settings.engine not in ENGINES:
        raise RequestError(f"speech: no engine {settings.engine!r}", f"one of {', '.join(ENGINES)}")
    if settings.engine == "auto":
        chosen = _named_model(settings) if settings.model else _best_here(settings)
    elif settings.engine == "whisper":
        chosen = _whisper(settings)
    elif settings.engine == "faster-whisper":
        chosen = _faster(settings)
    else:
        chosen = _pocket(settings)
    say(f"speech: {chosen.name}{f' ({settings.model})' if settings.model else ''} listens")
    return chosen


def _best_here(settings: SpeechSettings) -> Transcriber:
    folder = local_model() if _installed("faster_whisper") else ""
    if folder:
        return FasterWhisper(folder, settings.language)
    if _installed("pocketsphinx") and _english(settings.language):
        return PocketSphinx()
    raise RequestError(
        f"speech: nothing on this machine can listen to {settings.language or 'English'}",
        f"for English offline {INSTALL['pocketsphinx']}; for more {INSTALL['faster_whisper']} and set its engine and "
        "model, which is then downloaded",
    )


def _named_model(settings: SpeechSettings) -> Transcriber:
    if (Path(settings.model) / "config.json").is_file() and not (Path(settings.model) / "model.bin").is_file():
        return Whisper(settings.model, settings.language)
    _need("faster_whisper", "faster-whisper")
    folder = local_model(settings.model)
    if not folder:
        raise RequestError(
            f"speech: the model {settings.model} is not on this machine",
            "set the engine to faster-whisper or whisper, and it is downloaded; or name a folder",
        )
    return FasterWhisper(folder, settings.language)


def _whisper(settings: SpeechSettings) -> Transcriber:
    if not settings.model:
        raise RequestError("speech: the engine whisper needs a model", "name a tuned Whisper's folder or hub id")
    return Whisper(settings.model, settings.language)


def _faster(settings: SpeechSettings) -> Transcriber:
    _need("faster_whisper", "faster-whisper")
    folder = local_model(settings.model)
    if not folder and Path(settings.model).is_dir() and settings.model:
        raise RequestError(
            f"{settings.model}: no model.bin and tokenizer.json of CTranslate2",
            "convert the model, or set the engine to whisper",
        )
    return FasterWhisper(folder or settings.model or PREFERRED[0], settings.language)


def _pocket(settings: SpeechSettings) -> Transcriber:
    _need("pocketsphinx", "pocketsphinx")
    if settings.model:
        raise RequestError("speech: pocketsphinx has one model, its own", "leave the model out, or name another engine")
    if not _english(settings.language):
        raise RequestError(f"speech: pocketsphinx knows no {settings.language}", "take faster-whisper, or en")
    return PocketSphinx()


def _english(language: str) -> bool:
    return language.lower().replace("_", "-").split("-")[0] in ("", "en")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _need(package: str, engine: str) -> None:
    if not _installed(package):
        raise RequestError(f"speech: {engine} is not installed", INSTALL[package])
