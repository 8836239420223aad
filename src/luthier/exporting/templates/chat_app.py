"""Talk to the tuned models: by keyboard or microphone, with pictures where they see; one or two side by side."""

import base64
import binascii
import os
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from files import SETTINGS, threads

if SETTINGS["zero_gpu"]:
    import spaces  # before torch: it stands in for the GPU until one is lent

    on_gpu = spaces.GPU(duration=60)
else:
    on_gpu = lambda function: function

import gradio as gr
from engine import Engine, Refused
from picture import Refused as Unseen
from picture import read_picture
from sound import Refused as Unheard
from sound import read_sound

MOST_CHARS, MOST_TURNS = 8_000, 40
ENGINE = Engine()
SEES = SETTINGS["sees"]
MOST_PICTURES = 4
MODEL = {"concurrency_id": "model", "concurrency_limit": 1}
"""Every event that asks a model shares one place: they take turns."""
PRIVATE = {"api_visibility": "private", "show_progress": "minimal"}
_ears = []


def refusal(words: str) -> gr.Error:
    """A sentence for the visitor, and no traceback for the log."""
    return gr.Error(words, print_exception=False)


def turns_of(history: list[dict]) -> list[dict]:
    """The page's messages as the template takes them."""
    found = []
    for message in history:
        content = message["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        text = "\n".join(part["text"] for part in parts if part.get("text"))
        pictures = [seen(Path(part["file"]["path"]).read_bytes()) for part in parts if part.get("file")]
        parts = [*pictures, {"type": "text", "text": text}] if SETTINGS["content_as_parts"] or pictures else text
        found.append({"role": message["role"], "content": parts})
    return found


def seen(data: bytes) -> dict:
    """A picture as the processor takes it."""
    try:
        return {"type": "image", "image": read_picture(data)}
    except Unseen as error:
        raise refusal(str(error)) from error


def checked(question: str) -> str:
    question = (question or "").strip()
    if not question:
        raise refusal("Write or record a question first.")
    if len(question) > MOST_CHARS:
        raise refusal(f"The question has more than {MOST_CHARS:,} characters.")
    return question


@on_gpu
def stream(name: str, turns: list[dict], temperature: float):
    """The answer so far, again and again."""
    try:
        yield from ENGINE.answer(name, turns, min(max(float(temperature), 0.0), 2.0))
    except Refused as error:
        raise refusal(str(error)) from error


def ask(question: str, model: str = "", temperature: float = 0.0, picture: str = "") -> str:
    """One question, one answer. Without a model's name the first one answers; temperature 0: always the same. A
    picture is its file's bytes in base64."""
    turns = turns_of([{"role": "user", "content": checked(question)}])
    if picture and not SEES:
        raise refusal("These models read no pictures.")
    if picture:
        try:
            data = base64.b64decode(picture, validate=True)
        except (binascii.Error, ValueError) as error:
            raise refusal("The picture is not base64.") from error
        turns = [{"role": "user", "content": [seen(data), {"type": "text", "text": checked(question)}]}]
    said = list(stream(model, turns, temperature))
    return said[-1] if said else ""


def send(question: str, history: list[dict], picture: str | None = None):
    if len(history) >= MOST_TURNS:
        raise refusal("The conversation is long enough. Begin a new one.")
    words, shown = checked(question), sum(bool(part.get("file")) for turn in history for part in turn["content"])
    if picture is None:
        return "", [*history, {"role": "user", "content": words}], None
    if shown >= MOST_PICTURES:
        raise refusal(f"A conversation has at most {MOST_PICTURES} pictures. Begin a new one.")
    seen(Path(picture).read_bytes())
    return "", [*history, {"role": "user", "content": [{"path": picture}, {"type": "text", "text": words}]}], None


def reply(history: list[dict], model: str, temperature: float):
    if not history or history[-1]["role"] != "user":
        return
    for text in stream(model, turns_of(history), temperature):
        yield [*history, {"role": "assistant", "content": text}]


def both(question: str, one: str, other: str, temperature: float):
    turns = turns_of([{"role": "user", "content": checked(question)}])
    first = second = ""
    for first in stream(one, turns, temperature):
        yield first, ""
    for second in stream(other, turns, temperature):
        yield first, second


def listen(path: str | None) -> str:
    """What was said, for the visitor to correct before it is sent."""
    if not path:
        return ""
    try:
        wave = read_sound(path, SETTINGS["seconds"])
    except Unheard as error:
        raise refusal(str(error)) from error
    if not _ears:
        from faster_whisper import WhisperModel

        size = os.environ.get("WHISPER_MODEL", SETTINGS["whisper"])
        try:
            _ears.append(WhisperModel(size, device="cpu", compute_type="int8", cpu_threads=threads()))
        except Exception as error:  # the hub may be out of reach: questions can still be written
            raise refusal("Speech recognition is not available now. Please write the question.") from error
    parts, _ = _ears[0].transcribe(wave, vad_filter=True, condition_on_previous_text=False)
    return " ".join(part.text.strip() for part in parts)


def microphone(target: gr.Textbox) -> None:
    label = "Or say it: at most 60 seconds"
    audio = gr.Audio(sources=["microphone", "upload"], type="filepath", label=label, buttons=[])
    for event in (audio.stop_recording, audio.upload):
        event(listen, audio, target, concurrency_id="ears", concurrency_limit=1, **PRIVATE)


def talk_tab(temperature: gr.Slider) -> None:
    model = gr.Dropdown(ENGINE.models, value=ENGINE.models[0], label="Model")
    chat = gr.Chatbot(label="Conversation", height=420, allow_tags=False, feedback_options=None, buttons=["copy"])
    question = gr.Textbox(SETTINGS["question"], label="Question", lines=1, max_lines=10, max_length=MOST_CHARS)
    picture = gr.Image(
        label="A picture", type="filepath", image_mode=None, sources=["upload"], height=240, visible=SEES
    )
    with gr.Row():
        sending = gr.Button("Send", variant="primary")
        stopping, clearing = gr.Button("Stop"), gr.Button("New conversation")
    microphone(question)
    running = []
    for event in (sending.click, question.submit):
        sent = event(send, [question, chat, picture], [question, chat, picture], **PRIVATE)
        running.append(sent.success(reply, [chat, model, temperature], chat, **MODEL, **PRIVATE))
    stopping.click(None, cancels=running, api_visibility="private")
    clearing.click(lambda: [], None, chat, cancels=running, **PRIVATE)


def side_by_side_tab(temperature: gr.Slider) -> None:
    names = ENGINE.models
    question = gr.Textbox(label="Question for both", lines=1, max_lines=10, max_length=MOST_CHARS)
    asking = gr.Button("Ask both", variant="primary")
    with gr.Row():
        picked = [gr.Dropdown(names, value=names[i], label=f"Model {'AB'[i]}") for i in range(2)]
    with gr.Row():
        said = [gr.Textbox(label=f"Answer {'AB'[i]}", lines=8, interactive=False) for i in range(2)]
    microphone(question)
    for event in (asking.click, question.submit):
        event(both, [question, *picked, temperature], said, **MODEL, **PRIVATE)


def build() -> gr.Blocks:
    with gr.Blocks(title=SETTINGS["title"], analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(SETTINGS["heading"])
        with gr.Accordion("Settings", open=False):
            temperature = gr.Slider(0.0, 1.5, value=0.0, step=0.1, label="Temperature (0: always the likeliest answer)")
        with gr.Tab("Talk"):
            talk_tab(temperature)
        if len(ENGINE.models) > 1:
            with gr.Tab("Side by side"):
                side_by_side_tab(temperature)
        gr.api(ask, api_name="ask", **MODEL)
    return page


if __name__ == "__main__":
    build().queue(max_size=16, default_concurrency_limit=1).launch(
        allowed_paths=[], show_error=False, max_file_size="10mb", footer_links=["api"], ssr_mode=False
    )
