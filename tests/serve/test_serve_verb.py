"""`luthier serve`: its words, what it refuses before it loads anything, and a real run that is talked to."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from luthier.cli import main, parser
from luthier.cliserve import settings_of
from luthier.errors import RequestError
from luthier.serve import server
from luthier.serve.guard import EVENTS_A_MINUTE
from luthier.serve.server import open_services
from luthier.serve.settings import ServeSettings, SpeechSettings
from support.children import ROOT, Luthier, environment
from support.fakeserve import tone, wav
from support.servers import Served


def settings(*words: str) -> ServeSettings:
    return settings_of(parser().parse_args(["serve", *words]))


def test_every_word_reaches_its_setting() -> None:
    found = settings(
        *"a b --port 0 --host ::1 --gguf m.gguf --speech whisper --speech-model tiny --language no --queue 3".split(),
        *"--threads 2 --store s.sqlite --watch runs --origin https://iris.example".split(),
    )
    assert found == ServeSettings(
        runs=(Path("a"), Path("b")),
        host="::1",
        port=0,
        watched=Path("runs"),
        store=Path("s.sqlite"),
        gguf=Path("m.gguf"),
        threads=2,
        queue_size=3,
        allowed_origins=("https://iris.example",),
        speech=SpeechSettings("whisper", "tiny", "no"),
    )
    assert settings("a") == ServeSettings(runs=(Path("a"),))


def test_a_folder_to_watch_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["serve", "a", "--watch", str(tmp_path / "rnus")]) == 2
    assert "rnus is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--port", "70000"],
        ["--queue", "0"],
        ["--threads", "-1"],
        ["--origin", "iris.example"],
        ["--origin", "https://a.example/x"],
    ],
)
def test_numbers_and_origins_that_cannot_be_meant_are_refused(words: list[str]) -> None:
    with pytest.raises(RequestError, match=words[0]):
        settings(*words)


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; sys.argv = ['luthier', 'serve', '--help']\n"
        "from luthier.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'gradio', 'fastapi', 'uvicorn', 'prometheus_client', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert "luthier serve" in done.stdout
    assert done.stderr.strip() == "[]"


def test_a_taken_port_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "open_services", lambda settings: pytest.fail("models were loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match=f"127.0.0.1:{port} cannot be had"):
            server.serve(ServeSettings(port=port), lambda address, services: None)
    with pytest.raises(RequestError, match="other machines, with no API key"):
        server.serve(ServeSettings(host="0.0.0.0"), lambda address, services: None)
    with pytest.raises(RequestError, match=r"--host no\.such\.host\.invalid"):
        server.serve(ServeSettings(host="no.such.host.invalid"), lambda address, services: None)


def test_nothing_to_serve_and_no_run_are_refused(luthier: Luthier, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nothing to serve"):
        open_services(ServeSettings())
    done = luthier("serve", tmp_path / "none", "--port", "0", "--store", tmp_path / "s.sqlite")
    assert done.returncode == 2
    assert "mend:" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "s.sqlite").exists()


@contextlib.contextmanager
def served(*words: object, **more: Any) -> Iterator[Served]:
    made = Served(*words, **more)
    try:
        yield made
    finally:
        made.process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_stopped_ends_its_answers_first(tmp_path: Path, number: int) -> None:
    body = {"model": "one/sft", "messages": [{"role": "user", "content": "a long one"}], "stream": True}
    with served("--no-app", fakes=tmp_path) as one:
        with httpx.stream("POST", f"{one.url}/v1/chat/completions", json=body, timeout=20) as answer:
            lines = answer.iter_lines()
            assert "role" in next(lines)
            one.process.send_signal(number)
            *_, last = [line for line in lines if line]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "cut_off"
        out, said = one.process.communicate(timeout=20)
    assert (one.process.returncode, out) == (0, "")
    assert said.splitlines()[-1] == "luthier: stopped"
    assert "Traceback" not in said


def test_a_client_cannot_name_the_address_by_which_it_is_counted(tmp_path: Path) -> None:
    with served("--no-app", fakes=tmp_path) as one, httpx.Client() as client:
        told = (
            client.post(f"{one.url}/x", headers={"x-forwarded-for": f"10.0.{number // 250}.{number % 250}"}).status_code
            for number in range(EVENTS_A_MINUTE + 50)
        )
        assert 429 in told


@pytest.mark.slow
def test_a_chat_run_is_talked_to_and_the_server_ends_in_peace(tmp_path: Path) -> None:
    from support.chatrun import chat_run

    run = chat_run(tmp_path / "chats")
    store = tmp_path / "votes.sqlite"
    with served(run, "--speech", "pocketsphinx", "--store", store) as one:
        ids = ["run/main", "run/main@step-000010", "run/main@step-000005", "base:toy:llama"]
        assert one.about["models"] == ids
        client = openai.OpenAI(base_url=f"{one.url}/v1", api_key="none", max_retries=0)
        more: dict[str, Any] = {"temperature": 0, "max_tokens": 8}

        def ask(model: str, stream: bool = False) -> str:
            turns: list[Any] = [{"role": "user", "content": "red blue green"}]
            if not stream:
                return str(
                    client.chat.completions.create(model=model, messages=turns, **more).choices[0].message.content
                )
            chunks = client.chat.completions.create(model=model, messages=turns, stream=True, **more)
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

        answers = {model: ask(model) for model in ids}
        assert answers == {model: ask(model, stream=True) for model in ids}
        assert answers["run/main"] == answers["run/main@step-000010"]
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(ask, ["run/main"] * 8)) == {answers["run/main"]}
        heard = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", wav(tone(1.0, peak=0.0))))
        assert heard.text == ""
        page = httpx.get(one.url)
        assert page.status_code == 200
        code, said = one.end(signal.SIGINT)
    assert code == 0
    assert "luthier: stopped" in said
    assert "Traceback" not in said
    assert store.exists()


@pytest.mark.slow
def test_a_verdict_run_judges_behind_a_key_and_says_it_nowhere(finished: Path, tmp_path: Path) -> None:
    key = "kept-from-everyone-else"
    words = (finished, "--no-app", "--store", tmp_path / "s.sqlite", "--speech", "pocketsphinx", "--queue", "1")
    with served(*words, LUTHIER_API_KEY=key) as one:
        form = {"files": {"file": wav(tone(1.0))}, "data": {"question": "Describe the picture."}, "timeout": 60}
        assert httpx.post(f"{one.url}/v1/verdicts", **form).status_code == 401  # type: ignore[arg-type]
        answer = httpx.post(f"{one.url}/v1/verdicts", headers={"authorization": f"Bearer {key}"}, **form)  # type: ignore[arg-type]
        (verdict,) = answer.json()["data"]
        assert verdict["pass"] == (verdict["p_pass"] > 0.5)
        assert 0 < verdict["p_pass_calibrated"] < 1
        assert answer.json()["model"] == one.about["models"][0]
        code, said = one.end(signal.SIGTERM)
    assert code == 0
    assert key not in said + json.dumps(one.about)
