"""Looks for an exam's items, or another table's rows, in a table: the leaks that make a score too good.

Knows the kinds of leaks and how each is counted; refuses to judge them finally and to drop anything: every hit is
given with both texts, and a person decides. The exam is held in memory, the table is a stream.

A pair of a row and an item has at most one hit of its texts, the strongest of exact, near and ngram; `group` and
`media` hits stand beside it. Other fillings of an item's template (siblings) are no leaks and are listed apart.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson
import pyarrow as pa

from luthier.data.leaks.auditresult import KINDS, WHOLE_WORDS, AuditResult, AuditSettings, Hit
from luthier.data.leaks.examtexts import Exam, Item, exam_items, given_group
from luthier.data.leaks.overlaps import Likes, Near, Places, Run, Runs, Wholes, Words, runs_index, shared_runs, words_of
from luthier.data.leaks.stretches import Extent, Text, excerpts, head, is_sibling, lay_beside
from luthier.data.shapes.asked import LETTERS
from luthier.data.table import iter_batches, read_manifest
from luthier.errors import DataError
from luthier.recipe_data import Source

BOILERPLATE_ITEMS, BOILERPLATE_SHARE = 3, 0.01
"""An n-gram (or a question) of more than 3 items and more than 1 % of them is boilerplate, and says nothing."""
__all__ = ["AuditResult", "AuditSettings", "Hit", "audit"]
SETTLED = 20
"""How often the same run of an item is judged, before the next rows that hold it are taken to be alike."""
_COLUMNS = ("id", "messages", "target", "group", "split", "source", "origin")


def audit(table: Path, against: Path | Source, settings: AuditSettings | None = None) -> AuditResult:
    """Look for the items of `against` (an exam file, a file of rows, a table, a recipe's source) in a table's rows.

    Raises SourceError or DataError where one of them cannot be read, or where a table would be compared with itself.
    """
    chosen = settings or AuditSettings()
    read_manifest(table)
    same = isinstance(against, Path) and table.resolve() == against.resolve()
    if same and (not chosen.split or not chosen.against_split or chosen.split == chosen.against_split):
        raise DataError(f"{table} would be compared with itself", "name two splits: --split train --against-split test")
    if not 0.0 < chosen.near <= 1.0 or chosen.ngram < WHOLE_WORDS:
        raise DataError(
            f"near is {chosen.near:g} and ngram {chosen.ngram}",
            f"near lies between 0 and 1, ngram is {WHOLE_WORDS} or more",
        )
    exam = exam_items(against, chosen.against_split)
    where = str(against) if isinstance(against, Path) else against.path or against.hub
    work = _Audit(exam, chosen, AuditResult(str(table), where, chosen, exam.read_as))
    for batch in iter_batches(table, _COLUMNS):
        work.look(batch)
    return work.finished()


class _Needle(NamedTuple):
    item: int
    text: str


class _Judged(NamedTuple):
    sibling: bool
    kind: str
    score: float
    extent: Extent | None


class _Batch:
    """Some rows as the search needs them: turns, words, and where rows and turns begin."""

    def __init__(self, batch: pa.RecordBatch, split: str) -> None:
        splits = batch.column("split").to_pylist()
        chosen = [i for i, found in enumerate(splits) if not split or found == split]
        if len(chosen) < len(splits):
            batch = batch.take(pa.array(chosen, pa.int64()))
        self.ids, self.sources, self.origins, self.groups = (
            batch.column(name).to_pylist() for name in ("id", "source", "origin", "group")
        )
        messages = batch.column("messages").cast(pa.large_binary()).to_pylist()
        self.turns: list[list[str]] = []
        self.media: list[list[str]] = []
        for row, target in zip(messages, batch.column("target").to_pylist(), strict=True):
            turns, media = [], []
            for message in orjson.loads(row):
                parts = message["content"]
                said = [part["text"] for part in parts if "text" in part]
                turns.append(said[0] if len(said) == 1 else "\n".join(said))
                media += [part["media"] for part in parts if "media" in part]
            if target != "{}" and (answer := orjson.loads(target).get("text")):
                turns.append(answer)
            self.turns.append(turns)
            self.media.append(media)
        self.words: Words = words_of([turn for turns in self.turns for turn in turns])
        firsts = np.cumsum([0, *map(len, self.turns)])
        self.bounds: Places = self.words.bounds[firsts]
        self._texts: dict[int, Text] = {}

    def text(self, row: int) -> Text:
        """A row as one text, its turns on lines of their own."""
        if row not in self._texts:
            self._texts[row] = Text("\n".join(self.turns[row]))
        return self._texts[row]


class _Audit:
    """The search and its sums. What is looked for is indexed once; `look` then takes one batch after another."""

    def __init__(self, exam: Exam, settings: AuditSettings, result: AuditResult) -> None:
        self.items, self.settings, self.result = exam.items, settings, result
        result.items = len(exam.items)
        result.unread = [(drop.origin, drop.reason, drop.detail) for drop in exam.unreadable]
        result.unreadable = dict(Counter(drop.reason for drop in exam.unreadable))
        self.found: list[Counter[str]] = [Counter() for _ in exam.items]
        self.kept: dict[tuple[int, str], list[Hit]] = defaultdict(list)
        self.settled: dict[tuple[int, int, int], Counter[bool]] = defaultdict(Counter)
        self.group_rows: Counter[str] = Counter()
        self.by_group: dict[str, list[int]] = defaultdict(list)
        self.by_media: dict[str, list[int]] = defaultdict(list)
        for number, item in enumerate(exam.items):
            if item.group:
                self.by_group[item.group].append(number)
            for reference in set(item.media):
                self.by_media[reference].append(number)
        self.item_texts = [Text(item.text) for item in exam.items]
        self._index()

    def _index(self) -> None:
        items, result = self.items, self.result
        most = max(BOILERPLATE_ITEMS, int(BOILERPLATE_SHARE * len(items)))
        words = words_of([item.text for item in items])
        self.runs: Runs = runs_index(words, self.settings.ngram, most)
        result.boilerplate, result.boilerplate_items = self.runs.boilerplate, self.runs.emptied
        result.too_short = int(np.count_nonzero(np.diff(words.bounds) < WHOLE_WORDS))
        for number, place in self.runs.samples:
            text = self.item_texts[number]
            last = min(place + self.settings.ngram, len(text.spans)) - 1
            result.boilerplate_samples.append(text.text[text.spans[place][0] : text.spans[last][1]])
        asked = Counter(item.question.casefold() for item in items)
        common = {question for question, count in asked.items() if count > most}
        self.needles = [
            _Needle(number, text)
            for number, item in enumerate(items)
            for text in _wholes(item, item.question.casefold() in common)
        ]
        self.wholes = Wholes(words_of([needle.text for needle in self.needles]))
        # A question that many items share is near to all of them, and says nothing of one.
        self.alike = [
            _Needle(number, text)
            for number, item in enumerate(items)
            for text in dict.fromkeys((item.text, item.text if item.question.casefold() in common else item.question))
        ]
        self.likes = Likes(words_of([needle.text for needle in self.alike]), self.settings.near)

    def look(self, batch: pa.RecordBatch) -> None:
        """Look at a batch of rows."""
        rows = _Batch(batch, self.settings.split)
        self.result.rows += len(rows.ids)
        if not rows.ids:
            return
        hashes, turns = rows.words
        done: set[tuple[int, int]] = set()
        for run in self.wholes.find(hashes, rows.bounds, turns):
            self._exact(rows, run, done)
        likes = sorted(self.likes.find(hashes, rows.bounds, turns), key=lambda near: -near.jaccard)
        judged: dict[tuple[int, int], _Judged] = {}
        for near in likes:
            pair = near.row, self.alike[near.text].item
            if pair not in done and pair not in judged:
                extent = self._beside(rows, *pair, near)
                judged[pair] = _Judged(self._sibling(rows, *pair, extent), "near", near.jaccard, extent)
        for run in shared_runs(self.runs, hashes, rows.bounds):
            pair = run.row, run.text
            if pair in done or pair in judged:
                continue
            judged[pair] = self._run(rows, run)
        for (row, item), found in judged.items():
            self._keep(rows, row, item, "sibling" if found.sibling else found.kind, found.score, found.extent)
        self._groups_and_media(rows)

    def _run(self, rows: _Batch, run: Run) -> _Judged:
        """Judge a shared run; one that was judged SETTLED times, always alike, is not laid beside its item again."""
        earlier = self.settled[run.text, run.text_at, run.words]
        if earlier.total() >= SETTLED and len(earlier) == 1:
            return _Judged(next(iter(earlier)), "ngram", float(run.words), None)
        words = run.words
        extent = lay_beside(
            self.item_texts[run.text],
            rows.text(run.row),
            (run.text_at, run.text_at + words),
            (run.row_at, run.row_at + words),
        )
        sibling = self._sibling(rows, run.row, run.text, extent)
        earlier[sibling] += 1
        return _Judged(sibling, "ngram", float(max(words, extent.run)), extent)

    def _beside(self, rows: _Batch, row: int, item: int, near: Near) -> Extent:
        ours, theirs = self.item_texts[item], rows.text(row)
        return lay_beside(ours, theirs, (0, len(ours.spans)), (near.row_at, near.row_at + near.words))

    def _sibling(self, rows: _Batch, row: int, item: int, extent: Extent) -> bool:
        return is_sibling(self.item_texts[item], rows.text(row), extent, self.settings.ngram)

    def _exact(self, rows: _Batch, run: Run, done: set[tuple[int, int]]) -> None:
        item = self.needles[run.text].item
        if (run.row, item) in done:
            return
        done.add((run.row, item))
        extent = None
        if len(self.kept[item, "exact"]) < self.settings.shown:
            ours = self.item_texts[item]
            at = run.row_at, run.row_at + run.words
            extent = lay_beside(ours, rows.text(run.row), (0, len(ours.spans)), at)
        self._keep(rows, run.row, item, "exact", float(run.words), extent)

    def _groups_and_media(self, rows: _Batch) -> None:
        for row, group in enumerate(rows.groups):
            if group in self.by_group and given_group(group, rows.ids[row]):
                self.group_rows[group] += 1
                if self.group_rows[group] <= self.settings.shown:
                    for item in self.by_group[group]:
                        self._show(self.kept[item, "group"], rows, row, item, "group", 1.0, None)
            for item in {item for reference in rows.media[row] for item in self.by_media.get(reference, ())}:
                self._keep(rows, row, item, "media", 1.0, None)

    def _keep(self, rows: _Batch, row: int, item: int, kind: str, score: float, extent: Extent | None) -> None:
        """Count a hit, and keep it with its texts while few of its item and kind are kept."""
        if kind == "sibling":
            self.result.sibling_pairs += 1
            kept, most = self.result.siblings, self.settings.siblings
        else:
            self.found[item][kind] += 1
            kept, most = self.kept[item, kind], self.settings.shown
        if len(kept) < most:
            self._show(kept, rows, row, item, kind, score, extent)

    def _show(
        self, kept: list[Hit], rows: _Batch, row: int, item: int, kind: str, score: float, extent: Extent | None
    ) -> None:
        found, ours, theirs = self.items[item], self.item_texts[item], rows.text(row)
        item_text, row_text = excerpts(ours, theirs, extent) if extent else (head(ours), head(theirs))
        kept.append(
            Hit(
                kind,
                rows.ids[row],
                rows.sources[row],
                rows.origins[row],
                found.id,
                found.origin,
                round(score, 4),
                row_text,
                item_text,
            )
        )

    def finished(self) -> AuditResult:
        """The sums, with the hits in the exam's order."""
        result = self.result
        for group, count in self.group_rows.items():
            for item in self.by_group[group]:
                self.found[item]["group"] = count
        result.pairs = {kind: sum(counts[kind] for counts in self.found) for kind in KINDS}
        for number, (found, counts) in enumerate(zip(self.items, self.found, strict=True)):
            if counts:
                result.touched[found.id] = {kind: counts[kind] for kind in KINDS if counts[kind]}
                result.origins[found.id] = found.origin
                result.hits += [hit for kind in KINDS for hit in self.kept.get((number, kind), ())]
        return result


def _wholes(item: Item, common: bool) -> list[str]:
    """The spellings in which an item may stand whole in a row; a question that many items share is none of them."""
    found = [item.text]
    if item.options:
        options = [f"{letter} {option}" for letter, option in zip(LETTERS, item.options, strict=False)]
        found.append("\n".join((item.text.removesuffix("\n".join(item.options)), *options)))
    if not common:
        found.append(item.question)
        if "_" in item.question:  # a sentence with a gap, as it reads once filled
            found += [item.question.replace("_", option) for option in item.options]
    return [text for text in dict.fromkeys(found) if text]
