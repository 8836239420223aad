"""One server: its services opened, its routes put together, and run until it is told to stop.

`create_server` is for those who have services (tests, a notebook); `serve` is the verb. Refuses to know what the
routes and the pages do.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.middleware.cors import CORSMiddleware

from luthier.console import say
from luthier.engines.base import ChatEngine
from luthier.errors import LuthierError, RequestError
from luthier.serve.api import chat_routes
from luthier.serve.api_sound import sound_routes
from luthier.serve.guard import Guard, Rules, check_exposure
from luthier.serve.metrics import Measured, Metrics
from luthier.serve.openai_words import ApiError
from luthier.serve.replies import Desk, install_error_forms
from luthier.serve.reports import report_routes
from luthier.serve.services import Services
from luthier.serve.settings import ServeSettings
from luthier.serve.several import Several
from luthier.serve.waiting import Waiting

_SECONDS_TO_END = 1
"""For what is left of requests when the server stops; a page that is open never ends by itself."""
_MOST_CONNECTIONS = 512
_ALL_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def create_server(services: Services, *, pages: bool = True) -> FastAPI:
    """The API under /v1, /healthz and /metrics, and the web app everywhere else."""
    key = os.environ.get(services.settings.api_key_env, "")
    metrics = Metrics(services.waiting)
    services = metrics.counted(services)
    app = FastAPI(title="Luthier", docs_url=None, redoc_url=None, openapi_url=None)  # the docs' page loads from afar
    install_error_forms(app)
    desk = Desk(services.settings.queue_size)
    app.include_router(chat_routes(services, desk))
    app.include_router(sound_routes(services, desk))

    async def figures() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def nothing(request: Request) -> Response:
        raise ApiError(404, f"This server has no {request.method} {request.url.path[:80]}.", None, "unknown_url")

    app.add_api_route("/metrics", figures, methods=["GET"], response_model=None)
    app.add_api_route("/v1/{rest:path}", nothing, methods=_ALL_METHODS, response_model=None)
    if pages:
        app.include_router(report_routes(services.reports))
        _mount_pages(app, services)
    rules = Rules.of(services.settings, key)
    # Gradio sees this one and leaves its own out, which lets pages of any origin read answers of a named host.
    app.add_middleware(CORSMiddleware, allow_origins=sorted(rules.origins), allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Guard, rules=rules, refused=lambda reason: metrics.turned_away.labels(reason).inc())
    app.add_middleware(Measured, metrics=metrics)
    return app


def open_services(settings: ServeSettings) -> Services:
    """Engines, ears, store and queue. Raises RequestError for what cannot be served; nothing is left open then."""
    from luthier.engines.finding import find_models
    from luthier.serve.describing import describing
    from luthier.serve.speech.choose import open_transcriber
    from luthier.serve.store import Store, default_store
    from luthier.serve.uploads import Uploads

    models = find_models(settings.runs)
    if not models and settings.gguf is None:
        raise RequestError("serve: nothing to serve", "give the folder of a run, or --gguf FILE")
    with ExitStack() as opened:
        engines: list[ChatEngine] = []
        if chats := [model for model in models if model.kind == "chat"]:
            from luthier.engines.torch_chat import TorchChat

            engines.append(TorchChat(chats, threads=settings.threads))
            opened.callback(engines[-1].close)
        if settings.gguf is not None:
            from luthier.engines.llamacpp import LlamaCpp

            engines.append(LlamaCpp(settings.gguf, settings.threads))
            opened.callback(engines[-1].close)
        judge = None
        if judged := [model for model in models if model.kind == "verdict"]:
            from luthier.engines.torch_verdict import TorchVerdict

            judge = TorchVerdict(judged, threads=settings.threads)
            opened.callback(judge.close)
        speech = open_transcriber(settings.speech)
        opened.callback(speech.close)
        store = Store(settings.store or default_store())
        opened.pop_all()
    return Services(
        settings=settings,
        chat=Several(engines) if len(engines) > 1 else (engines[0] if engines else None),
        verdict=judge,
        speech=speech,
        uploads=Uploads(settings.limits),
        waiting=Waiting(settings.queue_size, settings.per_session),
        store=store,
        describes=describing(models),
    )


def serve(settings: ServeSettings, ready: Callable[[str, Services], None], *, pages: bool = True) -> None:
    """Serve until ctrl-C or SIGTERM. `ready` is told the address once requests are taken.

    Raises RequestError, before any model is loaded, for an address that cannot be had and for a server that others
    can reach without a key.
    """
    check_exposure(settings, os.environ.get(settings.api_key_env, ""))
    listening = listen(settings.host, settings.port)
    with listening:
        services = open_services(settings)
        try:
            app = create_server(services, pages=pages)
            config = uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                proxy_headers=False,  # else whoever is on this machine names the address by which events are counted
                server_header=False,
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_graceful_shutdown=_SECONDS_TO_END,
            )
            server = _Server(config)
            server.waiting = services.waiting
            ready(_address(settings.host, listening), services)
            with suppress(KeyboardInterrupt):  # raised again by uvicorn once it has ended in peace
                server.run(sockets=[listening])
            if not server.started:
                raise LuthierError("serve: the server did not start", "see the lines above")
            say("luthier: stopped")
        finally:
            services.close()


class _Server(uvicorn.Server):  # type: ignore[misc]
    """Ends answers that are being written before it ends their connections, so that they can say so."""

    waiting: Waiting

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.to_thread(self.waiting.close)
        # Open pages are cut off next: that is no error, and a traceback of each is no goodbye.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections already: they wait until the models are there.

    Raises RequestError for an address that cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With its protocol named, asyncio sends small packets at once; else each answer waits 40 ms for an ACK.
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise RequestError(f"serve: --host {host}: {error.strerror}", "give an address of this machine") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise RequestError(
            f"serve: {host}:{port} cannot be had ({error.strerror})", "give another --port; 0 takes any free one"
        ) from error
    return listening


def _mount_pages(app: FastAPI, services: Services) -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    import gradio

    from luthier.serve.app import build_app, guard_pages
    from luthier.serve.look import mount_options

    options: dict[str, Any] = {
        "allowed_paths": [],
        "show_error": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "max_file_size": max(services.settings.limits.audio_bytes, services.settings.limits.picture_bytes),
        **mount_options(),
    }
    guard_pages(app)
    with warnings.catch_warnings():  # that it does not render on the server, which nobody asked for
        warnings.filterwarnings("ignore", message="SSR mode", category=UserWarning)
        gradio.mount_gradio_app(app, build_app(services), "/", **options)


def _address(host: str, listening: socket.socket) -> str:
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{listening.getsockname()[1]}"
