"""The page Runs: what ran on this machine, the curves of what runs now, reports, and two runs held side by side.

Looks and never touches: a page changes no run. All comes from the disk each time, so a reload loses nothing. Clients
name runs by keys of the server's own list, never by paths.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Callable
from html import escape
from pathlib import Path
from threading import Lock
from typing import Any

import gradio as gr

from luthier.errors import RequestError
from luthier.outcome import figures
from luthier.outcome.compare import Scored, compare
from luthier.outcome.comparepage import write_comparison
from luthier.outcome.comparing.pairs import Drawing
from luthier.outcome.comparing.probe import default_probe, recorded_losses
from luthier.outcome.comparing.runrecords import open_runs
from luthier.outcome.livefigures import LiveFigures
from luthier.serve import look
from luthier.serve.runlist import ListedRun, find_runs
from luthier.serve.services import Services

_GLANCE_SECONDS = 2.0
_MOST_CURVES = 16
"""Stages whose curves are kept in memory; another one's are read from the disk again."""
Given = dict[Any, Any]


def build_runs(services: Services) -> None:
    """The page, inside the `gr.Blocks` that is being built."""
    look.page_head("Runs", "What was trained on this machine, and what is being trained now.")
    page = _Page(services)
    page.lay_out()
    page.wire()


class _Page:
    """Components, and the functions behind them."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.curves = _Curves()

    def lay_out(self) -> None:
        self.visitor = look.visitor()
        self.chosen = gr.BrowserState("", storage_key="luthier-run", secret="luthier")
        self.clock = gr.Timer(_GLANCE_SECONDS, active=False)
        self.table = gr.HTML("", elem_id="runs")
        with gr.Row(elem_classes="bar"):
            self.again = gr.Button("Look again", elem_id="again")
        with gr.Column(elem_id="main"):
            self.pick = gr.Dropdown([], label="Show this run", filterable=False, elem_id="pick")
            self.line = gr.HTML(look.said(""))
            self.about = gr.HTML("", elem_id="about")
            self.drawn = gr.HTML("", elem_id="curves")
        gr.HTML('<div class="pagehead"><h2>Compare two</h2></div>')
        with gr.Row():
            self.left = gr.Dropdown([], label="One finished run", filterable=False, min_width=280)
            self.right = gr.Dropdown([], label="The other finished run", filterable=False, min_width=280)
        with gr.Row(elem_classes="bar"):
            self.compare = gr.Button("Compare", variant="primary", elem_id="compare")
        self.compared_line = gr.HTML(look.said(""), elem_id="compared")

    def wire(self) -> None:
        """Which function each button calls. All are private: programs have the records themselves."""
        shown = [self.visitor, self.chosen, self.table, self.pick, self.left, self.right]
        shown += [self.line, self.about, self.drawn, self.clock]

        def press(event: Any, function: Callable[..., Any], inputs: Any, outputs: Any, line: Any = self.line) -> None:
            event(look.guarded(function, line), inputs, outputs, **look.PRIVATE)

        given = {self.visitor, self.chosen, self.left, self.right}
        look.on_load(look.guarded(self.opened, self.line), given, shown)
        press(self.again.click, self.opened, given, shown)
        press(self.pick.input, self.picked, {self.pick}, shown)
        press(self.clock.tick, self.ticked, {self.chosen}, shown)
        pair = {self.visitor, self.left, self.right}
        press(self.compare.click, self.compared, pair, [self.compared_line], self.compared_line)

    def runs(self) -> list[ListedRun]:
        settings = self.services.settings
        return find_runs(settings.runs, settings.watched)

    def opened(self, given: Given) -> Given:
        """The page is opened or loaded anew: the list, and the run that was looked at, else one that runs."""
        runs = self.runs()
        keys = [run.key for run in runs]
        going = next((run.key for run in runs if run.status == "running"), keys[0] if keys else "")
        chosen = given[self.chosen] if given[self.chosen] in keys else going
        done = [(_name(run, runs), run.key) for run in runs if run.finished]
        ends = [key for _, key in done]
        left, right = (given[side] if given[side] in ends else None for side in (self.left, self.right))
        told = look.said("") if runs else look.said("No runs here. Start `luthier serve` with runs, or with --watch.")
        found = {
            self.visitor: look.token_of(given[self.visitor]),
            self.chosen: chosen,
            self.table: _table(runs) if runs else "",
            self.pick: gr.Dropdown([(_name(run, runs), run.key) for run in runs], value=chosen or None),
            self.left: gr.Dropdown(done, value=left or (ends[0] if ends else None)),
            self.right: gr.Dropdown(done, value=right or (ends[1] if len(ends) > 1 else None)),
            self.line: told,
        }
        run = next((run for run in runs if run.key == chosen), None)
        return found | (self._told(run) if run else {})

    def picked(self, given: Given) -> Given:
        """Another run is looked at."""
        run = self._called(given[self.pick])
        return {self.chosen: run.key, self.line: look.said(""), **self._told(run)}

    def ticked(self, given: Given) -> Given:
        """What a running run has added; its list too once it has ended."""
        run = self._called(given[self.chosen])
        if run.status != "running":
            return {self.table: _table(self.runs()), **self._told(run)}
        return self._told(run)

    def compared(self, given: Given) -> Given:
        """A page that holds two runs side by side, made from their records alone."""
        owner = look.owner(given[self.visitor])
        runs = [self._called(given[side]) for side in (self.left, self.right)]
        page = self.services.waiting.call(owner, lambda: compared_page([run.run.path for run in runs]))
        link = _link(self.services.reports.keep(page), "Open the comparison")
        names = " and ".join(escape(run.name) for run in runs)
        return {self.compared_line: f'<div class="said good" role="status">{names}: {link}</div>'}

    def _called(self, key: Any) -> ListedRun:
        found = next((run for run in self.runs() if run.key == key), None)
        if found is None:
            raise RequestError("this run is not on the list any more", "look again, and choose another one")
        return found

    def _told(self, run: ListedRun) -> Given:
        """One run: what it is, how far it is, its curves and its report."""
        stage = run.at_work
        curves = self.curves.of(stage.metrics) if stage else None
        if curves:
            curves.read()
        link = _report(self.services, run)
        facts = _facts(run, stage.path.name if stage else "", curves)
        charts = "".join(f"<figure>{chart}</figure>" for chart in (curves.charts() if curves else ()))
        return {
            self.about: f'<h2 class="runname">{escape(run.name)}</h2>{look.facts(facts)}{link}',
            self.drawn: f'<div class="charts">{charts}</div>' if charts else "",
            self.clock: gr.Timer(active=run.status == "running"),
        }


class _Curves:
    """The curves that were asked for last."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: OrderedDict[Path, LiveFigures] = OrderedDict()

    def of(self, metrics: Path) -> LiveFigures:
        with self._lock:
            found = self._kept.setdefault(metrics, LiveFigures(metrics))
            self._kept.move_to_end(metrics)
            while len(self._kept) > _MOST_CURVES:
                self._kept.popitem(last=False)
        return found


