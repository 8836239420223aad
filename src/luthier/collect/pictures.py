"""A table with addresses of pictures becomes a local one: pictures fetched, looked at, kept once, every row counted.

The folder: `train/` and `validation/` with `products.parquet` each (the source's own columns, and `image`, a name below
the folder), `images/`, `ledger.jsonl` (every row that was left out, with its reason) and `manifest.json`, written last.
While it works, `journal.jsonl` has a line for each address that is settled, so that nothing is fetched twice. Products
never stand on both sides, nor does a picture. Knows tables and pictures; refuses to know recipes' tasks and models.
"""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from luthier.collect.addresses import parse
from luthier.collect.client import PoliteClient, Politeness
from luthier.collect.trouble import FetchError
from luthier.console import progress, say
from luthier.data.ledger import Ledger, drop_event
from luthier.data.picturefiles import picture_kind
from luthier.data.pictures import check_picture
from luthier.data.readers import Broken, Reading, columns_seen, open_source, peek
from luthier.errors import DataError, MediaError, RequestError
from luthier.files import (
    append_bytes,
    read_json,
    read_jsonl,
    sha256_bytes,
    sha256_file,
    write_atomically,
    write_bytes,
    write_json,
)
from luthier.recipe_data import Limits, Source
from luthier.schema import Drop, canonical

COLUMNS = ("imageurl", "image_url", "img_url", "image", "picture", "url")
"""Where addresses are looked for, if no column is named."""
GROUPS = ("product_code", "product_id", "sku", "id")
IMAGES, JOURNAL, LEDGER, MANIFEST, TABLE = (
    "images",
    "journal.jsonl",
    "ledger.jsonl",
    "manifest.json",
    "products.parquet",
)
SIDES = ("train", "validation")
_HOSTS_AT_ONCE = 8
_SAVED_EVERY = 16
"""Addresses a journal is pushed to the disk after: so many are fetched again after a power cut."""


@dataclass(frozen=True)
class PictureRequest:
    """What is to be collected."""

    source: Source
    out: Path
    column: str = ""
    """With the addresses; empty: the first of COLUMNS that the table has."""
    group: str = ""
    """The column that names the product; empty: the first of GROUPS that the table has, else the address."""
    validation: float = 0.1
    """Share of the products that is set aside."""
    seed: int = 17
    limits: Limits = field(default_factory=Limits)
    politeness: Politeness = field(default_factory=Politeness)


@dataclass(frozen=True)
class Collected:
    """What was made."""

    folder: Path
    rows: Mapping[str, int]
    """Of each side."""
    pictures: int
    bytes: int
    dropped: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


def collect_pictures(request: PictureRequest, resume: bool = False, client: PoliteClient | None = None) -> Collected:
    """Fetch the pictures of a table and write the local one.

    Raises RequestError for a folder that exists (without `resume`) or was made from something else, SourceError for a
    table that cannot be read, DataError where no row is left.
    """
    reading = open_source(request.source)
    column, group = _columns(request, reading)
    journal = _Journal(request.out, _digest(request, column, group), resume)
    if (request.out / MANIFEST).is_file():
        if read_json(request.out / MANIFEST)["table"] == _content(reading):
            say(f"{request.out}: is whole, and left as it is")
            return _told(request.out)
        say(f"{request.out}: is whole, but the table has changed since: its rows are written anew")
        (request.out / MANIFEST).unlink()
    addresses = dict.fromkeys(str(record[column]).strip() for _, record in _good(reading) if _address(record, column))
    wanted = [address for address in addresses if address not in journal.settled]
    _fetch_all(wanted, request, journal, client or PoliteClient(request.politeness))
    return _write(request, reading, (column, group), journal)


