"""What a server counts of itself, for Prometheus: requests, the queue, tokens, speech, verdicts.

Engines are wrapped, so that pages and API are counted alike. Labels come from fixed lists or from the models served,
never from a client. Refuses to know what was asked or answered.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.engines.base import (
    ChatEngine,
    ChatRequest,
    Piece,
    Recording,
    ServedModel,
    Sight,
    Verdict,
    VerdictEngine,
    Zone,
)
from luthier.serve.services import Services
from luthier.serve.speech.base import Transcriber, Transcript
from luthier.serve.waiting import Waiting

_ROUTES = ("/v1/chat/completions", "/v1/audio/transcriptions", "/v1/verdicts", "/v1/models", "/healthz", "/metrics")
_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)


class Metrics:
    """One server's counts, in a registry of their own."""

    def __init__(self, waiting: Waiting) -> None:
        self._registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self._registry}
        self.requests = Counter("luthier_requests", "HTTP requests", ["route", "status"], **made)
        self.seconds = Histogram(
            "luthier_request_seconds", "Until the last byte was sent", ["route"], buckets=_SECONDS, **made
        )
        self.turned_away = Counter("luthier_turned_away", "Requests the guard refused", ["reason"], **made)
        self.tokens = Counter("luthier_tokens", "Tokens written", ["model"], **made)
        self.first_piece = Histogram(
            "luthier_first_piece_seconds", "From the turn in the queue to the first piece", buckets=_SECONDS, **made
        )
        self.rate = Histogram("luthier_tokens_per_second", "Of each answer, as a whole", buckets=_RATES, **made)
        self.speech = Counter("luthier_speech_seconds", "Sound that was transcribed", **made)
        self.verdicts = Counter("luthier_verdicts", "Recordings judged", ["model", "passed"], **made)
        self._registry.register(_Queue(waiting))  # type: ignore[arg-type]

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return bytes(generate_latest(self._registry))

    def counted(self, services: Services) -> Services:
        """The same services, whose engines count what they do."""
        return replace(
            services,
            chat=services.chat and _CountedChat(services.chat, self),
            verdict=services.verdict and _CountedVerdict(services.verdict, self),
            speech=_CountedEars(services.speech, self),
        )


class Measured:
    """ASGI middleware: counts requests by route and status, and how long each took."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), "none"  # none: the client left before an answer began
        route = next((known for known in _ROUTES if scope["path"].startswith(known)), "page")

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began)


class _Queue:
    """The queue's own counts, read when they are asked for."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting

    def collect(self) -> Iterable[Metric]:
        counts = self._waiting.counts()
        yield GaugeMetricFamily("luthier_queue_waiting", "Requests that wait for the models", counts.waiting)
        yield GaugeMetricFamily("luthier_queue_working", "Requests being worked on", counts.working)
        ended = CounterMetricFamily("luthier_queue_ended", "Requests that left the queue", labels=["how"])
        refused = CounterMetricFamily("luthier_queue_refused", "Requests not let in", labels=["reason"])
        for how, count in (("done", counts.done), ("left", counts.left)):
            ended.add_metric([how], count)
        for reason, count in (("full", counts.refused_full), ("session", counts.refused_session)):
            refused.add_metric([reason], count)
        yield ended
        yield refused


class _CountedChat:
    def __init__(self, inner: ChatEngine, metrics: Metrics) -> None:
        self._inner = inner
        self._metrics = metrics

    def models(self) -> list[ServedModel]:
        return self._inner.models()

    def stream(self, request: ChatRequest, cancel: Event | None = None) -> Iterator[Piece]:
        began = time.perf_counter()
        return self._pieces(self._inner.stream(request, cancel), request.model, began)

    def _pieces(self, pieces: Iterator[Piece], model: str, began: float) -> Iterator[Piece]:
        first = True
        for piece in pieces:  # closed with this generator, as nobody else holds it
            if first:
                self._metrics.first_piece.observe(time.perf_counter() - began)
                first = False
            if piece.finish and piece.completion_tokens:
                self._metrics.tokens.labels(model).inc(piece.completion_tokens)
                self._metrics.rate.observe(piece.completion_tokens / (time.perf_counter() - began))
            yield piece

    def close(self) -> None:
        self._inner.close()


class _CountedVerdict:
    def __init__(self, inner: VerdictEngine, metrics: Metrics) -> None:
        self._inner = inner
        self._metrics = metrics

    def models(self) -> list[ServedModel]:
        return self._inner.models()

    def judge(self, model: str, shown: Sequence[Recording | Sight], question: str) -> list[Verdict]:
        verdicts = self._inner.judge(model, shown, question)
        for verdict in verdicts:
            passed = "error" if verdict.passed is None else str(verdict.passed).lower()
            self._metrics.verdicts.labels(model, passed).inc()
        return verdicts

    def zone(self, model: str) -> Zone | None:
        return self._inner.zone(model)

    def close(self) -> None:
        self._inner.close()


class _CountedEars:
    def __init__(self, inner: Transcriber, metrics: Metrics) -> None:
        self._inner = inner
        self._metrics = metrics
        self.name = inner.name

    def transcribe(self, wave_L: NDArray[np.float32]) -> Transcript:
        heard = self._inner.transcribe(wave_L)
        self._metrics.speech.inc(heard.seconds)
        return heard

    def close(self) -> None:
        self._inner.close()
