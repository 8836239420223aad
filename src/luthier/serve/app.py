"""The web app: its pages, in one frame. Knows which pages there are; refuses to know what is on them and who serves it.

The server mounts it: `gr.mount_gradio_app(api, build_app(services), "/", **look.mount_options(), ...)`.
"""

from __future__ import annotations

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from luthier.serve.answers import Answers
from luthier.serve.arena import build_arena
from luthier.serve.assistant import build_assistant
from luthier.serve.judgepage import build_judge
from luthier.serve.pagefiles import UploadsOnly
from luthier.serve.runspage import build_runs
from luthier.serve.services import Services

_KEPT_SECONDS = 3600
_THREADS = 32
"""Visitors whose pages are answered at once; the models' own queue is shorter and says so when it is full."""


_CLOSED = ("api", "call", "run", "component_server", "process_recording", "vibe-edit", "undo-vibe-edit", "vibe-code")
"""What Gradio offers to programs beside its pages. An event that is private is unlisted there, and callable all the
same; programs have /v1."""


def guard_pages(api: FastAPI) -> None:
    """Close what Gradio leaves open: its routes for programs, and files that were not uploaded. Before the mount."""

    async def nothing() -> PlainTextResponse:
        return PlainTextResponse("The pages are for people; programs have /v1.", 404)

    for name in _CLOSED:
        for path in (f"/gradio_api/{name}", f"/gradio_api/{name}/{{rest:path}}"):
            api.add_api_route(path, nothing, methods=["GET", "POST"], response_model=None)
    api.add_middleware(UploadsOnly)


def build_app(services: Services) -> gr.Blocks:
    """All pages: Assistant, Side by side, Judge, Runs. One that has no engine says so."""
    answers = Answers()
    with gr.Blocks(title="Luthier", analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)) as app:
        build_assistant(services, answers)
    with app.route("Side by side", "side-by-side"):
        build_arena(services, answers)
    with app.route("Judge", "judge"):
        build_judge(services)
    with app.route("Runs", "runs"):
        build_runs(services)
    app.queue(max_size=4 * _THREADS, default_concurrency_limit=_THREADS)
    app.has_launched = True  # else Gradio does not check which files an event names; see pagefiles.py
    return app
