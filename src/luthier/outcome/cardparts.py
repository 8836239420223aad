"""The sections of a model's card: what it is, how it is used and read, its data, scores, parity and limits.

Each is Markdown, or empty where there is nothing to say. Words of others are escaped; places on this machine are left
out. This module refuses to know files and front matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.outcome import cardseen, figures
from luthier.outcome.pagerecords import Json
from luthier.recipe import Recipe, repository_id

_MARKS = re.compile(r"([\\`*_\[\]<>|#!~$])")
_PERCENT = ("accuracy", "borderline.accuracy", "closer", "majority")
_JOBS = {
    (True, False): "that judges recordings: pass or fail, with its probability",
    (False, False): "that answers in chats",
    (False, True): "that answers in chats, of pictures too",
}
"""What a model does, by whether it judges and whether it sees."""
_HASHED = ("template_sha256", "tokenizer_sha256", "adapter_sha256")


@dataclass(frozen=True)
class Told:
    """What a card is made of."""

    name: str
    repo: str
    relation: str
    recipe: Recipe
    earlier: Mapping[str, Recipe]
    """The stages that this one goes on from, the first of them first."""
    run: Json
    stage: Json
    scores: Json
    sources: Json
    package: Json
    exams: str
    notes: tuple[str, ...]

    @property
    def verdict(self) -> bool:
        return not self.recipe.task.of_text

    @property
    def describes(self) -> bool:
        return self.recipe.task.kind == "describe"

    @property
    def sees(self) -> bool:
        """Whether a picture belongs into the example; by the task where the record names no architecture."""
        known = self.stage.get("architecture")
        return known in cardseen.SEEING if known else self.describes

    @property
    def base(self) -> str:
        """The base's name on a hub; empty where it has none (a toy, a local folder)."""
        base = self.recipe.model.base
        known = repository_id(base) or re.fullmatch(r"[\w.-]+", base, re.ASCII) is not None
        return base if known and not Path(base).exists() else ""

    def hubs(self, sources: Sequence[str]) -> list[str]:
        """Hub ids of sources that were read from a hub; where a local file stood in, nobody knows what it held."""
        found = [self.recipe.data.sources[name] for name in sources]
        return list(dict.fromkeys(source.hub for source in found if source.hub and not source.path))

    @property
    def place(self) -> str:
        """What stands for the repository in examples."""
        return self.repo or "FOLDER"


def plain(words: object) -> str:
    """Words of others as one line in which Markdown and HTML mean nothing."""
    return _MARKS.sub(r"\\\1", " ".join(str(words).split())).replace("\\<", "&lt;").replace("\\>", "&gt;")


def what_part(told: Told) -> str:
    """What the model is, on which base, and how it was trained."""
    recipe, model = told.recipe, told.recipe.model
    how = "every weight tuned" if model.tuning == "full" else f"LoRA of rank {model.lora.r}, alpha {model.lora.alpha}"
    kind = {"adapter": "An adapter", "quantized": "A quantised model"}.get(told.relation, "A model")
    job = "that describes pictures in a fixed form" if told.describes else _JOBS[told.verdict, told.sees]
    base = f"`{_code(told.base)}`" if told.base else f"{plain(_local(model.base))}, which is on no hub"
    revision = f" (revision `{_code(model.revision)}`)" if model.revision and told.base else ""
    trained = told.stage.get("trained", told.stage)
    lines = [
        f"{kind} {job}, on {base}{revision}: {how}.",
        f"Trained for {figures.count(trained.get('steps'))} steps ({figures.number(trained.get('epochs'), 2)} epochs) "
        f"of {recipe.train.batch_size} rows at a learning rate of {recipe.train.learning_rate:g}, seed {recipe.seed}.",
    ]
    if told.stage.get("start_from"):
        lines.append(f"It began where the stage {plain(told.stage['start_from'])} of the same run had ended.")
    versions = told.run.get("versions", {})
    names = ("luthier", "torch", "transformers", "peft")
    made = ", ".join(f"{name} {plain(versions[name])}" for name in names if name in versions)
    return "\n".join([*lines, f"Made with {made}." if made else ""])


def use_part(told: Told) -> str:
    """Lines of Python that answer a question with this model, and nothing of ours."""
    if told.verdict or told.relation == "quantized":
        return ""
    model = told.recipe.model
    revision = f', revision="{_code(model.revision)}"' if model.revision and told.base else ""
    adapter = told.relation == "adapter"
    place = f'"{told.place}"'
    base = f'"{_code(told.base or "BASE")}"{revision}' if adapter else place
    if told.sees:
        prompt = told.recipe.task.describe.prompt if told.describes else "..."
        known = str(told.stage.get("architecture", ""))
        lines = cardseen.code(known, base, place, prompt, adapter=adapter, grown=bool(model.added_tokens))
    else:
        lines = _text_code(base, place, adapter=adapter, grown=bool(model.added_tokens))
    return "## How to use it\n\n```python\n" + "\n".join(lines) + "\n```"


