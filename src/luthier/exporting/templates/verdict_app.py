"""Judge a spoken answer: record or upload it, and see whether it passes, and how sure the model is."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from files import SETTINGS

if SETTINGS["zero_gpu"]:
    import spaces  # before torch: it stands in for the GPU until one is lent

    on_gpu = spaces.GPU(duration=60)
else:
    on_gpu = lambda function: function

import gradio as gr
from engine import Engine, Refused
from sound import Refused as Unheard
from sound import read_sound

MOST_CHARS = 4_000
ENGINE = Engine()


def refusal(words: str) -> gr.Error:
    """A sentence for the visitor, and no traceback for the log."""
    return gr.Error(words, print_exception=False)


@on_gpu
def judge(path: str, question: str, model: str) -> dict:
    """The verdict on one recording: p_pass (of `event`), calibrated too, and whether it passes."""
    if not path:
        raise refusal("Record or upload an answer first.")
    if len(question or "") > MOST_CHARS:
        raise refusal(f"The question has more than {MOST_CHARS:,} characters.")
    known = ENGINE.judges.get(model) or ENGINE.judges[ENGINE.models[0]]
    least, most = known["seconds"]
    try:
        wave = read_sound(path, min(most, SETTINGS["seconds"]), least, known["silence_peak"])
        return {**ENGINE.judge(model, wave, (question or "").strip()), "model": known["name"]}
    except (Refused, Unheard) as error:
        raise refusal(str(error)) from error


def shown(path: str, question: str, model: str):
    found = judge(path, question, model)
    return scale(found), found


def scale(found: dict) -> str:
    """The probability on a line from fail to pass. Only numbers are written into it."""
    p, zone = found["p_pass_calibrated"], ENGINE.judges[found["model"]]["zone"]
    verdict = "Pass" if found["passed"] else "Fail"
    band, words = "", ""
    if zone:
        low, high = zone["low"], zone["high"]
        band = (
            f"<div style='position:absolute;left:{low:.1%};width:{high - low:.1%};top:0;bottom:0;"
            "background:repeating-linear-gradient(45deg,#8886,#8886 4px,transparent 4px,transparent 8px)'></div>"
        )
        if low <= p <= high:
            words = ", in the zone of borderline answers (striped)"
    return (
        f"<p><strong style='font-size:1.4em'>{verdict}</strong>. Probability of a pass: {p:.0%}{words}.</p>"
        f"<div role='img' aria-label='Probability of a pass: {p:.0%}' style='position:relative;height:28px;"
        f"border:1px solid #888;border-radius:6px;overflow:hidden'>{band}"
        "<div style='position:absolute;left:50%;top:0;bottom:0;border-left:1px dashed #888'></div>"
        f"<div style='position:absolute;left:calc({p:.1%} - 3px);top:0;bottom:0;width:6px;"
        "background:#3b5bdb'></div></div>"
        "<div style='display:flex;justify-content:space-between'><span>Fail</span><span>Pass</span></div>"
    )


def build() -> gr.Blocks:
    with gr.Blocks(title=SETTINGS["title"], analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(SETTINGS["heading"])
        model = gr.Dropdown(ENGINE.models, value=ENGINE.models[0], label="Judge", visible=len(ENGINE.models) > 1)
        question = gr.Textbox(label="The question that was answered", lines=2, max_length=MOST_CHARS)
        audio = gr.Audio(
            sources=["microphone", "upload"], type="filepath", label="The answer: at most 60 seconds", buttons=[]
        )
        judging = gr.Button("Judge", variant="primary")
        verdict = gr.HTML(label="Verdict")
        with gr.Accordion("All figures", open=False):
            figures = gr.JSON(label="Figures")
        judging.click(
            shown, [audio, question, model], [verdict, figures], api_name="judge", concurrency_id="model",
            concurrency_limit=1,
        )  # fmt: skip
    return page


if __name__ == "__main__":
    build().queue(max_size=16, default_concurrency_limit=1).launch(
        allowed_paths=[], show_error=False, max_file_size="10mb", footer_links=["api"], ssr_mode=False
    )
