"""A table with addresses becomes a local table, whatever the host does, and once only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from luthier.collect.client import PoliteClient, Politeness
from luthier.collect.pictures import PictureRequest, collect_pictures
from luthier.data.building.request import TableRequest
from luthier.data.table import build_table
from luthier.errors import DataError, RequestError
from luthier.files import sha256_file
from luthier.recipe_data import Limits, Source
from support.picturehost import picture, picture_host


@pytest.fixture
def host():
    with picture_host() as found:
        yield found


def client() -> PoliteClient:
    return PoliteClient(Politeness(seconds_between=0.0, retries=0), lambda *_: ["127.0.0.1"], allow_private=True)


def write_table(path: Path, host, count: int, **more: str) -> Path:
    rows = [
        {"imageurl": host.url(f"/{n}.png"), "title": f"Coat {n}", "product_code": f"P{n // 2}", "full_price": 100 + n}
        for n in range(count)
    ]
    rows += [{"imageurl": url, "title": name, "product_code": name, "full_price": 1} for name, url in more.items()]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def request(table: Path, out: Path, **more) -> PictureRequest:
    return PictureRequest(Source(name="products", path=str(table)), out, **more)


def rows_of(folder: Path, side: str) -> list[dict]:
    place = folder / side / "products.parquet"
    return pq.read_table(place).to_pylist() if place.is_file() else []


def test_every_row_is_kept_with_its_picture_or_left_out_with_its_reason(tmp_path, host):
    host.paths |= {f"/{number}.png": picture(number) for number in range(12)}
    host.paths |= {
        "/html.jpg": (200, {"Content-Type": "image/jpeg"}, b"<html>not found</html>"),
        "/empty.png": b"",
        "/torn.png": picture(3)[:40],
        "/wide.png": picture(1, (400, 300)),
    }
    bad = {name: host.url(f"/{name}") for name in ("gone.png", "html.jpg", "empty.png", "torn.png", "wide.png")}
    bad |= {"local": "file:///etc/hostname", "none": ""}
    table = write_table(tmp_path / "products.jsonl", host, 12, **bad)
    found = collect_pictures(
        request(table, tmp_path / "out", validation=0.4, limits=Limits(maximum_pixels=50_000)), client=client()
    )
    assert found.rows["train"] + found.rows["validation"] == 12
    assert dict(found.dropped) == {
        "http_404": 1,
        "unreadable_image": 2,
        "empty_image": 1,
        "too_many_pixels": 1,
        "bad_address": 1,
        "missing_media": 1,
    }
    ledger = [json.loads(line) for line in (tmp_path / "out" / "ledger.jsonl").read_text().splitlines()]
    assert ledger[0]["in"] == ledger[0]["kept"] + sum(ledger[0]["dropped"].values()) == 19
    assert len(ledger) == 1 + 7
    for side in ("train", "validation"):
        for row in rows_of(tmp_path / "out", side):
            assert (tmp_path / "out" / row["image"]).is_file()
            assert row["full_price"] == 100 + int(row["title"].split()[1])
    train, validation = (
        {row["product_code"] for row in rows_of(tmp_path / "out", side)} for side in ("train", "validation")
    )
    assert train
    assert validation
    assert not train & validation


def test_what_was_made_is_read_as_a_source_of_pictures(tmp_path, host):
    host.paths |= {f"/{number}.png": picture(number) for number in range(6)}
    table = write_table(tmp_path / "products.jsonl", host, 6)
    found = collect_pictures(request(table, tmp_path / "out", validation=0.0), client=client())
    source = Source(
        name="products", path=str(found.folder), format="image_caption", columns={"image": "image", "text": "title"}
    )
    built = build_table(TableRequest(((source, "train"),), graded=False), tmp_path / "table")
    assert len(built.rows) == 6
    assert all(item.row.media for item in built.rows)


def test_products_that_share_a_picture_are_on_one_side(tmp_path, host):
    host.paths |= {f"/{number}.png": picture(number // 4) for number in range(40)}
    table = write_table(tmp_path / "products.jsonl", host, 40)
    collect_pictures(request(table, tmp_path / "out", validation=0.5), client=client())
    sides = [{row["image"] for row in rows_of(tmp_path / "out", side)} for side in ("train", "validation")]
    assert all(sides)
    assert not sides[0] & sides[1]


def test_added_rows_move_no_product_to_the_other_side(tmp_path, host):
    host.paths |= {f"/{number}.png": picture(number) for number in range(60)}
    sides = []
    for count in (40, 60):
        table = write_table(tmp_path / f"{count}.jsonl", host, count)
        collect_pictures(request(table, tmp_path / str(count), validation=0.3), client=client())
        sides.append({row["product_code"] for row in rows_of(tmp_path / str(count), "validation")})
    assert sides[0] < sides[1]
    assert {code for code in sides[1] if int(code[1:]) < 20} == sides[0]


def test_rows_without_a_product_are_not_one_product(tmp_path, host):
    host.paths |= {f"/{number}.png": picture(number) for number in range(40)}
    rows = [json.loads(line) for line in write_table(tmp_path / "a.jsonl", host, 40).read_text().splitlines()]
    for place, row in enumerate(rows):
        row["product_code"] = ("", "  ", None)[place % 3]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = collect_pictures(request(tmp_path / "a.jsonl", tmp_path / "out", validation=0.5), client=client())
    assert min(found.rows.values()) > 5


def test_a_table_that_grew_is_gone_on_with_and_its_pictures_are_fetched_once(tmp_path, host):
    host.paths |= {f"/{number}.png": picture(number) for number in range(12)}
    table, out = write_table(tmp_path / "a.jsonl", host, 8), tmp_path / "out"
    assert collect_pictures(request(table, out), client=client()).pictures == 8
    write_table(table, host, 12)
    found = collect_pictures(request(table, out), resume=True, client=client())
    assert found.pictures == sum(found.rows.values()) == 12
    assert all(host.asked[f"/{number}.png"] == 1 for number in range(12))


def test_an_address_is_fetched_once_and_passing_trouble_again_on_resuming(tmp_path, host):
    host.paths |= {f"/{number}.png": picture(number) for number in range(5)} | {"/5.png": (503, {}, b"")}
    rows = write_table(tmp_path / "a.jsonl", host, 6).read_text()
    (tmp_path / "a.jsonl").write_text(rows + rows)
    found = collect_pictures(request(tmp_path / "a.jsonl", tmp_path / "out"), client=client())
    assert found.dropped == {"http_503": 2}
    assert all(host.asked[f"/{number}.png"] == 1 for number in range(6))
    (tmp_path / "out" / "manifest.json").unlink()
    host.paths["/5.png"] = picture(5)
    found = collect_pictures(request(tmp_path / "a.jsonl", tmp_path / "out"), resume=True, client=client())
    assert found.dropped == {}
    assert host.asked["/5.png"] == 2
    assert host.asked["/4.png"] == 1


def test_a_lost_picture_is_fetched_again_and_a_torn_line_of_the_journal_is_forgiven(tmp_path, host):
    host.paths |= {f"/{number}.png": picture(number) for number in range(5)}
    table, out = write_table(tmp_path / "a.jsonl", host, 5), tmp_path / "out"
    collect_pictures(request(table, out), client=client())
    (out / "manifest.json").unlink()
    image = next(iter((out / "images").iterdir()))
    image.unlink()
    with (out / "journal.jsonl").open("ab") as stream:
        stream.write(b'{"url": "http://shop.exam')
    again = collect_pictures(request(table, out), resume=True, client=client())
    assert again.pictures == 5
    assert image.is_file()
    assert sum(host.asked[f"/{number}.png"] for number in range(5)) == 6


def test_a_folder_that_is_there_is_left_alone(tmp_path, host):
    host.paths |= {"/0.png": picture(), "/1.png": picture(1)}
    table, out = write_table(tmp_path / "a.jsonl", host, 1), tmp_path / "out"
    collect_pictures(request(table, out), client=client())
    with pytest.raises(RequestError, match="--resume"):
        collect_pictures(request(table, out), client=client())
    with pytest.raises(RequestError, match="another table"):
        collect_pictures(request(table, out, validation=0.5), resume=True, client=client())
    with pytest.raises(RequestError, match="--column"):
        collect_pictures(request(table, tmp_path / "b", column="photo"), client=client())
    with pytest.raises(DataError, match="no row"):
        collect_pictures(
            request(write_table(tmp_path / "c.jsonl", host, 0, x=host.url("/9.png")), tmp_path / "c"), client=client()
        )


_CHILD = """
import sys
from pathlib import Path
from luthier.collect.client import PoliteClient, Politeness
from luthier.collect.pictures import PictureRequest, collect_pictures
from luthier.recipe_data import Source
client = PoliteClient(Politeness(seconds_between=0.0, retries=0), lambda *_: ["127.0.0.1"], allow_private=True)
collect_pictures(PictureRequest(Source(name="products", path=sys.argv[1]), Path(sys.argv[2])), True, client)
"""


def test_killed_at_any_moment_it_goes_on_to_the_same_end(tmp_path, host):
    host.paths |= {f"/{number}.png": (lambda _, n=number: time.sleep(0.004) or picture(n)) for number in range(120)}
    table = write_table(tmp_path / "a.jsonl", host, 120)
    whole = collect_pictures(request(table, tmp_path / "whole"), client=client())
    before = sum(host.asked.values())
    words = [sys.executable, "-c", _CHILD, str(table), str(tmp_path / "cut")]
    kills = 0
    for wait in (0.2, 0.35, 0.5):
        child = subprocess.Popen(words, start_new_session=True, stderr=subprocess.DEVNULL)
        while not (tmp_path / "cut" / "images").exists() and child.poll() is None:
            time.sleep(0.01)
        time.sleep(wait)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            kills += 1
        child.wait()
    assert kills
    subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
    for name in ("manifest.json", "ledger.jsonl", "train/products.parquet", "validation/products.parquet"):
        assert sha256_file(tmp_path / "cut" / name) == sha256_file(tmp_path / "whole" / name)
    assert len(list((tmp_path / "cut" / "images").iterdir())) == whole.pictures
    assert sum(host.asked.values()) - before < 120 + 4 * (kills + 1) * 16
