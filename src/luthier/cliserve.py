"""The words of `luthier serve`: the web app and the HTTP API of some runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.cliwords import add_verb
from luthier.console import say
from luthier.errors import RequestError
from luthier.serve.settings import ServeSettings, SpeechSettings

if TYPE_CHECKING:
    from luthier.serve.services import Services

_ENGINES = ("auto", "pocketsphinx", "faster-whisper", "whisper")
_NEEDED = ("gradio", "fastapi", "uvicorn", "prometheus_client", "markdown_it")


def serve_parser(verbs: Any) -> None:
    """Add `serve` to the command line."""
    verb = add_verb(
        verbs,
        "serve",
        _serve,
        "the web app and the HTTP API: talk to runs, compare them, judge recordings",
        """luthier serve runs/assistant
         luthier serve runs/assistant runs/speaking --watch runs --port 0
         luthier serve --gguf exports/a/model.gguf --no-app""",
    )
    verb.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="folders of runs: chats and verdicts, together")
    verb.add_argument("--port", type=int, default=7860, help="0 takes any free one (default: 7860)")
    verb.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: this machine alone); others need a key"
    )
    verb.add_argument("--gguf", type=Path, metavar="FILE", help="a GGUF model beside the runs, through llama.cpp")
    verb.add_argument("--speech", choices=_ENGINES, default="auto", help="what hears (default: the best that is there)")
    verb.add_argument("--speech-model", default="", metavar="M", help="size or folder of a Whisper")
    verb.add_argument("--language", default="", metavar="L", help="what is spoken, as en or no (default: found out)")
    verb.add_argument(
        "--queue", type=int, default=16, metavar="N", help="requests that may wait; one more is told to come back"
    )
    verb.add_argument("--threads", type=int, default=0, metavar="N", help="of a model (default: by the machine)")
    verb.add_argument("--store", type=Path, metavar="FILE", help="where votes and corrections are kept")
    verb.add_argument("--watch", type=Path, metavar="DIR", help="a folder whose runs are listed too, while they train")
    verb.add_argument(
        "--origin", action="append", default=[], metavar="URL", help="a site whose pages may call this server"
    )
    verb.add_argument("--no-app", action="store_true", help="the API alone, without the pages")


def _serve(options: argparse.Namespace) -> Any:
    settings = settings_of(options)
    if options.watch and not options.watch.is_dir():
        raise RequestError(f"serve: --watch {options.watch} is no folder", "give the one that runs are made in")
    _need_extra()
    from luthier.serve.server import serve

    def ready(address: str, services: Services) -> None:
        engines = [engine for engine in (services.chat, services.verdict) if engine is not None]
        models = [model.id for engine in engines for model in engine.models()]
        many = "1 model" if len(models) == 1 else f"{len(models)} models"
        say(f"luthier: {many} at {address} (ctrl-C ends it); the API is at {address}/v1")
        if options.json:
            print(json.dumps({"url": address, "models": models}), flush=True)

    serve(settings, ready, pages=not options.no_app)


def settings_of(options: argparse.Namespace) -> ServeSettings:
    """The settings that the words stand for. Raises RequestError for a number that cannot be meant."""
    for name, least, most in (("port", 0, 65535), ("queue", 1, 1000), ("threads", 0, 1024)):
        if not least <= getattr(options, name) <= most:
            raise RequestError(f"serve: --{name} {getattr(options, name)} is out of range", f"give {least} to {most}")
    for origin in options.origin:
        if not origin.startswith(("http://", "https://")) or "/" in origin.partition("://")[2].rstrip("/"):
            raise RequestError(f"serve: --origin {origin} is no origin", "give scheme and host: https://iris.example")
    return ServeSettings(
        runs=tuple(options.runs),
        host=options.host,
        port=options.port,
        watched=options.watch,
        store=options.store,
        gguf=options.gguf,
        threads=options.threads,
        queue_size=options.queue,
        allowed_origins=tuple(options.origin),
        speech=SpeechSettings(options.speech, options.speech_model, options.language),
    )


def _need_extra() -> None:
    from importlib.util import find_spec

    absent = [name for name in _NEEDED if find_spec(name) is None]
    if absent:
        raise RequestError(f"serve: needs {', '.join(absent)}", "pip install 'luthier[serve]'")
