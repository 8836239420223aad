"""The llama.cpp engine: its answers beside transformers', and a stand-in that speaks llama-server's protocol."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from luthier.engines import llamaserver
from luthier.engines.base import ChatRequest, Piece, Sampling
from luthier.engines.gguf_header import read_header
from luthier.engines.llamacpp import LlamaCpp, gguf_answers
from luthier.engines.llamacpp_model import answer
from luthier.errors import DataError, LuthierError, RequestError
from luthier.evaluate.generate import prompt_ids
from luthier.exporting.adapter_gguf import write_adapter_gguf
from luthier.exporting.gguf_file import write_gguf
from luthier.models.chat import ChatTemplate, load_tokenizer
from luthier.schema import Message, Part
from support import fakellama
from support.ggufs import greedy, model_folder, plain

pytest.importorskip("gguf")
QUESTION = (Message("user", (Part("text", "What is tuned — ütf 🎵?"),)),)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A toy's folder and GGUF, and those of an adapter on it."""
    place = tmp_path_factory.mktemp("gguf")
    folder = model_folder(place / "model", "llama")
    whole = write_gguf(folder, place / "model.gguf", "f32").file
    model = get_peft_model(plain(folder), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    model.save_pretrained(str(place / "adapter"))
    adapter = write_adapter_gguf(place / "adapter", folder, place / "tune.gguf", "f32")["file"]
    return {"folder": folder, "gguf": whole, "adapter": adapter}


@pytest.fixture
def engine(files: dict[str, Path]) -> Iterator[LlamaCpp]:
    pytest.importorskip("llama_cpp")
    made = LlamaCpp(files["gguf"], adapters=[files["adapter"]], context=256)
    yield made
    made.close()


def ask(engine: LlamaCpp, cancel: Event | None = None, model: str = "", **sampling: Any) -> list[Piece]:
    chosen = Sampling(**{"max_new_tokens": 20, "temperature": 0.0, **sampling})
    return list(engine.stream(ChatRequest(model or engine.models()[0].id, QUESTION, chosen), cancel))


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_greedy_answers_are_those_of_transformers(engine: LlamaCpp, files: dict[str, Path]) -> None:
    tokenizer = load_tokenizer("toy:llama")
    ids = prompt_ids(ChatTemplate.of(tokenizer), QUESTION)
    wanted = greedy(plain(files["folder"]), [ids], 20)[0]
    pieces = ask(engine)
    assert text_of(pieces) == tokenizer.decode(wanted, skip_special_tokens=True)
    assert pieces[-1].prompt_tokens == len(ids)
    assert pieces[-1].completion_tokens == len(wanted)
    assert [piece.finish for piece in pieces[:-1]] == [""] * (len(pieces) - 1)
    assert gguf_answers(files["gguf"], [ids], 20) == [wanted]


def test_a_tokenizer_beside_the_file_reads_the_same(engine: LlamaCpp, files: dict[str, Path]) -> None:
    other = LlamaCpp(files["gguf"], tokenizer=files["folder"], context=256)
    try:
        assert ask(other)[-1] == ask(engine)[-1]
        assert text_of(ask(other)) == text_of(ask(engine))
    finally:
        other.close()


def test_adapters_are_models_and_take_turns(engine: LlamaCpp) -> None:
    plain_model, tuned = engine.models()
    assert (plain_model.id, tuned.id) == ("gguf:model", "gguf:model+tune")
    first = text_of(ask(engine))
    other = text_of(ask(engine, model=tuned.id))
    assert other != first
    assert [text_of(ask(engine)), text_of(ask(engine, model=tuned.id))] == [first, other]


def test_a_seed_draws_the_same_answer_and_stops_end_one(engine: LlamaCpp) -> None:
    drawn = [text_of(ask(engine, temperature=1.0, top_p=0.95, seed=seed, max_new_tokens=60)) for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    stop = drawn[0][20:24]
    stopped = ask(engine, temperature=1.0, top_p=0.95, seed=3, max_new_tokens=60, stop=(stop,))
    assert text_of(stopped) == drawn[0][: drawn[0].index(stop)]
    assert stopped[-1].finish == "stop"


def test_an_answer_ends_when_it_is_cancelled_and_the_next_one_is_whole(engine: LlamaCpp) -> None:
    cancel, whole = Event(), text_of(ask(engine))
    pieces = engine.stream(ChatRequest(engine.models()[0].id, QUESTION, Sampling(200, temperature=1.0)), cancel)
    next(pieces)
    cancel.set()
    assert list(pieces)[-1].finish == "cancelled"
    assert text_of(ask(engine)) == whole


def test_a_crash_costs_one_answer(engine: LlamaCpp) -> None:
    whole = text_of(ask(engine))
    process = engine.server()._process  # asked again, it may be the next one
    process.kill()
    process.wait()
    assert text_of(ask(engine)) == whole


def test_what_it_cannot_answer_is_refused_with_a_sentence(engine: LlamaCpp) -> None:
    with pytest.raises(RequestError, match="no such model"):
        ask(engine, model="gguf:other")
    name = engine.models()[0].id
    with pytest.raises(RequestError, match="reads 255"):
        engine.stream(ChatRequest(name, (Message("user", (Part("text", "word " * 400),)),)))
    with pytest.raises(RequestError, match="text alone"):
        engine.stream(ChatRequest(name, (Message("user", (Part("image", media="sha256:1"),)),)))


def test_another_key_is_turned_away_and_odd_requests_are_answered(engine: LlamaCpp) -> None:
    server = engine.server()
    for path, body, words in (("/completion", {"prompt": []}, "0 tokens"), ("/other", {}, "no such path")):
        with pytest.raises(RequestError, match=words):
            server._post(path, {"n_predict": 1, **body})
    with pytest.raises(RequestError, match="longer than any text"):
        server.tokenize("a" * 9_000_000)
    server._key = "another"
    with pytest.raises(RequestError, match="another key"):
        server.tokenize("a")


def test_the_process_ends_with_who_started_it(engine: LlamaCpp) -> None:
    process = engine.server()._process
    process.stdin.close()  # type: ignore[union-attr]
    process.stdin = None
    process.wait(5)


def test_a_file_that_llama_cpp_refuses_is_told_with_its_reason(files: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(files["gguf"].read_bytes()[:-100_000])
    with pytest.raises(RequestError, match=r"does not load it.*cannot load"):
        LlamaCpp(cut)


def test_without_llama_cpp_the_install_lines_are_given(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamaserver.shutil, "which", lambda name: None)
    monkeypatch.setattr(llamaserver.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"no llama\.cpp here") as caught:
        gguf_answers(files["gguf"], [[1]], 1)
    assert "luthier[llamacpp]" in caught.value.mend
    monkeypatch.setenv("LLAMA_SERVER", "/nowhere/llama-server")
    with pytest.raises(RequestError, match="is no program"):
        LlamaCpp(files["gguf"])


# llama-server itself was not run: the stand-in follows its documentation and source.


@pytest.fixture
def native(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A llama-server on the machine; returns the log of what it is asked."""
    program = tmp_path / "llama-server"
    program.write_text(f"#!{sys.executable}\n{Path(fakellama.__file__).read_text()}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("LLAMA_SERVER", str(program))
    monkeypatch.setenv("FAKE_LLAMA_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def test_a_native_server_is_preferred_and_asked_in_its_words(native: Path, files: dict[str, Path]) -> None:
    engine = LlamaCpp(files["gguf"], 3, adapters=[files["adapter"]], tokenizer=files["folder"], context=128)
    try:
        pieces = ask(engine, model="gguf:model+tune", temperature=0.5, top_k=7, seed=9, stop=("x",))
    finally:
        engine.close()
    assert text_of(pieces) == "one two three"
    assert (pieces[-1].finish, pieces[-1].completion_tokens) == ("stop", 4)
    started, *_, asked = (json.loads(line) for line in native.read_text().splitlines())
    words = started["words"]
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--threads") + 1] == "3"
    assert words[words.index("--ctx-size") + 1] == "128"
    assert words[words.index("--lora") + 1] == str(files["adapter"])
    assert "--lora-init-without-apply" in words
    assert not any("key" in word for word in words)
    assert asked["path"] == "/completion"
    assert asked["lora"] == [{"id": 0, "scale": 1.0}]
    assert (asked["top_k"], asked["seed"], asked["stop"], asked["min_p"]) == (7, 9, ["x"], 0.0)
    assert all(isinstance(token, int) for token in asked["prompt"])


@pytest.mark.parametrize(
    ("how", "words"),
    [("refuse", "exceeds the available context"), ("die", "middle of an answer"), ("halt", "out of memory")],
)
def test_a_native_servers_troubles_are_told(
    how: str, words: str, native: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_LLAMA", how)
    engine = LlamaCpp(files["gguf"], tokenizer=files["folder"])
    try:
        with pytest.raises(LuthierError, match=words):
            ask(engine)
    finally:
        engine.close()


def test_a_line_that_was_torn_is_the_end_of_an_answer(
    native: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_LLAMA", "tear")
    engine = LlamaCpp(files["gguf"], tokenizer=files["folder"])
    try:
        with pytest.raises(LuthierError, match="middle of an answer"):
            ask(engine)
    finally:
        engine.close()


def test_a_native_server_ends_with_who_started_it_even_when_that_one_is_killed(
    native: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    script = (
        "import sys, time; from pathlib import Path; from luthier.engines.llamaserver import LlamaServer, Loading\n"
        "made = LlamaServer(Loading(Path(sys.argv[1]))); print('ready', flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", script, str(files["gguf"])]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as asker:
        assert asker.stdout is not None
        assert asker.stdout.readline() == "ready\n"
        pid = next(said["pid"] for said in map(json.loads, native.read_text().splitlines()) if "pid" in said)
        asker.kill()
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()


def test_nothing_is_told_to_a_stranger_on_the_port(
    native: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that takes any key, as a llama-server without one does."""
    told: list[bytes] = []

    class Stranger(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None: ...

        def do_GET(self) -> None:
            told.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"tokens": []}')

        do_POST = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        free = llamaserver._free_port()
        ports = iter([stranger.server_address[1], free])
        monkeypatch.setattr(llamaserver, "_free_port", lambda: next(ports))
        engine = LlamaCpp(files["gguf"], tokenizer=files["folder"])
        try:
            assert text_of(ask(engine)) == "one two three"
        finally:
            engine.close()
            stranger.shutdown()
    assert set(told) <= {b"", b'{"content": ""}'}


def test_a_native_server_that_does_not_start_says_why(
    native: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_LLAMA", "unloadable")
    began = time.monotonic()
    with pytest.raises(RequestError, match="failed to load model"):
        LlamaCpp(files["gguf"])
    assert time.monotonic() - began < 10


class Speaking:
    """A model that says given bytes, a token each; token -1 ends."""

    length, adapters = 1000, 0

    def __init__(self, said: list[bytes]) -> None:
        self.said = said

    def adapt(self, scales: list[float]) -> None: ...

    def read(self, ids: list[int]) -> None: ...

    def tokens(self, ask: dict[str, Any]) -> Iterator[int]:
        yield from range(min(len(self.said), ask["n_predict"]))
        yield -1

    def ends(self, token: int) -> bool:
        return token == -1

    def piece(self, token: int) -> bytes:
        return self.said[token]


@given(st.text("abü🎵 ", max_size=40), st.lists(st.text("abü🎵 ", min_size=1, max_size=4), max_size=3), st.randoms())
@settings(max_examples=200, deadline=None)
def test_pieces_add_up_and_no_part_of_a_stop_text_leaks(text: str, stops: list[str], rng: Any) -> None:
    data, said = text.encode(), []
    while data:
        size = rng.randint(1, 3)
        said.append(data[:size])
        data = data[size:]
    events = list(answer(Speaking(said), {"prompt": [1], "n_predict": 999, "stop": stops}))  # type: ignore[arg-type]
    found = "".join(event["content"] for event in events)
    first = min((text.find(stop) for stop in stops if stop in text), default=len(text))
    if first == len(text):
        assert found == text
        assert events[-1]["stop_type"] == "eos"
    else:
        # A stop text is met as soon as it is whole: of two that overlap, the one that ends first.
        assert text.startswith(found)
        assert not any(stop in found for stop in stops)
        assert any(text[len(found) :].startswith(stop) for stop in stops)
        assert events[-1]["stop_type"] == "word"


def test_a_header_is_read_and_its_facts_found(files: dict[str, Path]) -> None:
    header = read_header(files["gguf"])
    assert (header.architecture, header.context_length, header.even_length) == ("llama", 8192, 8192)
    assert header.tokens[636] == "<|end|>"
    assert (header.special("bos"), header.special("eot"), header.special("mask")) == (632, 636, None)
    assert "message['role']" in header.template


@given(st.integers(0, 8000), st.binary(min_size=1, max_size=12))
@settings(max_examples=150, deadline=None)
def test_a_header_that_lies_is_refused_at_once(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path], place: int, lie: bytes
) -> None:
    data = bytearray(files["gguf"].read_bytes()[:9000])
    data[place : place + len(lie)] = lie
    file = tmp_path_factory.getbasetemp() / "lying.gguf"
    file.write_bytes(data)
    began = time.monotonic()
    with pytest.raises(DataError):
        read_header(file)  # cut short in any case: no lie about a size is believed beyond the file's own
    assert time.monotonic() - began < 2


def test_what_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>")
    for file in (tmp_path / "page.gguf", tmp_path / "none.gguf"):
        with pytest.raises(DataError, match=r"give a \.gguf file"):
            read_header(file)