class _Journal:
    """What became of each address: the name of its picture, or a reason. Written as it happens, by several threads."""

    def __init__(self, folder: Path, digest: str, resume: bool) -> None:
        self.path = folder / JOURNAL
        self.folder = folder
        self.settled: dict[str, dict[str, Any]] = {}
        self._waiting: list[bytes] = []
        self._lock = threading.Lock()
        if folder.exists() and not resume:
            raise RequestError(f"{folder} is there already", "add --resume to go on with it, or name another --out")
        if not self.path.is_file():
            append_bytes(self.path, orjson.dumps({"of": digest}) + b"\n")
            return
        first, *lines = read_jsonl(self.path)
        if first != {"of": digest}:
            raise RequestError(
                f"{folder} was begun with another table or other settings", "use those again, or name another --out"
            )
        self._cut_torn_line()
        for line in lines:
            name = line.get("image")
            if line.get("passing"):
                continue  # what was passing trouble then is tried again
            if name is None or (folder / name).is_file():
                self.settled[line["url"]] = line

    def settle(self, line: dict[str, Any]) -> None:
        with self._lock:
            self.settled[line["url"]] = line
            self._waiting.append(orjson.dumps(line) + b"\n")
            if len(self._waiting) >= _SAVED_EVERY:
                self._save()

    def save(self) -> None:
        with self._lock:
            self._save()

    def _save(self) -> None:
        if self._waiting:
            append_bytes(self.path, b"".join(self._waiting))
            self._waiting.clear()

    def _cut_torn_line(self) -> None:
        data = self.path.read_bytes()
        if not data.endswith(b"\n"):
            append_bytes(self.path, b"", keep=data.rfind(b"\n") + 1)


def _fetch_all(wanted: Sequence[str], request: PictureRequest, journal: _Journal, client: PoliteClient) -> None:
    """Each host is asked by one thread, several hosts at a time."""
    hosts: dict[str, list[str]] = defaultdict(list)
    for address in wanted:
        try:
            hosts[parse(address).origin].append(address)
        except FetchError as error:
            journal.settle({"url": address, "reason": error.reason, "detail": error.detail})
    done: SimpleQueue[Exception | None] = SimpleQueue()

    def fetch(addresses: Sequence[str]) -> None:
        for address in addresses:
            try:
                journal.settle(_settled(address, request, client))
                done.put(None)
            except Exception as error:  # a full disk ends all of it, in the thread that shows it
                done.put(error)
                return

    total = sum(map(len, hosts.values()))
    pool = ThreadPoolExecutor(_HOSTS_AT_ONCE)
    try:
        for addresses in hosts.values():
            pool.submit(fetch, addresses)
        for _ in progress(range(total), "fetching pictures", total):
            failed = done.get()
            if failed is not None:
                raise failed
    finally:
        client.close()
        pool.shutdown(cancel_futures=True)
        journal.save()


def _settled(address: str, request: PictureRequest, client: PoliteClient) -> dict[str, Any]:
    """Fetch and look at one picture, and keep it under the name of its content."""
    try:
        data = client.fetch(address).data
        width, height = check_picture(data, request.limits)
    except FetchError as error:
        return {"url": address, "reason": error.reason, "detail": error.detail, "passing": error.passing}
    except MediaError as error:
        return {"url": address, "reason": error.reason, "detail": error.detail}
    digest = sha256_bytes(data)
    name = f"{IMAGES}/{digest[:32]}.{picture_kind(data).lower()}"
    place = request.out / name
    if not place.is_file() or sha256_file(place) != digest:
        write_bytes(place, data, durable=False)
    return {"url": address, "image": name, "sha256": digest, "bytes": len(data), "width": width, "height": height}


def _write(request: PictureRequest, reading: Reading, names: tuple[str, str], journal: _Journal) -> Collected:
    """The two tables and the ledger; the manifest last."""
    ledger, drops = Ledger(), list[bytes]()
    kept = _kept(request, reading, names, journal, ledger, drops)
    counts = ledger.counts[request.source.name]
    say(ledger.table())
    if not kept:
        raise DataError(f"no row of {request.source.name} is left: {counts.why()}", "look at the addresses")
    sides: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    for (_, row), product in zip(kept, _products(kept), strict=True):
        sides[SIDES[_share(request.seed, product) < request.validation]].append(row)
    for side, rows in sides.items():
        place = request.out / side / TABLE
        place.parent.mkdir(exist_ok=True)
        if rows:
            with write_atomically(place) as stream:
                pq.write_table(pa.Table.from_pylist(rows), stream, compression="zstd")
        else:
            place.unlink(missing_ok=True)
    ledger.write(request.out / LEDGER, drops)
    images = {line["image"]: line for line in journal.settled.values() if "image" in line}
    about = {
        "source": {key: value for key, value in asdict(request.source).items() if value},
        "table": _content(reading),
        "column": names[0],
        "group": names[1],
        "rows": {side: len(rows) for side, rows in sides.items()},
        "dropped": dict(sorted(counts.dropped.items())),
        "pictures": len(images),
        "bytes": sum(line["bytes"] for line in images.values()),
        "images": {name: line["sha256"] for name, line in sorted(images.items())},
    }
    write_json(request.out / MANIFEST, about)
    return _told(request.out)


