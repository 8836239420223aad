"""What stands behind every route of the API: threads, clients that leave, and errors in OpenAI's form."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from luthier.engines.base import ServedModel
from luthier.errors import LuthierError, MediaError, RequestError
from luthier.serve.openai_words import ApiError
from luthier.serve.uploads import shown
from luthier.serve.waiting import Busy, Held, Waiting

T = TypeVar("T")

_BESIDE_THE_QUEUE = 16
_BROKEN = "The server failed over this request; its log says why."


class Desk:
    """Where requests wait without holding up the event loop. `queue_size`: how many may wait for the models."""

    def __init__(self, queue_size: int) -> None:
        # Who waits in the queue waits in a thread; uploads being decoded and refusals need some more.
        self._threads = anyio.CapacityLimiter(queue_size + _BESIDE_THE_QUEUE)

    async def in_thread(self, function: Callable[[], T]) -> T:
        """The function's value, from a thread. A request that is cancelled does not wait for it.

        Whatever the function raises becomes an ApiError: a fault that came up to the server would cost the connection.
        """
        try:
            return await anyio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=self._threads)
        except Exception as error:
            raise as_api_error(error) from error

    async def attended(self, request: Request, held: Held[Any], function: Callable[[], T]) -> T:
        """The function's value, from a thread; `held` is closed as soon as the client leaves, or this fails."""
        watch = asyncio.create_task(_close_when_left(request, held))
        try:
            return await self.in_thread(function)
        except BaseException:
            held.close()
            raise
        finally:
            watch.cancel()

    async def queued(self, request: Request, waiting: Waiting, function: Callable[[], T]) -> T:
        """The function's value, once its turn at the models has come."""
        held = waiting.stream("", lambda: [function()])
        values = await self.attended(request, held, lambda: list(held))
        if not values:
            raise cut_off()
        return values[0]


async def _close_when_left(request: Request, held: Held[Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    held.close()


def find_model(models: Sequence[ServedModel], wanted: str) -> ServedModel:
    """The model of this id. Raises ApiError (404) where there is none."""
    for model in models:
        if model.id == wanted:
            return model
    raise no_model(wanted)


def no_model(wanted: str) -> ApiError:
    """The refusal of a model that this server does not have, or not for this."""
    message = f"This server has no model {shown(wanted)} for this; GET /v1/models lists those it has."
    return ApiError(404, message, "model", "model_not_found")


def cut_off() -> ApiError:
    """The refusal of what was begun and cannot be ended."""
    return ApiError(503, "The answer was cut off: the server is stopping, or the client left.", None, "cut_off")


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII: half a surrogate pair from a client's text would not be UTF-8."""
    return Response(json.dumps(value, allow_nan=False), status, dict(headers or {}), "application/json")


def sse(value: Any) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(value, allow_nan=False)}\n\n".encode()


def as_api_error(error: Exception) -> ApiError:
    """What a client is told. Faults of ours are told without their words, which may hold paths; the log has them."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        told = ApiError(503 if error.reason == "stopping" else 429, _words(error), None, f"queue_{error.reason}")
        told.headers["retry-after"] = str(error.retry_after)
        return told
    if isinstance(error, MediaError):
        return ApiError(400, error.detail, None, error.reason)
    if isinstance(error, RequestError):
        return ApiError(400, _words(error))
    logging.getLogger(__name__).error("a request failed", exc_info=error)
    return ApiError(503 if isinstance(error, LuthierError) else 500, _BROKEN)


def install_error_forms(app: FastAPI) -> None:
    """Let every refusal and every failure of the app's routes speak OpenAI's form."""

    async def failed(_request: Request, error: Exception) -> Response:
        told = as_api_error(error)
        return json_response(told.body(), told.status, told.headers)

    async def invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return json_response(_first_problem(error).body(), 400)

    async def refused(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return json_response(ApiError(error.status_code, str(error.detail)).body(), error.status_code, error.headers)

    app.add_exception_handler(ApiError, failed)
    app.add_exception_handler(LuthierError, failed)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(Exception, failed)


def _words(error: LuthierError) -> str:
    return f"{error.message}; {error.mend}." if error.mend else f"{error.message}."


def _first_problem(error: RequestValidationError) -> ApiError:
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        return ApiError(400, f"The body is no JSON: {problem['ctx']['error']}.")
    where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in problem["loc"][1:])
    param = shown(where.removeprefix(".")) if where else None
    return ApiError(400, f"{param or 'body'}: {problem['msg']}.", param)
