"""What `luthier serve` is told, each option declared once. Secrets stay in the environment until they are used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class SpeechSettings:
    """How speech becomes text."""

    engine: str = "auto"
    """auto, pocketsphinx, faster-whisper or whisper (transformers'; `model` is then a folder or hub id)."""
    model: str = ""
    """Size or folder of a Whisper; empty for the engine's own default."""
    language: str = ""
    """Empty: the engine finds out (pocketsphinx knows English alone)."""


@dataclass(frozen=True)
class Limits:
    """What is taken from a client, checked after decoding in a child process; more is refused with a sentence."""

    audio_bytes: int = 10 * 2**20
    picture_bytes: int = 5 * 2**20
    seconds: float = 60.0
    """Of one recording."""
    pixels: int = 12_000_000
    batch_files: int = 200
    """Recordings of one batch on the judge's page."""
    text_chars: int = 32_000
    max_new_tokens: int = 2048
    turns: int = 200


@dataclass(frozen=True)
class ServeSettings:
    """All of it."""

    runs: tuple[Path, ...] = ()
    host: str = "127.0.0.1"
    port: int = 7860
    watched: Path | None = None
    """A folder whose runs are listed on the page of runs, besides those that are served."""
    store: Path | None = None
    """Where votes and corrected transcripts are kept; None: serve.sqlite in the user's data folder."""
    gguf: Path | None = None
    """A GGUF model to be served beside the runs, through llama.cpp."""
    threads: int = 0
    """0: chosen from the machine."""
    queue_size: int = 16
    """Requests that wait for the models; one more is answered 429."""
    per_session: int = 2
    """Requests of one session that may wait or run at once."""
    api_key_env: str = "LUTHIER_API_KEY"
    """The environment variable that holds the API key; without it the API asks for none."""
    allowed_origins: tuple[str, ...] = ()
    """Origins besides the server's own whose pages may call it."""
    speech: SpeechSettings = field(default_factory=SpeechSettings)
    limits: Limits = field(default_factory=Limits)
