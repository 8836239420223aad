"""A hub dataset read over a loopback server, and the failures of a hub told by name and within seconds."""

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.data.reading.hubfiles import reason_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_" + "notARealToken" * 2
READ = """
import sys
from luthier.data.building.context import Context
from luthier.data.reading.places import media_bytes
from luthier.data.readers import open_source
from luthier.errors import SourceError
from luthier.recipe_data import Source
try:
    where = {"path": sys.argv[1]} if "://" in sys.argv[1] else {"hub": sys.argv[1]}
    source = Source(name="speech", split=sys.argv[2], **where)
    reading = open_source(source)
    print(reading.sniffed, "at", reading.revision, file=sys.stderr)
    for origin, record in reading:
        print(origin, record["prompt"], media_bytes(record["audio"], Context(source, folder=reading.folder)))
except SourceError as error:
    sys.exit(f"REFUSED {error}")
"""


class Hub:
    """A server of the few routes that listing and downloading use. `files` maps (repo, revision) to contents."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.seen_tokens: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.seen_tokens.add(self.headers.get("authorization", ""))
                status, body = hub.answer(unquote(self.path.split("?")[0]))
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.send_header("x-repo-commit", COMMIT)
                self.send_header("etag", f'"{hash(body) & 0xFFFFFFFF:x}"')
                if status == 404:
                    self.send_header("x-error-code", body.decode())
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str) -> tuple[int, bytes]:
        for (repo, revision), contents in self.files.items():
            revisions = (revision, COMMIT) if revision == "main" else (revision,)
            for name in revisions:
                if path.startswith(f"/api/datasets/{repo}/tree/{name}"):
                    return 200, json.dumps(
                        [
                            {"type": "file", "path": key, "size": len(value), "oid": "0"}
                            for key, value in contents.items()
                        ]
                    ).encode()
                if path in (f"/api/datasets/{repo}/revision/{name}", f"/api/datasets/{repo}"):
                    return 200, json.dumps(
                        {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": key} for key in contents]}
                    ).encode()
                start = f"/datasets/{repo}/resolve/{name}/"
                if path.startswith(start) and path[len(start) :] in contents:
                    return 200, contents[path[len(start) :]]
        known = any(f"/{repo}" in path for repo, _ in self.files)
        return 404, b"RevisionNotFound" if known else b"RepoNotFound"


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    yield server
    server.server.shutdown()
    server.server.server_close()


def read(url: str, folder: Path, repo: str, split: str = "train") -> tuple[int, str, str]:
    source_root = str(Path(__file__).parents[3] / "src")
    kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", READ, repo, split],
        capture_output=True,
        text=True,
        timeout=60,
        env={
            **kept,
            "HF_ENDPOINT": url,
            "HF_HOME": str(folder),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": source_root,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
        },
    )
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


def parquet(prompt: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_pylist([{"audio": {"bytes": b"snd", "path": None}, "prompt": prompt, "grade": 3.0}]), sink
    )
    return sink.getvalue().to_pybytes()


def test_shards_of_a_split_are_read_in_order(hub: Hub, tmp_path: Path) -> None:
    hub.files["o/speech", "main"] = {
        "data/train-00001-of-00002.parquet": parquet("second"),
        "README.md": b"x",
        "data/train-00000-of-00002.parquet": parquet("first"),
        "data/test-00000-of-00001.parquet": parquet("other"),
    }
    code, out, err = read(hub.url, tmp_path, "o/speech")
    assert code == 0, err
    assert out.splitlines() == [
        "train-00000-of-00002.parquet#1 first b'snd'",
        "train-00001-of-00002.parquet#1 second b'snd'",
    ]
    assert f"2 files of parquet at {COMMIT}" in err
    assert f"Bearer {TOKEN}" in hub.seen_tokens


@pytest.mark.parametrize("name", ["train.json", "data/train.jsonl", "train-0.jsonl.gz", "rows.json"])
def test_json_of_a_split_packed_or_not(hub: Hub, tmp_path: Path, name: str) -> None:
    line = b'{"audio": "data:,snd", "prompt": "p", "grade": 2}\n'
    hub.files["o/lines", "main"] = {
        name: gzip.compress(line) if name.endswith("gz") else line * 2,
        "config.json": b"{}",
    }
    code, out, err = read(hub.url, tmp_path, "o/lines")
    assert code == 0, err
    assert out.splitlines()[0] == f"{name.rsplit('/', 1)[-1]}#1 p b'snd'"
    assert f"at {COMMIT}" in err


def test_one_file_by_its_address(hub: Hub, tmp_path: Path) -> None:
    hub.files["o/speech", "main"] = {"data/some.parquet": parquet("first")}
    code, out, err = read(hub.url, tmp_path, "hf://datasets/o/speech/data/some.parquet")
    assert (code, out) == (0, "some.parquet#1 first b'snd'\n"), err
    assert f"1 file of parquet at {COMMIT}" in err
    code, _, err = read(hub.url, tmp_path, "hf://datasets/o/speech/data/none.parquet")
    assert code == 1
    assert "hub dataset o/speech: data/none.parquet" in err


def test_the_converted_parquet_and_then_a_table_with_its_sound(hub: Hub, tmp_path: Path) -> None:
    hub.files["o/raw", "main"] = {
        "train.jsonl": b'{"audio": "wavs/a.wav", "prompt": "raw", "grade": 2}\n',
        "wavs/a.wav": b"RIFF",
    }
    code, out, err = read(hub.url, tmp_path / "a", "o/raw")
    assert (code, out) == (0, "train.jsonl#1 raw b'RIFF'\n"), err
    hub.files["o/raw", "refs/convert/parquet"] = {
        "default/train/0000.parquet": parquet("converted"),
        "default/partial-train/0000.parquet": parquet("part"),
    }
    code, out, err = read(hub.url, tmp_path / "b", "o/raw")
    assert (code, out) == (0, "0000.parquet#1 converted b'snd'\n"), err


def test_what_is_missing_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.files["o/speech", "main"] = {"data/train-00000-of-00001.parquet": parquet("first")}
    code, _, err = read(hub.url, tmp_path, "o/speech", "dev")
    assert code == 1
    assert "split 'dev'" in err
    assert "data/train-00000-of-00001.parquet" in err
    code, _, err = read(hub.url, tmp_path, "o/nothing")
    assert code == 1
    assert "source speech: hub dataset o/nothing: no such dataset" in err
    assert "--set data.sources.speech.path=FILE" in err


def test_a_reason_is_one_line_without_a_token() -> None:
    assert reason_of(ValueError(f"bad header Bearer {TOKEN}\nmore")) == "ValueError: bad header Bearer hf_***"


def test_nothing_listens(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    begun = time.monotonic()
    code, _, err = read(url, tmp_path, "o/speech")
    assert time.monotonic() - begun < 15
    assert code == 1
    assert "REFUSED source speech: hub dataset o/speech" in err
    assert "--set data.sources.speech.path=FILE" in err


def test_a_hub_that_accepts_and_never_answers(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        begun = time.monotonic()
        code, _, err = read(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path, "o/speech")
    assert time.monotonic() - begun < 16
    assert code == 1
    assert "hub dataset o/speech" in err
