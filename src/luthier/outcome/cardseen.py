"""The sections of a card that only models which see have: how a picture is put to them, and how they describe.

Knows which class of transformers loads an architecture; refuses to know the other sections.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from luthier.outcome import describepage, figures
from luthier.outcome.pagerecords import Json
from luthier.recipe_describe import DescribeSettings

OURS = "phi3_v"
"""The architecture whose classes are luthier's: whoever loads it says so first."""
SEEING = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm", "llava_onevision", "gemma3", OURS)
"""By model_type; what `AutoModelForImageTextToText` loads. Phi-4-multimodal is not among them: transformers' own eyes
of it look one way where ours look both."""
_LOSSES = ("loss", "perplexity", "bits_per_byte")
_SHARES = ("unparseable", "accuracy", "within_10", "within_25")


def code(architecture: str, base: str, place: str, prompt: str, *, adapter: bool, grown: bool) -> list[str]:
    """Lines of Python that ask about a picture. `base` and `place` are arguments as they stand in code; `grown`: the
    embedding has more rows than the base's."""
    ours = architecture == OURS
    maker = "AutoModelForCausalLM" if ours else "AutoModelForImageTextToText"
    loaded = f"{maker}, AutoProcessor" + (", AutoTokenizer" if adapter else "")
    asked = json.dumps(f"<|image_1|>{prompt}" if ours else prompt, ensure_ascii=False)
    lines = [
        "from PIL import Image, ImageOps",
        f"from transformers import {loaded}",
        "import luthier.models.phi3_vision  # tells transformers of this architecture" if ours else "",
        "from peft import PeftModel" if adapter else "",
        f"processor = AutoProcessor.from_pretrained({base})",
        f"processor.tokenizer = AutoTokenizer.from_pretrained({place})" if adapter else "",
        "processor.chat_template = processor.tokenizer.chat_template" if adapter else "",
        f"model = {maker}.from_pretrained({base})",
        "model.resize_token_embeddings(len(processor.tokenizer))" if adapter and grown else "",
        f"model = PeftModel.from_pretrained(model, {place})" if adapter else "",
        "model = model.eval()",
        'picture = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGB")',
    ]
    if ours:
        lines += [
            f'chat = [{{"role": "user", "content": {asked}}}]',
            "text = processor.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)",
            "asked = processor(text, picture)",
        ]
    else:
        lines += [
            f'parts = [{{"type": "image", "image": picture}}, {{"type": "text", "text": {asked}}}]',
            'chat = [{"role": "user", "content": parts}]',
            "asked = processor.apply_chat_template(",
            '    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    lines += [
        "answer = model.generate(**asked, max_new_tokens=200, do_sample=False)",
        'print(processor.tokenizer.decode(answer[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    return [line for line in lines if line]


def of_losses(name: str) -> bool:
    """Whether a score is of losses: all others are in the table of descriptions."""
    return name.rpartition(".")[2] in _LOSSES


def score_table(scores: Json, settings: DescribeSettings) -> Sequence[str]:
    """Scores beside the best constant, field by field; none where nothing was described."""
    rows = describepage.score_rows(scores, settings.kinds)
    if not rows:
        return ()
    found = [
        "| Field | Score | Better is | Before training | This model | Best constant | Over the constant |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = row["score"] in _SHARES
        cells = [_shown(row[key], share) for key in ("before", "after", "constant", "over")]
        found.append(f"| {row['field'] or 'all'} | {_bare(row['name'])} | {row['better']} | {' | '.join(cells)} |")
    n = figures.count(rows[0]["after"]["n"])
    said = (
        f"Of {n} held-out pictures, with 95% intervals over products. A constant says the same of every picture and is "
        "chosen on the training rows for the very score it stands at. Over it: above 0 where the model is better."
    )
    return ("\n".join(found), said)


def _shown(figure: Json, share: bool) -> str:
    if not figure:
        return "–"
    show: Callable[[object], str] = figures.percent if share else figures.number
    span = "" if figure["low"] is None else f" [{show(figure['low'])}, {show(figure['high'])}]"
    return f"{show(figure['value'])}{span}"


def _bare(name: str) -> str:
    """A score's name without bars, which would end its cell."""
    return name.replace("|ln(answer / truth)|", "absolute ln(answer / truth)")