def _kept(
    request: PictureRequest,
    reading: Reading,
    names: tuple[str, str],
    journal: _Journal,
    ledger: Ledger,
    drops: list[bytes],
) -> list[tuple[str, dict[str, Any]]]:
    """(product, row) of every row that has its picture; the others go to `drops`, all are counted."""
    column, group = names
    counts = ledger.open(request.source.name)
    kept: list[tuple[str, dict[str, Any]]] = []
    for origin, record in reading:
        counts.seen += 1
        drop = _dropped(origin, record, column, journal, request.source.name)
        if drop is not None or isinstance(record, Broken):
            assert drop is not None
            counts.dropped[drop.reason] += 1
            drops.append(drop_event(drop))
            continue
        row = {(f"{name}_address" if name == "image" else name): value for name, value in record.items()}
        row["image"] = journal.settled[str(record[column]).strip()]["image"]
        product = record.get(group) if group else None
        known = product is not None and product == product and bool(str(product).strip())
        kept.append((str(product if known else record[column]), row))
        counts.kept += 1
    return kept


def _dropped(origin: str, record: Any, column: str, journal: _Journal, source: str) -> Drop | None:
    if isinstance(record, Broken):
        return Drop(source, origin, record.reason, record.detail)
    if not _address(record, column):
        return Drop(source, origin, "missing_media", f"no address in {column}")
    line = journal.settled[str(record[column]).strip()]
    return None if "image" in line else Drop(source, origin, line["reason"], line["detail"])


def _products(kept: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Of each row the name of its product; products that share a picture are one, and named by the smallest."""
    above: dict[str, str] = {}

    def root(name: str) -> str:
        while above.setdefault(name, name) != name:
            above[name] = above[above[name]]
            name = above[name]
        return name

    for product, row in kept:
        one, other = sorted((root(f"p:{product}"), root(f"i:{row['image']}")))
        above[other] = one
    smallest: dict[str, str] = {}
    for product, _ in kept:
        here = root(f"p:{product}")
        smallest[here] = min(smallest.get(here, product), product)
    return [smallest[root(f"p:{product}")] for product, _ in kept]


def _share(seed: int, product: str) -> float:
    """A number in 0..1 that follows from the product alone: added rows change no side."""
    return int.from_bytes(hashlib.sha256(f"{seed} {product}".encode()).digest()[:8]) / 2.0**64


def _columns(request: PictureRequest, reading: Reading) -> tuple[str, str]:
    there = columns_seen(peek(reading))
    column = request.column or next((name for name in COLUMNS if name in there), "")
    group = request.group or next((name for name in GROUPS if name in there), "")
    for name, option in ((column, "--column"), (group, "--group")):
        if name not in there and (name or option == "--column"):
            raise RequestError(
                f"source {request.source.name} has no column {name or 'of addresses'} (it has {', '.join(there)})",
                f"name it: {option} NAME",
            )
    return column, group


def _good(reading: Reading) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((origin, record) for origin, record in reading if not isinstance(record, Broken))


def _address(record: Mapping[str, Any], column: str) -> bool:
    value = record.get(column)
    return isinstance(value, str) and bool(value.strip())


def _digest(request: PictureRequest, column: str, group: str) -> str:
    said = [asdict(request.source), column, group, request.validation, request.seed, asdict(request.limits)]
    return sha256_bytes(canonical(said).encode())


def _content(reading: Reading) -> str:
    """sha256 of what the table holds."""
    return sha256_bytes(canonical([*map(sha256_file, reading.files), reading.revision]).encode())


def _told(folder: Path) -> Collected:
    about = read_json(folder / MANIFEST)
    return Collected(folder, about["rows"], about["pictures"], about["bytes"], about["dropped"])
