"""Who may come in: hosts, origins, the key, sizes, the pace; and what browsers are told."""

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from luthier.errors import RequestError
from luthier.serve import guard
from luthier.serve.guard import Rules, check_exposure, is_loopback
from luthier.serve.server import create_server
from luthier.serve.services import Services
from luthier.serve.settings import Limits, ServeSettings
from support.fakeserve import fake_services
from support.servers import running

LIMITS = Limits(audio_bytes=2**20, picture_bytes=2**20)
CHAT = {"model": "one/sft", "messages": [{"role": "user", "content": "hello"}]}
KEY = "a key that is long enough"


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    settings = ServeSettings(allowed_origins=("https://iris.example/",), limits=LIMITS)
    made = fake_services(tmp_path_factory.mktemp("guard"), settings)
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(services: Services) -> Iterator[str]:
    with running(create_server(services, pages=False)) as address:
        yield address


@pytest.fixture
def closed(services: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with a key."""
    monkeypatch.setenv("LUTHIER_API_KEY", KEY)
    with running(create_server(services, pages=False)) as address:
        yield address


def ask(url: str, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{url}/v1/chat/completions", json=CHAT, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "localhost.evil", "[x]"]
)
def test_a_host_of_another_name_is_refused(url: str, host: str) -> None:
    for path in ("/healthz", "/v1/models", "/"):
        assert httpx.get(url + path, headers={"host": host}).status_code in (400, 421)  # 400: no Host at all
    assert ask(url, host=host).status_code in (400, 421)


@pytest.mark.parametrize(
    "host", ["localhost:1", "127.0.0.1", "LOCALHOST", "[::1]:7860", "192.168.1.7:80", "iris.example"]
)
def test_addresses_and_names_that_were_told_are_taken(url: str, host: str) -> None:
    assert httpx.get(f"{url}/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"origin": "https://iris.example.evil"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
def test_a_post_of_another_site_is_refused_before_its_body_is_read(
    url: str, services: Services, headers: dict[str, str]
) -> None:
    chat: Any = services.chat
    before = len(chat.asked)
    answer = ask(url, **headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin")
    assert len(chat.asked) == before


@pytest.mark.parametrize("own", [True, False])
def test_its_own_pages_programs_and_sites_that_were_told_may_post(url: str, own: bool) -> None:
    assert ask(url, **({"origin": url, "sec_fetch_site": "same-origin"} if own else {})).status_code == 200
    answer = ask(url, origin="https://iris.example", sec_fetch_site="cross-site")
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://iris.example"


def test_a_site_that_was_not_told_is_given_no_leave_to_read(url: str) -> None:
    answer = httpx.get(f"{url}/v1/models", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers
    preflight = httpx.options(
        f"{url}/v1/chat/completions",
        headers={"origin": "https://evil.example", "access-control-request-method": "POST"},
    )
    assert preflight.status_code == 400
    assert "access-control-allow-origin" not in preflight.headers


def test_browsers_are_told_to_keep_the_server_apart(url: str) -> None:
    for answer in (httpx.get(f"{url}/healthz"), httpx.get(f"{url}/healthz", headers={"host": "evil"}), ask(url)):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "http:" not in policy
        assert "frame-ancestors 'self' https://iris.example" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert "server" not in answer.headers or "luthier" not in answer.headers["server"]


def test_without_the_key_nothing_but_readiness_is_told(closed: str) -> None:
    for path in ("/v1/models", "/metrics", "/", "/v1/none"):
        assert httpx.get(closed + path).status_code == 401
    assert ask(closed).json()["error"]["type"] == "authentication_error"
    assert httpx.get(f"{closed}/").headers["www-authenticate"].startswith("Basic")
    assert "www-authenticate" not in ask(closed).headers
    assert httpx.get(f"{closed}/healthz").status_code == 200


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer {KEY}", 200),
        ("Basic " + base64.b64encode(f"anyone:{KEY}".encode()).decode(), 200),
        (f"Bearer {KEY[:-1]}", 401),
        (f"Bearer {KEY}x", 401),
        (f"Token {KEY}", 401),
        (KEY, 401),
        ("Bearer", 401),
        ("Basic ***", 401),
        ("Basic " + base64.b64encode(KEY.encode()).decode(), 401),
        ("Basic " + base64.b64encode(f"{KEY}:".encode()).decode(), 401),
    ],
)
def test_the_key_is_taken_as_bearer_and_as_a_browsers_password(closed: str, given: str, status: int) -> None:
    assert ask(closed, authorization=given).status_code == status


def test_the_key_is_in_no_repr(services: Services) -> None:
    assert KEY not in repr(Rules.of(services.settings, KEY))


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/audio/transcriptions", "/v1/verdicts"])
def test_a_body_that_is_too_large_is_refused_whether_or_not_its_length_is_said(url: str, path: str, said: bool) -> None:
    start = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'

    def body() -> Iterator[bytes]:
        yield start
        for _ in range(50):
            yield b"x" * 2**20

    content: Any = start + b"x" * (50 * 2**20) if said else body()
    headers = {"content-type": "multipart/form-data; boundary=x" if "chat" not in path else "application/json"}
    answer = httpx.post(url + path, content=content, headers=headers, timeout=30)
    assert answer.status_code == 413
    assert "larger than" in answer.text
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_bodies_together_are_bounded_too(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BYTES_AT_ONCE", 3 * 2**20)
    sent, go = threading.Event(), threading.Event()

    def slow(whole: bytes) -> Iterator[bytes]:
        yield whole[: 2 * 2**20]
        sent.set()
        assert go.wait(30)
        yield whole[2 * 2**20 :]

    with running(create_server(services, pages=False)) as url:
        path = f"{url}/v1/chat/completions"
        whole = json.dumps(CHAT).encode() + b" " * (2 * 2**20)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(httpx.post, path, content=slow(whole), headers={"content-type": "application/json"})
            assert sent.wait(20)
            time.sleep(0.3)  # what lies in the socket is read, or the second one could be there before it
            for _ in range(50):
                second = httpx.post(path, content=whole, headers={"content-type": "application/json"})
                if second.status_code == 503:
                    break
            assert (second.status_code, second.json()["error"]["code"]) == (503, "memory")
            assert httpx.post(path, json=CHAT).status_code == 200
            go.set()
            assert first.result().status_code == 200
        assert httpx.post(path, content=whole, headers={"content-type": "application/json"}).status_code == 200


def test_a_page_that_sends_events_without_end_is_slowed(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "EVENTS_A_MINUTE", 5)
    with running(create_server(services, pages=False)) as url, httpx.Client() as client:
        statuses = [client.post(f"{url}/gradio_api/queue/join", json={}).status_code for _ in range(7)]
        assert statuses == [404] * 5 + [429] * 2
        answer = client.post(f"{url}/gradio_api/queue/join", json={})
        assert 1 <= int(answer.headers["retry-after"]) <= 61
        assert client.post(f"{url}/v1/chat/completions", json=CHAT).status_code == 200
        refused = 'luthier_turned_away_total{reason="pace"} 3.0'
        assert refused in client.get(f"{url}/metrics").text


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.8.8", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.7", False), ("lab.example", False)],
)  # fmt: skip
def test_others_can_reach_a_server_only_with_a_key(host: str, alone: bool) -> None:
    settings = ServeSettings(host=host)
    assert is_loopback(host) == alone
    check_exposure(settings, KEY)
    for key in ("", "short"):
        if alone:
            check_exposure(settings, key)
            continue
        with pytest.raises(RequestError, match="can be reached from other machines") as refused:
            check_exposure(settings, key)
        assert "LUTHIER_API_KEY" in refused.value.mend
        assert not key or key not in str(refused.value)


def test_a_server_for_others_goes_by_the_machines_name() -> None:
    rules = Rules.of(ServeSettings(host="0.0.0.0"), KEY)
    assert socket.gethostname().lower() in rules.names
    assert socket.gethostname().lower() not in Rules.of(ServeSettings(), "").names


def test_the_pages_stand_behind_the_same_guard(services: Services, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    with running(create_server(replace(services))) as url, httpx.Client(follow_redirects=True) as client:
        page = client.get(url)
        assert page.status_code == 200
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert client.get(url, headers={"host": "evil.example"}).status_code == 421
        join = f"{url}/gradio_api/queue/join"
        assert client.post(join, json={}, headers={"origin": "https://evil.example"}).status_code == 403
        secret = tmp_path / "secret.txt"
        secret.write_text("x")
        for wanted in ("/etc/passwd", str(secret), str(services.settings.store), "http://127.0.0.1:9/"):
            assert client.get(f"{url}/gradio_api/file={wanted}").status_code == 403
        large = {"files": ("a.wav", b"x" * (2**20 + 1))}
        assert client.post(f"{url}/gradio_api/upload", files=large).status_code == 413
        assert client.get(f"{url}/monitoring").status_code in (403, 404)
        assert client.get(f"{url}/v1/none").json()["error"]["code"] == "unknown_url"
        assert client.get(f"{url}/v1/models").json()["object"] == "list"
        origin = client.get(url, headers={"origin": "https://evil.example"}).headers
        assert "access-control-allow-origin" not in origin
