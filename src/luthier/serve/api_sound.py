"""The API's routes for sound: transcriptions in OpenAI's words, and verdicts in our own.

Forms with files come in, are decoded by `uploads` in its child process, and go through the queue. A file's name is
shown and never opened.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile

from luthier.engines.base import Recording, Verdict
from luthier.errors import MediaError
from luthier.serve.openai_words import ApiError
from luthier.serve.replies import Desk, find_model, json_response, no_model
from luthier.serve.services import Services
from luthier.serve.speech.base import Transcript
from luthier.serve.subtitles import segments, srt, vtt
from luthier.serve.uploads import Uploads, shown

_FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
_ANY_EARS = "whisper-1"
"""What clients call the model that know no other name."""
_MOST_FILES = 16
_MOST_FIELDS = 32


def sound_routes(services: Services, desk: Desk) -> APIRouter:
    """/v1/audio/transcriptions and /v1/verdicts."""

    async def transcribe(request: Request) -> Response:
        async with _form(request) as form:
            wanted = _field(form, "model") or _ANY_EARS
            kind = _field(form, "response_format") or "json"
            language = _field(form, "language")
            words = "word" in form.getlist("timestamp_granularities[]")
            if _field(form, "stream") not in ("", "false", "False", "0"):
                raise ApiError(400, "Transcriptions are not streamed.", "stream", "unsupported_parameter")
            ((data, name),) = await _files(form, "file", most=1)
        if wanted not in (services.speech.name, _ANY_EARS):
            raise no_model(wanted)
        if kind not in _FORMATS:
            raise ApiError(400, f"response_format is one of {', '.join(_FORMATS)}.", "response_format")
        sound = await desk.in_thread(lambda: services.uploads.sound(data, name))
        heard = await desk.queued(request, services.waiting, lambda: services.speech.transcribe(sound.wave_L))
        if language and heard.language and language != heard.language:
            message = f"This server hears {heard.language}; it is told its language when it is started (--language)."
            raise ApiError(400, message, "language")
        return _written(heard, kind, words)

    async def verdicts(request: Request) -> Response:
        async with _form(request) as form:
            wanted, question = _field(form, "model"), _field(form, "question")
            files = await _files(form, "file", most=_MOST_FILES)
        engine = services.verdict
        if engine is None:
            raise no_model(wanted)
        model = find_model(engine.models(), wanted or engine.models()[0].id).id
        if len(question) > services.settings.limits.text_chars:
            raise ApiError(400, "The question is too long.", "question")
        read = [await desk.in_thread(partial(_recording, services.uploads, data, name)) for data, name in files]
        recordings = [item for item in read if isinstance(item, Recording)]
        if not recordings:
            raise next(item for item in read if isinstance(item, MediaError))
        judged, zone = await desk.queued(
            request, services.waiting, lambda: (engine.judge(model, recordings, question), engine.zone(model))
        )
        verdict = iter(judged)
        told = [
            _told(next(verdict)) if isinstance(item, Recording) else {"name": shown(name), "error": item.detail}
            for item, (_, name) in zip(read, files, strict=True)
        ]
        return json_response({"object": "list", "model": model, "zone": zone and asdict(zone), "data": told})

    router = APIRouter()
    router.add_api_route("/v1/audio/transcriptions", transcribe, methods=["POST"], response_model=None)
    router.add_api_route("/v1/verdicts", verdicts, methods=["POST"], response_model=None)
    return router


def _recording(uploads: Uploads, data: bytes, name: str) -> Recording | MediaError:
    """The decoded recording, or why it cannot be judged."""
    try:
        return Recording(shown(name), uploads.sound(data, name).wave_L)
    except MediaError as error:
        return error


@asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    """The form of a request; its files are gone afterwards. Raises ApiError for a body that is none."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(400, "Send a form with a file: content-type multipart/form-data.", "file")
    try:
        form = await request.form(max_files=_MOST_FILES, max_fields=_MOST_FIELDS)
    except FormParserError as error:
        raise ApiError(400, "The body is no form that can be read.") from error
    try:
        yield form
    finally:
        await form.close()


def _field(form: FormData, name: str) -> str:
    value = form.get(name, "")
    if isinstance(value, UploadFile):
        raise ApiError(400, f"{name} is a text, not a file.", name)
    return value


async def _files(form: FormData, name: str, most: int) -> list[tuple[bytes, str]]:
    """Bytes and file names of the form's files: under this name, its plural, or its plural as some clients write it."""
    found = [value for key in (name, f"{name}s", f"{name}[]") for value in form.getlist(key)]
    if not found or not all(isinstance(value, UploadFile) for value in found):
        raise ApiError(400, f"Give a file as {name}.", name)
    if len(found) > most:
        raise ApiError(400, f"At most {most} at once.", name)
    return [(await value.read(), value.filename or "") for value in found if isinstance(value, UploadFile)]


def _written(heard: Transcript, kind: str, words: bool) -> Response:
    """A transcript in the format that was asked for."""
    if kind in ("text", "srt", "vtt"):
        return PlainTextResponse({"text": lambda it: it.text + "\n", "srt": srt, "vtt": vtt}[kind](heard))
    if kind == "json":
        usage = {"type": "duration", "seconds": round(heard.seconds)}
        return json_response({"text": heard.text, "usage": usage, "note": heard.note})
    told: dict[str, Any] = {
        "task": "transcribe",
        "text": heard.text,
        "language": heard.language,
        "duration": heard.seconds,
        "note": heard.note,
        "segments": [
            {"id": place, "start": part.start, "end": part.end, "text": part.text}
            for place, part in enumerate(segments(heard))
        ],
    }
    if words:
        told["words"] = [
            {"word": word.text, "start": word.start, "end": word.end, "probability": word.probability}
            for word in heard.words
        ]
    return json_response(told)


def _told(verdict: Verdict) -> dict[str, Any]:
    """One verdict in the words of `luthier predict`; what a model does not say is left out."""
    found = asdict(verdict)
    found["pass"] = found.pop("passed")
    return {key: value for key, value in found.items() if value is not None and value != ""}