def compared_page(runs: list[Path]) -> bytes:
    """The page of `luthier compare` for two runs, from their records alone: no model is loaded here.

    Raises RequestError for runs that cannot be compared so.
    """
    found = open_runs(runs)
    scored = None
    if found[0].kind == "chat":
        probe = default_probe(found)
        if not probe.recorded:
            raise RequestError(
                "these runs held out different rows, so that their models would have to be loaded",
                "use `luthier compare` in a terminal",
            )
        scored = Scored(probe, recorded_losses(probe, found))
    drawn = compare(found, scored, Drawing()) | {"answers": [], "votes": None}
    with tempfile.TemporaryDirectory(prefix="luthier-compare-") as folder:
        page = Path(folder) / "compare.html"
        write_comparison(page, drawn, found)
        return page.read_bytes()


def _name(run: ListedRun, runs: list[ListedRun]) -> str:
    """The folder's name, with when it was begun where two are alike."""
    alike = sum(one.name == run.name for one in runs) > 1
    return f"{run.name} ({run.created})" if alike else run.name


def _table(runs: list[ListedRun]) -> str:
    rows = [
        (run.name, run.kind or "–", f"{len(run.finished)} of {len(run.stages)}", run.status, _when(run), run.headline)
        for run in runs
    ]
    heads = ("Run", "Kind", "Stages done", "Status", "Begun (UTC)", "Scores on held-out rows")
    return look.table(f"{len(runs)} run{'s' * (len(runs) != 1)}, the newest first", heads, rows)


def _when(run: ListedRun) -> str:
    return run.created[:16].replace("T", " ")


def _facts(run: ListedRun, stage: str, curves: LiveFigures | None) -> list[tuple[str, str]]:
    last = curves.last if curves else {}
    found = [("Status", run.status), ("Begun (UTC)", _when(run)), ("Stages", ", ".join(run.stages))]
    if stage:
        found += [("Curves of stage", stage), ("Step", f"{last.get('step', 0):g}")]
    if figures.finite(last.get("loss")):
        found.append(("Loss", f"{last['loss']:.4f}"))
    if curves and curves.speed:
        found.append(("Tokens per second", figures.count(curves.speed[-1][1])))
    if figures.finite(last.get("seconds")):
        found.append(("Trained for", figures.duration(last["seconds"])))
    return [*found, ("Scores", run.headline)] if run.headline else found


def _report(services: Services, run: ListedRun) -> str:
    page = run.run.report
    if not page.is_file() or page.resolve().parent != run.run.path.resolve():  # a link could lead anywhere
        return '<div class="quiet"><p>Its report is written when it ends.</p></div>'
    return f'<p class="links">{_link(services.reports.address(page), "Open its report")}</p>'


def _link(address: str, words: str) -> str:
    return f'<a href="{escape(address)}" target="_blank" rel="noopener">{escape(words)}</a>'
