"""`luthier data ...`: tables built, shown, explained, compared and exported; one function a verb."""

from __future__ import annotations

import difflib
import shutil
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from luthier.console import WIDTH, progress, table, tell
from luthier.data.leaks.auditresult import AuditSettings
from luthier.data.ledger import Counts, Ledger
from luthier.data.table import iter_rows, read_manifest
from luthier.errors import ExistsError, RequestError
from luthier.files import write_atomically
from luthier.recipefile import load_recipe, stage_recipes
from luthier.schema import Row, canonical


def build(
    recipe: Path, out: Path | None = None, overrides: Sequence[str] = (), cache: Path | None = None
) -> dict[str, Any]:
    """A table from the data part of a recipe. A table that is there and up to date is left as it is."""
    from luthier.data.building.build import build as run_build
    from luthier.data.building.stagecache import default_cache
    from luthier.stages.sources import table_request

    loaded = load_recipe(recipe, overrides)
    folder = out or Path("tables") / (loaded.name or recipe.stem)
    built = run_build(table_request(stage_recipes(loaded)), folder, cache or default_cache())
    tell(built.ledger.table())
    for note in built.manifest["duplicates"]["found"]["notes"]:
        tell(note)
    if built.mixture:
        tell(built.mixture.plan.table())
    tell(f"table: {folder}  ({_splits(built.manifest)})")
    return {
        "table": str(folder),
        "reused": built.reused,
        "rows": built.manifest["rows"],
        "splits": built.manifest["splits"],
        "sources": {name: counts.to_json() for name, counts in built.ledger.counts.items()},
        "duplicates": {k: v for k, v in built.manifest["duplicates"]["found"].items() if k != "sibling_pairs"},
        "mix": built.manifest["mix"],
        "digest": built.manifest["digest"],
    }


def _splits(manifest: dict[str, Any]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in manifest["splits"].items())


def show(folder: Path, name: str = "", where: dict[str, str] | None = None, limit: int = 3) -> dict[str, Any]:
    """What a table is made of, and some of its rows; `name` shows one row by id or origin."""
    from luthier.data.building.lookup import find_rows

    if limit < 1:
        raise RequestError(f"--rows {limit}: no row would be shown", "give at least 1")
    manifest = read_manifest(folder)
    _check_there(folder, manifest, where or {})
    if not name:
        lines = [
            [
                source,
                about["split"],
                about["format"],
                about["kept"],
                about["license"] or "not stated",
                about["revision"][:12],
            ]
            for source, about in manifest["sources"].items()
        ]
        tell(table(["source", "for", "format", "rows", "licence", "revision"], lines))
        tell(f"{manifest['rows']:,} rows: {_splits(manifest)}")
        steps = ", ".join(step["name"] for step in manifest["steps"])
        tell(f"steps: {steps or 'none'}\n")
        ledger = Ledger()
        ledger.counts = {name: Counts.from_json(about) for name, about in manifest["sources"].items()}
        tell(ledger.table() + "\n")
    shown: list[str] = []
    for item in find_rows(folder, name) if name else iter_rows(folder, where):
        if len(shown) == limit:
            break
        shown.append(item.row.id)
        tell(row_text(item.row))
    if name and not shown:
        raise RequestError(f"{folder}: no row {name!r}", "luthier data why also knows rows that were left out")
    return {"rows": manifest["rows"], "splits": manifest["splits"], "sources": manifest["sources"], "shown": shown}


def _check_there(folder: Path, manifest: dict[str, Any], where: dict[str, str]) -> None:
    """Raises RequestError for a split or a source that the table does not have."""
    for kind, name in where.items():
        there = list(manifest[f"{kind}s"])
        if name not in there:
            close = difflib.get_close_matches(name, there, 1)
            guess = f"did you mean {close[0]}? " if close else ""
            raise RequestError(f"{folder} has no {kind} {name!r}", f"{guess}there are {', '.join(there) or 'none'}")


