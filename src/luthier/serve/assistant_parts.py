"""What is on the Assistant page. Knows components and their words; refuses to know what any of them does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from luthier.engines.base import Sampling, ServedModel
from luthier.errors import RequestError
from luthier.recipe_describe import DescribeSettings
from luthier.serve import look, talk
from luthier.serve.settings import Limits
from luthier.serve.store import Conversation

Given = dict[Any, Any]
"""Values by component, as Gradio hands over a set of inputs."""
_EDIT_JS = """element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-turn]');
  if (button) trigger('select', {turn: Number(button.dataset.turn)});
});"""


@dataclass(frozen=True)
class Panel:
    """The panel beside the conversation."""

    model: gr.Dropdown
    system: gr.Textbox
    temperature: gr.Slider
    top_p: gr.Slider
    most: gr.Slider
    seed: gr.Textbox

    def sampling(self, given: Given) -> Sampling:
        """How the next answer is to be written. Raises RequestError for a seed that is no number."""
        seed = look.typed(given[self.seed])
        if seed and not (seed.isascii() and seed.isdigit() and len(seed) < 19):
            raise RequestError(f"the seed {seed[:20]!r} is not a whole number from 0 on", "mend it, or leave it empty")
        return Sampling(
            max_new_tokens=int(given[self.most]),
            temperature=float(given[self.temperature]),
            top_p=float(given[self.top_p]),
            seed=int(seed) if seed else None,
        )

    def updates(self, found: Conversation) -> Given:
        """What the panel shows for a conversation that is opened."""
        return {
            self.model: found.model,
            self.system: talk.system_of(found.messages),
            self.temperature: found.sampling.temperature,
            self.top_p: found.sampling.top_p,
            self.most: found.sampling.max_new_tokens,
            self.seed: "" if found.sampling.seed is None else str(found.sampling.seed),
        }

    def all(self) -> set[Any]:
        return {self.model, self.system, self.temperature, self.top_p, self.most, self.seed}


class Parts:
    """The components, once `lay_out` was called inside `gr.Blocks`."""

    def __init__(
        self, limits: Limits, models: Sequence[ServedModel], describes: Mapping[str, DescribeSettings]
    ) -> None:
        self.limits = limits
        self.models = {model.id: model for model in models}
        self.describes = describes

    def prompt_of(self, model: str) -> str:
        """The question that this model was tuned on, where it was one; else ""."""
        return self.describes[model].prompt if model in self.describes else ""

    def lay_out(self) -> None:
        """Settings first, so that they come first for a keyboard and above the conversation on a phone."""
        self.visitor = look.visitor()
        self.talk_id, self.editing = gr.State(""), gr.State(-1)
        self.heard, self.picture = gr.State(None), gr.State("")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                self._lay_out_settings()
            with gr.Column(scale=3, min_width=320, elem_id="main"):
                self.turns = gr.HTML("", elem_id="transcript", js_on_load=_EDIT_JS, autoscroll=True)
                self.line = gr.HTML(look.said(""))
                self.heard_line = gr.HTML("", visible=False)
                first = self.prompt_of(next(iter(self.models)))
                self.box = gr.Textbox(first, label="Your question", lines=1, max_lines=10, elem_id="question")
                self.consent = gr.Checkbox(
                    False, label="Keep my recording and the mended text as a training row", visible=False
                )
                with gr.Row(elem_classes="bar"):
                    self.send = gr.Button("Send", variant="primary", elem_id="send")
                    self.stop = gr.Button("Stop", variant="stop", elem_id="stop", visible=False)
                    self.retry = gr.Button("Retry", elem_id="retry", visible=False)
                    self.leave = gr.Button("Leave the question as it was", visible=False)
                    self.add = gr.UploadButton(
                        "Add a picture", file_types=["image"], type="filepath", elem_id="picture"
                    )
                    self.drop = gr.Button("Remove the picture", visible=False)
                    self.reads = gr.HTML("")
                self.preview = gr.HTML("", visible=False)
                self.mic = gr.Audio(
                    sources=["microphone"], type="filepath", label="Speak your question", elem_id="mic", buttons=[]
                )

    def _lay_out_settings(self) -> None:
        model = gr.Dropdown(list(self.models), label="Model", filterable=False, elem_id="model")
        self.new = gr.Button("New chat", elem_id="new")
        with gr.Accordion("Settings", open=False):
            panel = (
                gr.Textbox(label="Instructions (system prompt)", lines=2, max_lines=8),
                gr.Slider(0, 2, Sampling.temperature, step=0.05, label="Temperature", info="0: always the likeliest"),
                gr.Slider(0.05, 1, Sampling.top_p, step=0.05, label="Top p"),
                gr.Slider(
                    1, self.limits.max_new_tokens, Sampling.max_new_tokens, step=1, label="Longest answer in tokens"
                ),
                gr.Textbox("", label="Seed", info="empty: another answer each time", max_length=18),
            )
        self.settings = Panel(model, *panel)
        with gr.Accordion("Your chats", open=False):
            self.talks = gr.Dropdown([], label="Open another chat", filterable=False)
            with gr.Row(elem_classes="bar"):
                self.export = gr.Button("Export this chat", elem_id="export")
                self.forget = gr.Button("Delete this chat")
            self.links = gr.HTML("")
            gr.HTML(
                '<div class="quiet"><p>Chats are kept on this server, and found again by this browser alone.</p></div>'
            )
