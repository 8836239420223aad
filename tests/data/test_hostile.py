"""Broken sources of every kind go through the public build: refused in words or built, and the sums always close."""

import gzip
import io
import json
import random
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from support.children import environment
from support.hostile import CASES, Case, at_most, lying, reasons, said_in_full, sound, walk

QUICK, LONG = 8, 140  # of each of ten kinds
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def go_through(case: Case, met: Counter[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = walk(case, Path(folder))
    met["refused" if found.refused else "built"] += 1
    if not found.refused:
        assert found.seen == found.kept + found.merged + found.dropped
        assert found.seen == found.again
        assert found.kept > 0
    else:
        assert "mend: " in found.refused
        assert "Traceback" not in found.refused


@pytest.mark.parametrize("kind", CASES)
def test_some_broken_sources_are_refused_or_built_with_sums_that_close(kind):
    assert explore(kind, QUICK).total() > 0  # each input is judged where it is walked through


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_a_thousand_broken_sources_are_refused_or_built_with_sums_that_close(kind):
    met = explore(kind, LONG)
    assert LONG * len(CASES) > 1000
    assert met.total() >= LONG * 0.9, "the strategy makes too few different sources"
    assert met["refused"] > 0
    assert met["built"] > 0 or kind == "rubbish", "sources so broken that none is ever built test nothing but refusals"


def explore(kind: str, count: int) -> Counter[str]:
    met: Counter[str] = Counter()

    @settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=CHECKS)
    @given(st.data())
    def each(data):
        go_through(data.draw(CASES[kind]), met)

    each()
    return met


def test_each_fault_of_a_line_has_its_own_word(tmp_path):
    good = json.dumps({"text": "a"})
    lines = [
        good,
        good + good,
        "{broken",
        '{"text": 1, "text": 2}',
        "[1]",
        '{"text": NaN}',
        '{"a":' * 3000,
        '{"t": "\0"}',
        '{"te',
    ]
    words = ["two_objects", "broken_line", "duplicate_key", "not_an_object", "not_finite", "too_deep", "nul_byte"]
    found = reasons(Case({"a.jsonl": "\n".join(lines).encode()}, "a.jsonl"), tmp_path)
    assert found == [*words, "truncated_line"]


def test_a_torn_archive_is_refused_with_its_name(tmp_path):
    whole = gzip.compress(b'{"text": "a b c"}\n' * 500)
    found = walk(Case({"rows.jsonl.gz": whole[: len(whole) // 2]}, "rows.jsonl.gz"), tmp_path)
    assert "rows.jsonl.gz" in found.refused
    assert "torn" in found.refused


def test_an_equal_row_is_merged_and_the_sum_still_closes(tmp_path):
    found = walk(Case({"rows.jsonl": b'{"text": "one two"}\n{"text": "one two"}\n{"text"\n'}, "rows.jsonl"), tmp_path)
    assert (found.seen, found.kept, found.merged, found.dropped) == (3, 1, 1, 1)


def test_a_source_of_no_known_format_is_refused_by_name(tmp_path):
    refused = walk(Case({"rows.jsonl": b'{"type": "image"}\n'}, "rows.jsonl"), tmp_path).refused
    assert refused.startswith("source hostile (rows.jsonl): no format fits the columns type")
    assert "mend: under data.sources.hostile, map the columns" in refused


def test_a_csv_of_quotes_that_never_close_takes_no_longer_than_others(tmp_path):
    data = b"prompt,completion\nq,a\n" + b'a","\n' * 20_000
    assert walk(Case({"rows.csv": data}, "rows.csv"), tmp_path).kept == 1


CHAT = """
name: broken
model: {{base: "toy:phi4-multimodal"}}
data:
  sources:
{sources}
  train: [{names}]
task: {{kind: chat}}
"""


def recipe(folder: Path, files: dict[str, bytes]) -> Path:
    """A recipe of one source a file."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    names = [name.replace(".", "-") for name in files]
    sources = "\n".join(f"    {name}: {{path: {folder / file}}}" for name, file in zip(names, files, strict=True))
    path = folder / "recipe.yaml"
    path.write_text(CHAT.format(sources=sources, names=", ".join(names)))
    return path


def test_the_command_line_builds_what_is_left_of_broken_files_and_its_ledger_adds_up(tmp_path, luthier):
    good = '{"prompt": "ask %d", "completion": "say so"}'
    lines = [good % 1, good % 2 + good % 3, "{broken", '{"text": 1, "text": 2}', "[1]", '{"text": NaN}', '{"a":' * 3000]
    lines += ['{"t": "\0"}', '{"t": "\udcff"}', '{"prompt": "alone"}', '{"prompt": null}', good % 1, "", '{"te']
    body = "\n".join(lines).encode(errors="surrogateescape")
    files = {
        "a.jsonl": body,
        "b.jsonl.gz": gzip.compress(body.replace(b"ask", b"tell")),
        "c.json": b'[{"prompt": "one", "completion": "two"}, 3, {"prompt": "x", "prompt": "y"}, {"text": NaN}]',
        "d.csv": b'prompt,completion\nthree,four\nx\n"open\n\xff,y\nfive,six\n',
        "e.txt": b"seven eight\n\xff\n\0\n",
    }
    built = luthier("data", "build", recipe(tmp_path, files), "--out", tmp_path / "table", "--cache", tmp_path / "c")
    assert built.returncode == 0, built.stderr
    assert "Traceback" not in built.stderr + built.stdout
    events = [json.loads(line) for line in (tmp_path / "table" / "ledger.jsonl").read_text().splitlines()]
    sums = {event["source"]: event for event in events if "in" in event}
    expected = {"a-jsonl": (13, 1, 1, 11), "b-jsonl-gz": (13, 1, 1, 11), "c-json": (4, 1, 0, 3)}
    expected |= {"d-csv": (5, 2, 0, 3), "e-txt": (3, 1, 0, 2)}
    found = {name: (s["in"], s["kept"], s["merged"], sum(s["dropped"].values())) for name, s in sums.items()}
    assert found == expected
    printed = [line.split() for line in (built.stderr + built.stdout).splitlines()]
    for name, counts in expected.items():
        assert any(line[:5] == [name, *map(str, counts)] for line in printed), name
    drops = [event for event in events if "reason" in event]
    assert len(drops) == sum(counts[3] for counts in expected.values())
    for drop in drops:
        said_in_full(drop, set(files))


UNUSABLE = {
    "torn.jsonl.gz": gzip.compress(random.Random(1).randbytes(5000), mtime=0)[:2000],
    "torn.parquet": b"PAR1 and no more",
    "no format.jsonl": b'{"type": "image"}\n',
    "broken.jsonl": b"{\n" * 5,
    "empty.csv": b"",
    "archive.zip": b"PK\x03\x04",
}


@pytest.mark.parametrize("name", [*UNUSABLE, "not there.jsonl"])
def test_the_command_line_refuses_an_unusable_source_in_one_message(tmp_path, luthier, name):
    path = recipe(tmp_path, {"source.jsonl": b""})
    if name in UNUSABLE:
        (tmp_path / name).write_bytes(UNUSABLE[name])
    named = f"data.sources.source-jsonl.path={tmp_path / name}"
    out = tmp_path / "table"
    built = luthier("data", "build", path, "--out", out, "--cache", tmp_path / "c", "--set", named)
    assert built.returncode == 2, built.stderr
    assert "Traceback" not in built.stderr + built.stdout
    assert built.stderr.count("mend: ") == 1
    assert "source-jsonl" in built.stderr
    assert not out.exists()


def _write_heavy_media(folder: Path) -> None:
    """Small files that claim much memory, and a table that names them.

    Four one-bit pictures of 13,000 x 13,000 pixels, one that claims 60,000 x 60,000, one with a gigabyte of words in a
    chunk, a WAV that claims an hour and has a second, and a FLAC that really has one.
    """
    for number in range(4):
        image = Image.new("1", (13_000, 13_000), number % 2)
        image.putpixel((number, 7), 1 - number % 2)
        image.save(folder / f"large{number}.png")
    small = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(small, "PNG")
    data, packer = small.getvalue(), zlib.compressobj()
    body = b"Comment\0\0" + b"".join(packer.compress(bytes(2**24)) for _ in range(64)) + packer.flush()
    end = data.index(b"IDAT") - 4
    (folder / "words.png").write_bytes(data[:end] + _chunk(b"zTXt", body) + data[end:])
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0))
    (folder / "claims.png").write_bytes(data[:8] + head + data[33:])
    (folder / "hour.wav").write_bytes(lying(sound(16_000, seconds=1.0), 40, "<I", 3600 * 16_000 * 2))
    with soundfile.SoundFile(folder / "hour.flac", "w", 16_000, 1) as file:
        for _ in range(60):
            file.write(np.zeros(60 * 16_000, np.float32))
    (folder / "good.wav").write_bytes(sound(16_000))
    pictures = [path.name for path in sorted(folder.glob("*.png"))]
    rows = [{"image": name, "text": f"The picture {name}."} for name in pictures]
    rows += [{"audio": name, "text": f"The sound {name}."} for name in ("good.wav", "hour.wav", "hour.flac")]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


MEMORY = """
import sys
from pathlib import Path
from luthier.data.building.build import build
from luthier.data.building.request import TableRequest
from luthier.recipe_data import Limits, Source
folder = Path(sys.argv[1])
source = Source(name="heavy", path=str(folder / "source"), format="image_caption")
limits = Limits(maximum_pixels=2 * 10**8)
counts = build(TableRequest(((source, "train"),), limits=limits, graded=False), folder / "table").ledger.counts["heavy"]
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak, counts.kept, *sorted(counts.dropped.elements()))
"""


@pytest.mark.slow
def test_media_that_claim_much_memory_are_built_in_less_than_a_gigabyte(tmp_path):
    place = tmp_path / "source"
    place.mkdir()
    _write_heavy_media(place)
    with at_most(60):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, tmp_path], env=environment(), capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    peak, kept, *reasons = done.stdout.splitlines()[-1].split()
    assert int(kept) == 6, "four large pictures, a small one with a gigabyte of words, and a sound"
    assert reasons == ["too_long", "too_many_pixels", "unreadable_audio"]
    assert int(peak) * 1024 < 10**9
