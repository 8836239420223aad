"""The HTTP API: chats and models, in OpenAI's words. Sound and verdicts are api_sound's.

Models are reached through the queue alone, and nothing that takes time runs in the event loop. A client that leaves
gives its place back and ends its answer. Refuses to know pages, and keys and hosts (the guard does).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Mapping
from threading import Event
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from luthier.engines.base import ChatRequest, Piece, ServedModel
from luthier.serve import describing
from luthier.serve.openai_words import ChatAsked, chunk, completion, conversation, usage
from luthier.serve.replies import Desk, as_api_error, cut_off, find_model, json_response, no_model, sse
from luthier.serve.services import Services
from luthier.serve.waiting import Held


def chat_routes(services: Services, desk: Desk) -> APIRouter:
    """/v1/chat/completions, /v1/models and /healthz."""
    started = int(time.time())

    async def chat(request: Request, asked: ChatAsked) -> Response:
        if services.chat is None:
            raise no_model(asked.model)
        find_model(services.chat.models(), asked.model)
        asked.check(services.settings.limits)
        sampling = asked.sampling(services.settings.limits)
        messages, media = await desk.in_thread(lambda: conversation(asked.messages, services.uploads))
        held = _begin(services, ChatRequest(asked.model, messages, sampling, media))
        identity = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}
        if asked.stream:
            first = await desk.attended(request, held, lambda: next(held, None))
            with_usage = asked.stream_options is not None and asked.stream_options.include_usage
            events = _events(desk, held, first, identity, with_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        pieces = await desk.attended(request, held, lambda: list(held))
        _check_whole(pieces[-1] if pieces else None)
        return json_response(completion(identity, "".join(piece.text for piece in pieces), pieces[-1]))

    def told(model: ServedModel) -> dict[str, Any]:
        described = services.describes.get(model.id)
        return _told(model, started) | ({"describes": describing.told(described)} if described else {})

    async def models() -> Response:
        return json_response({"object": "list", "data": [told(model) for model in _served(services)]})

    async def model(model_id: str) -> Response:
        return json_response(told(find_model(_served(services), model_id)))

    async def health() -> Response:
        kinds = [served.kind for served in _served(services)]
        counts = {kind: kinds.count(kind) for kind in ("chat", "verdict")}
        return json_response({"status": "ready", "models": counts, "speech": services.speech.name})

    router = APIRouter()
    router.add_api_route("/v1/chat/completions", chat, methods=["POST"], response_model=None)
    router.add_api_route("/v1/models", models, methods=["GET"], response_model=None)
    router.add_api_route("/v1/models/{model_id:path}", model, methods=["GET"], response_model=None)
    router.add_api_route("/healthz", health, methods=["GET"], response_model=None)
    return router


def _begin(services: Services, chat: ChatRequest) -> Held[Piece]:
    engine, gone = services.chat, Event()
    assert engine is not None
    return services.waiting.stream("", lambda: engine.stream(chat, gone), gone)


async def _events(
    desk: Desk, held: Held[Piece], first: Piece | None, identity: Mapping[str, Any], with_usage: bool
) -> AsyncIterator[bytes]:
    """An answer as server-sent events; what goes wrong on the way is its last event."""
    piece, last = first, None
    try:
        yield sse(chunk(identity, {"role": "assistant", "content": ""}))
        while piece is not None:
            if piece.text:
                yield sse(chunk(identity, {"content": piece.text}))
            last, piece = piece, await desk.in_thread(lambda: next(held, None))
        last = _check_whole(last)
        yield sse(chunk(identity, {}, last.finish))
        if with_usage:
            yield sse({**identity, "object": "chat.completion.chunk", "choices": [], "usage": usage(last)})
        yield b"data: [DONE]\n\n"
    except Exception as error:  # the status is sent: all that is left is to say it here
        yield sse(as_api_error(error).body())
    finally:
        held.close()


def _check_whole(last: Piece | None) -> Piece:
    """The last piece of an answer. Raises ApiError for an answer that was cut off."""
    if last is None or last.finish not in ("stop", "length"):
        raise cut_off()
    return last


def _served(services: Services) -> list[ServedModel]:
    return [model for engine in (services.chat, services.verdict) if engine is not None for model in engine.models()]


def _told(model: ServedModel, started: int) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": started,
        "owned_by": "luthier",
        "kind": model.kind,
        "base": model.base,
        "stage": model.stage,
        "step": model.step,
        "reads": list(model.reads),
    }
