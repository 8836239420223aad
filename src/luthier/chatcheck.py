"""`luthier check` for chats and exams: the table of the recipe, its rows in the base's chat template, the cost."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import astuple, replace
from itertools import islice
from pathlib import Path
from typing import Any

from luthier.checked import Checked
from luthier.console import progress, table
from luthier.data.building.build import Built, build
from luthier.data.building.stagecache import default_cache
from luthier.data.readers import open_source
from luthier.data.table import iter_rows
from luthier.errors import LuthierError
from luthier.examcheck import check_exams, check_overlap
from luthier.recipe import Recipe
from luthier.recipefile import stage_recipes
from luthier.stages.sources import table_request
from luthier.train.plan import make_plan

EXAMINED = 2000
"""Rows that go through the template: the first of a shuffled table, and so a random sample of it."""
MENDS = {
    "template_refuses": "let data.steps bring the rows into the order that the template asks for (roles_alternate)",
    "mask_unproved": "choose a base whose template marks what is generated, or that renders turns one after another",
    "double_bos": "this is a fault of the base's template and tokenizer together: choose another revision",
    "text_lost": "the template leaves words out: drop such turns in data.steps, or choose another base",
    "tools_lost": "the template has no place for tools: drop these rows in data.steps, or choose another base",
    "media_placeholders": "the base does not take these media, or the rows name more of them than they hold",
    "media_in_text_chat": "choose a base that sees or hears, or leave the rows with media out",
    "reserved_token": "a text holds a token of the template: drop these rows with a regex step",
    "nothing_supervised": "rows without an answer teach nothing: add require_messages to data.steps",
}
_UNREAD = "the base does not read such a medium: leave these rows out, or mend their media"


def check_chat(recipe: Recipe, found: Checked) -> None:
    """Sources, licences, ledger, splits, mixture, steps, and what the chat template makes of the rows."""
    from luthier.stages.preflight import look_ahead, look_at_splits

    stages = stage_recipes(recipe)
    try:
        request = table_request(stages)
    except LuthierError as error:
        found.problems.append(str(error))
        return
    for source, _ in request.sources:
        try:
            open_source(source)
        except LuthierError as error:
            found.problems.append(f"data.sources.{source.name}: {error}")
    stage = next(iter(stages.values()))
    tokenizer = _tokenizer(stage)
    exams = check_exams(stages, tokenizer, found)
    whole = tokenizer is not None and not found.problems
    ahead = look_ahead(stages)
    found.problems += ahead
    if not whole:
        return
    with tempfile.TemporaryDirectory(prefix="luthier-check-") as folder:
        try:
            built = build(request, Path(folder) / "table", default_cache())
        except LuthierError as error:
            found.problems.append(str(error))
            return
        _table(built, found)
        for name, one in stages.items():
            quotas = {source["name"]: source["quota"] for source in built.manifest["mix"]["sources"]}
            plan = make_plan(sum(quotas[source] for source in one.data.train), one.train)
            found.figures.setdefault("steps", {})[name] = plan.steps
            found.sections.append(
                f"stage {name}: {plan.steps} steps of {one.train.batch_size} ({plan.steps_per_epoch:,} an epoch, "
                f"{plan.warmup_steps} of warm-up)"
            )
        _template(stage, tokenizer, built, found)
        for name, one in {} if ahead else stages.items():
            _parts(name, one, _tokenizer(one), found)
        check_overlap(exams, built.folder, found)
        found.problems += look_at_splits(stages, built.folder)
        for name, one in ({} if ahead else stages).items():
            _cost(name, one, _tokenizer(one), built, found)


def _tokenizer(stage: Recipe) -> Any:
    """As the stage reads with it; None where there is none: `look_ahead` says why."""
    from luthier.models.chat import load_tokenizer
    from luthier.models.tokens import name_text_tokens

    try:
        found = load_tokenizer(stage.model.base, stage.model.revision)
    except LuthierError:
        return None
    name_text_tokens(found, stage.model.added_tokens)
    return found


def _table(built: Built, found: Checked) -> None:
    sources = built.manifest["sources"]
    lines = [
        [name, about["split"], about["format"], about["sniffed"], about["license"] or "not stated"]
        for name, about in sources.items()
    ]
    found.sections.append("sources\n" + table(["source", "for", "format", "found", "licence"], lines))
    found.sections.append("ledger\n" + built.ledger.table())
    splits = ", ".join(f"{count:,} {name}" for name, count in built.manifest["splits"].items())
    notes = built.manifest["duplicates"]["found"]["notes"]
    found.sections.append("\n".join([f"splits: {splits}", *notes]))
    if built.mixture:
        found.sections.append("mixture of an epoch\n" + built.mixture.plan.table())
    found.figures["rows"] = {name: about["kept"] for name, about in sources.items()}
    found.figures["splits"] = built.manifest["splits"]
    found.figures["ledger"] = {name: counts.to_json() for name, counts in built.ledger.counts.items()}


def _template(stage: Recipe, tokenizer: Any, built: Built, found: Checked) -> None:
    from luthier.models.senses.spelling import Speller
    from luthier.models.template_doctor import examine, paint
    from luthier.stages.chat_cost import supply_of_table

    rows = (item.row for item in iter_rows(built.folder, {"split": "train"}))
    total = min(EXAMINED, built.manifest["splits"].get("train", 0))
    try:
        supply = supply_of_table(stage, tokenizer, built.folder)
        speller = Speller(supply.senses, supply.source) if supply else None
        bar = progress(rows, "rendering", total)
        seen = examine(bar, tokenizer, stage.model.max_tokens, sample=EXAMINED, speller=speller)
    except LuthierError as error:
        found.problems.append(str(error))
        return
    lines = seen.lines()
    if seen.over_maximum and stage.train.truncation == "reject":
        lines.append(
            "  no run learns them: raise model.max_tokens, or cut them (texts: passage_words of the source;\n"
            "  chats: train.truncation: whole_turns)"
        )
    colour = sys.stderr.isatty()
    shown = [paint(rendered, colour) for rendered in seen.shown]
    head = "what is learned of three rows (in green, or between ⟦ and ⟧)"
    found.sections.append("\n".join([f"chat template, {seen.rows:,} rows of the training split", *lines]))
    found.sections.append("\n\n".join([head, *shown]))
    found.figures["template"] = seen.figures
    for reason, trouble in seen.troubles.items():
        found.problems.append(
            f"chat template: {reason} in {trouble.rows:,} of {seen.rows:,} rows; the first: {trouble.first}\n"
            f"  mend: {MENDS.get(reason, _UNREAD)}"
        )


def _parts(name: str, stage: Recipe, tokenizer: Any, found: Checked) -> None:
    """What of a base that sees or hears is frozen, and of which media the vectors may be kept."""
    from luthier.data.augment import changes
    from luthier.models import adapters, parts
    from luthier.models.senses import store
    from luthier.models.text_base import weightless_base
    from luthier.models.tokens import add_text_tokens

    base = weightless_base(stage.model, tokenizer)
    if base.senses is None:
        return
    tokens = add_text_tokens(base, stage.model.added_tokens, stage.seed)
    tuned = adapters.attach(base, replace(stage.model, quantization=""), tokens, stage.seed)
    lines = []
    for kind in base.senses.kinds:
        moves = store.tuned(base.senses, base.model, kind)
        why = "no, as what encodes them is tuned" if moves else "yes, as what encodes them is frozen"
        if not moves and changes(kind, stage.data.augment):
            why = "for rows that are only looked at: those trained on are augmented"
        if stage.train.feature_store == "off":
            why = "no, as train.feature_store is off"
        lines.append(f"vectors of {kind} can be kept: {why}")
    told = parts.told(tuned, parts.Parts(base.family, base.senses))
    found.sections.append("\n".join([f"stage {name}: parts of {stage.model.base}", told, *lines]))


def _cost(name: str, stage: Recipe, tokenizer: Any, built: Built, found: Checked) -> None:
    """Memory and time of a stage on this machine, from a sample of its rows."""
    from luthier.runtime.devices import Devices
    from luthier.runtime.memory_estimate import fits
    from luthier.stages.chat_cost import feed_load, memory_of, sample_feed, supply_of_table, time_of

    rows = (
        item for item in iter_rows(built.folder, {"split": "train"}) if item.row.provenance.source in stage.data.train
    )
    feed = sample_feed(stage, tokenizer, islice(rows, EXAMINED), supply_of_table(stage, tokenizer, built.folder))
    if feed is None:  # the template section has said why
        return
    load = feed_load(feed, feed.steps_per_epoch)
    steps = found.figures["steps"][name]
    tokens = load.tokens_in(steps * stage.train.batch_size)
    found.figures.setdefault("tokens", {})[name] = tokens
    try:
        devices = Devices(stage.model.dtype)
        memory = memory_of(stage, tokenizer, feed, load, devices.precision)
    except RuntimeError as error:  # an architecture that reads values on its way, which a walk without them has not
        found.sections.append(f"stage {name}: its memory is not foretold: {str(error).strip().splitlines()[0][:200]}")
        return
    except LuthierError as error:
        found.problems.append(f"stage {name}: {error}")
        return
    found.figures.setdefault("memory", {})[name] = memory.to_json()
    found.sections.append(
        f"stage {name}: about {tokens:,} tokens, {load.target_tokens / load.tokens:.0%} of them learned, in forward "
        f"passes of {load.tokens // len(load.passes):,} (largest of {len(load.passes):,} looked at: "
        f"{load.largest_tokens:,})\n{memory.table()}"
    )
    found.problems += [f"stage {name}: {line}" for line in fits(memory, stage, devices.device)]
    if found.problems or not (stage.model.base.startswith("toy:") or Path(stage.model.base).is_dir()):
        return
    try:
        estimate = time_of(stage, feed, load, tokens, devices)
    except LuthierError as error:
        found.problems.append(f"stage {name}: {error}")
        return
    found.figures.setdefault("seconds", {})[name] = [round(value, 2) for value in astuple(estimate)]
    found.sections.append(f"stage {name}: {estimate.line()} of training on this machine, from three steps tried")