def _text_code(base: str, place: str, *, adapter: bool, grown: bool) -> list[str]:
    lines = [
        "from peft import PeftModel" if adapter else "",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f"tokenizer = AutoTokenizer.from_pretrained({place})",
        f"model = AutoModelForCausalLM.from_pretrained({base})",
        "model.resize_token_embeddings(len(tokenizer))" if adapter and grown else "",
        f"model = PeftModel.from_pretrained(model, {place}).eval()" if adapter else "",
        'chat = [{"role": "user", "content": "..."}]',
        'ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
        "answer = model.generate(**ids, max_new_tokens=200)",
        'print(tokenizer.decode(answer[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    return [line for line in lines if line]


def form_part(told: Told) -> str:
    """What a model that describes is asked, and the form of its answers."""
    if not told.describes:
        return ""
    settings = told.recipe.task.describe
    fields = ", ".join(f"{plain(name)} ({kind})" for name, kind in settings.kinds.items())
    lines = [
        f"It is asked: “{plain(settings.prompt)}”",
        f"It answers in this form: “{plain(settings.template)}”",
        f"Its fields: {fields}. An answer in any other form counts as wrong in every field.",
        "`luthier predict RUN picture.jpg` asks so, and reads the fields.",
    ]
    return "## How it describes\n\n" + "\n".join(f"- {line}" for line in lines)


def reading_part(told: Told) -> str:
    """How a verdict is asked for and read."""
    if not told.verdict:
        return ""
    task, package = told.recipe.task, told.package
    answers, scale = package.get("answers", {}), task.scale
    asked = [
        f"The instruction, in front of every question: “{plain(task.instruction)}”",
        f"Grades run from {scale.minimum:g} to {scale.maximum:g} by {scale.step:g}; {scale.pass_mark:g} passes.",
        f"p_pass is the probability of the event *{plain(task.event)}* "
        "(panel: the recorded grade passes; rater: a rater drawn by lot passes it; latent: the true ability does).",
    ]
    if task.readout == "tokens" and answers:
        asked.append(
            f"It is a softmax over two tokens at the last position of the prompt: {answers.get('pass')} for pass, "
            f"{answers.get('fail')} for fail; above 0.5 it passes."
        )
    else:
        asked.append(f"It is read by a head of its own ({plain(task.readout)}), which lies beside the adapter.")
    calibration = told.stage.get("calibration", {})
    if calibration.get("accepted"):
        asked.append(
            f"Divide the log-odds by the temperature {figures.number(calibration.get('temperature'))} (fitted on "
            f"{calibration.get('n')} held-back answers) for calibrated probabilities."
        )
    elif calibration:
        asked.append(
            f"A temperature was tried on {calibration.get('n')} answers and made nothing better: use it as it is."
        )
    asked.append("`luthier predict` and `luthier export --to space` do all this; verdict.json has what they need.")
    return "## How a verdict is read\n\n" + "\n".join(f"- {line}" for line in asked)


def data_part(told: Told) -> str:
    """Sources of this stage with licence, and what became of their records."""
    data = told.recipe.data
    rows = [
        "| Source | For | From | Licence | Records | Kept | Merged | Dropped |",
        "|---|---|---|---|---|---|---|---|",
    ]
    use = dict.fromkeys(data.test, "test")
    for stage, recipe in told.earlier.items():
        use |= dict.fromkeys(recipe.data.train, f"training, in stage {stage}")
    use |= dict.fromkeys(data.train, "training")
    for name, what in use.items():
        source, counted = data.sources[name], told.sources.get(name, {})
        dropped = counted.get("dropped", {})
        local = Path(source.path).name if source.path else ""
        cells = [
            name,
            what,
            (source.hub and f"{source.hub}@{source.revision or 'main'}") if not local else f"a local file ({local})",
            counted.get("license") or source.license or "unknown",
            figures.count(counted.get("in")),
            figures.count(counted.get("kept")),
            figures.count(counted.get("merged")),
            ", ".join(f"{reason} {count}" for reason, count in dropped.items()) or "none",
        ]
        rows.append(f"| {' | '.join(plain(cell) for cell in cells)} |")
    dropped_late = told.stage.get("dropped_at_encoding", {})
    late = ", ".join(f"{plain(reason)} {count}" for reason, count in dropped_late.items())
    more = [f"Left out when rows became tokens: {late}."] if late else []
    named = [plain(data.sources[name].attribution) for name in use if data.sources[name].attribution]
    more += [f"To be named: {'; '.join(dict.fromkeys(named))}."] if named else []
    return "\n\n".join(["## Data", "\n".join(rows), *more])


def headline(scores: Json) -> list[tuple[str, Json]]:
    """Scores with a value of their own, as (name, figure); tables by grade or source are left out."""
    found = [(name, figures.score(value)) for name, value in scores.items() if isinstance(value, dict)]
    return [(name, figure) for name, figure in found if figure]


def scores_part(told: Told) -> str:
    """Held-out scores with their intervals."""
    described = cardseen.score_table(told.scores, told.recipe.task.describe) if told.describes else ()
    rows = ["| Score | Value | 95% interval | n |", "|---|---|---|---|"]
    for name, figure in headline(told.scores):
        if described and not cardseen.of_losses(name):
            continue
        show: Callable[[Any], str] = figures.percent if name in _PERCENT else _four
        span = "–" if figure["low"] is None else f"{show(figure['low'])} to {show(figure['high'])}"
        rows.append(f"| {plain(name)} | {show(figure['value'])} | {span} | {figures.count(figure['n'])} |")
    if len(rows) == 2:
        return ""
    tested = ", ".join(plain(name) for name in told.recipe.data.test) or "rows held back for validation"
    group = " Intervals are bootstrapped over speakers." if told.verdict else ""
    return "\n\n".join([f"## Scores\n\nOn {tested}, never trained on.{group}", *described, "\n".join(rows)])


def receipt_part(receipt: Mapping[str, Any] | None) -> str:
    """The parity receipt: the same prompts through every form of the model."""
    if not receipt:
        return ""
    rows = ["| Form | Asked | Differ from the trainer's | Largest gap |", "|---|---|---|---|"]
    for name, form in receipt.get("forms", {}).items():
        if not form.get("ran"):
            rows.append(f"| {plain(name)} | not run: {plain(form.get('reason', 'no reason given'))} | – | – |")
            continue
        count = form.get("prompts", form.get("recordings", len(form.get("p_pass", []))))
        differ = form.get("prompts_that_differ", form.get("recordings_that_differ"))
        gap = form.get("max_logit_gap", form.get("max_p_gap"))
        shown = f"{gap:.3g}" if figures.finite(gap) else "–"
        rows.append(f"| {plain(name)} | {figures.count(count)} | {figures.count(differ)} | {shown} |")
    read = [form["tokenizer"] for form in receipt.get("forms", {}).values() if "tokenizer" in form]
    words = [
        f"Transformers loads its tokenizer as {plain(one['loads_as'])}, which reads {one['read_otherwise']} of "
        f"{one['texts']} texts otherwise than in training; `PreTrainedTokenizerFast.from_pretrained` reads them alike."
        for one in read
        if one["read_otherwise"]
    ]
    kept = [f"{key.removesuffix('_sha256')} sha256 `{_code(str(receipt[key]))}`" for key in _HASHED if receipt.get(key)]
    return "\n\n".join(["## Parity of its forms", "\n".join(rows), *words, ", ".join(kept)])


def limits_part(told: Told) -> str:
    """What a user must not expect of it."""
    lines = []
    if not told.recipe.publish.license:
        lines.append("No licence was given for it: ask before you use it, and mind the licences of its base and data.")
    if told.recipe.model.base.startswith("toy:"):
        lines.append("Its base is a toy of random weights: it proves a path from end to end and knows nothing.")
    deaf = told.stage.get("checks", {}).get("deafness", {}).get("message")
    if deaf:
        lines.append(f"Deafness test (recordings swapped among the answers): {plain(deaf)}")
    if told.verdict:
        lines.append("It judges answers like those it was trained on. A grade that matters to somebody needs a person.")
    else:
        lines.append("It may say what is false with confidence, and repeat what is wrong in its data.")
    unstopped = told.stage.get("unstopped")
    if unstopped:
        lines.append(f"{figures.count(unstopped)} answers it learned from ended without a stop token.")
    lines += [f"A record could not be read: {plain(note)}" for note in told.notes]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _four(value: Any) -> str:
    return figures.number(value, 4)


def _local(base: str) -> str:
    """A base's name without its place on this machine."""
    return Path(base).name if Path(base).is_absolute() or Path(base).exists() else base


def _code(words: str) -> str:
    """A name within code: whatever is no part of the name of a repository, revision or digest is left out."""
    return re.sub(r"[^\w./:@+-]", "", words)