def row_text(row: Row, most: int = 400) -> str:
    """A row for a person: where it is from, then its turns, long ones cut in the middle."""
    where = row.provenance
    lines = [f"{row.id}  {row.split}  {where.source}: {where.origin}"]
    for message in row.messages:
        said = " ".join(part.text if part.text is not None else f"[{part.type}]" for part in message.content)
        said = f"{said} {message.more}".strip() if message.more else said or "(nothing)"
        if len(said) > most:
            said = f"{said[: most // 2]} [...{len(said) - most:,} more characters...] {said[-most // 2 :]}"
        lines += textwrap.wrap(f"{message.role}: {said}", WIDTH, initial_indent="  ", subsequent_indent="    ")
    if row.target.to_json():
        lines.append(f"  target: {row.target.to_json()}")
    return "\n".join(lines) + "\n"


def why(folder: Path, name: str) -> dict[str, Any]:
    """A row's way: source, each step and what it changed, what it was merged into or why it was dropped."""
    from luthier.data.building.lookup import why as look_up

    ways = look_up(folder, name)
    for way in ways:
        tell("\n".join(way.lines()))
        if way.row:
            tell(row_text(way.row.row))
    return {"ways": [way.to_json() for way in ways]}


def audit(folder: Path, against: Path, settings: AuditSettings, out: Path | None = None) -> dict[str, Any]:
    """Leaks between a table and an exam, a file of rows or another table; with `out` a page that shows each hit."""
    from luthier.data.leaks.audit import audit as run_audit
    from luthier.outcome.auditpage import write_audit

    if out is not None and out.exists():
        raise ExistsError(f"{out}: exists already", "name another file")
    if not against.exists():
        raise RequestError(f"{against}: no such exam, file of rows or table", "name one that is there")
    found = run_audit(folder, against, settings)
    tell("\n".join(found.lines()))
    if out is not None:
        write_audit(found, out)
        tell(f"page: {out}")
    return found.to_json()


def export(folder: Path, name: str, out: Path, split: str = "") -> dict[str, Any]:
    """A table's rows as JSON lines in another format; what the format cannot hold is counted and named."""
    from luthier.data.formats import export as run_export

    if out.exists():
        raise ExistsError(f"{out}: exists already", "name another file")
    losses, written = Counter[str](), 0
    where = {"split": split} if split else {}
    _check_there(folder, read_manifest(folder), where)
    rows = (item.row for item in iter_rows(folder, where))
    copied: list[Path] = []
    folders = [place for place in (out.parent / "media", *out.parents) if not place.exists()]
    try:
        with write_atomically(out) as stream:
            for record in run_export(_with_media(rows, folder, out.parent / "media", copied), name, losses):
                stream.write(_line(record))
                written += 1
            if not written:
                lost = ", ".join(f"{what} ({count:,})" for what, count in losses.most_common(3))
                raise RequestError(
                    f"{folder}: no row can be written as {name}: {lost or 'no rows'}", "name another format"
                )
    except BaseException:
        _take_back(copied, folders)
        raise
    tell(f"{written:,} rows written to {out}")
    for what, count in losses.most_common():
        tell(f"  lost: {what} ({count:,})")
    return {"file": str(out), "rows": written, "losses": dict(losses)}


def _line(record: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(record) + b"\n"
    except TypeError:
        return canonical(record).encode() + b"\n"  # integers beyond 64 bits


def _take_back(copied: Sequence[Path], folders: Sequence[Path]) -> None:
    """Remove the media that an export copied, and the folders that it made, where these are empty."""
    for path in copied:
        path.unlink(missing_ok=True)
    for place in folders:
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def _with_media(rows: Any, folder: Path, media: Path, copied: list[Path]) -> Any:
    """Pass rows through, copying the media that they refer to beside the exported file; `copied` lists the copies."""
    for row in progress(rows, "exporting"):
        for reference in row.media:
            name = reference.removeprefix("sha256:")
            if not (media / name).exists():
                media.mkdir(parents=True, exist_ok=True)
                copied.append(media / name)
                shutil.copyfile(folder / "media" / name, media / name)
        yield row
