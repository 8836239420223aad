"""What a server counts of itself, read back with Prometheus' own parser."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from luthier.serve.server import create_server
from luthier.serve.settings import ServeSettings
from support.fakeserve import fake_services, tone, wav
from support.servers import running


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    services = fake_services(tmp_path, ServeSettings())
    with running(create_server(services, pages=False)) as address:
        yield address
    services.close()


def figures(url: str) -> dict[tuple[str, ...], float]:
    """Every sample, by its name and the values of its labels."""
    answer = httpx.get(f"{url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_requests_tokens_speech_and_verdicts_are_counted(url: str) -> None:
    body = {"model": "one/sft", "messages": [{"role": "user", "content": "hello"}]}
    for stream in (True, False):
        httpx.post(f"{url}/v1/chat/completions", json=body | {"stream": stream})
    httpx.post(f"{url}/v1/chat/completions", json=body | {"model": "nobody"})
    httpx.post(f"{url}/v1/audio/transcriptions", files={"file": wav(tone(2.0))})
    files = [("file", wav(tone(peak=0.9))), ("file", wav(tone(peak=0.2))), ("file", b"<html>")]
    httpx.post(f"{url}/v1/verdicts", files=files)
    httpx.get(f"{url}/v1/models/one/sft")
    httpx.get(f"{url}/v1/models/some/other/{'x' * 50}")
    httpx.get(f"{url}/healthz", headers={"host": "evil.example"})
    found = figures(url)
    chat = "/v1/chat/completions"
    assert found["luthier_requests_total", chat, "200"] == 2
    assert found["luthier_requests_total", chat, "404"] == 1
    assert found["luthier_requests_total", "/v1/models", "200"] == 1
    assert found["luthier_requests_total", "/v1/models", "404"] == 1
    assert found["luthier_request_seconds_count", chat] == 3
    assert found["luthier_tokens_total", "one/sft"] == 12
    assert found["luthier_first_piece_seconds_count",] == 2
    assert found["luthier_tokens_per_second_count",] == 2
    assert found["luthier_speech_seconds_total",] == pytest.approx(2.0)
    assert found["luthier_verdicts_total", "speaking/1764", "true"] == 1
    assert found["luthier_verdicts_total", "speaking/1764", "false"] == 1
    assert found["luthier_turned_away_total", "host"] == 1
    assert found["luthier_queue_ended_total", "done"] == 4
    assert found["luthier_queue_waiting",] == 0
    assert found["luthier_queue_refused_total", "full"] == 0
    labels = {label for name, *labels in found for label in labels}
    assert not any("xxx" in label or "nobody" in label for label in labels)


def test_two_servers_of_one_process_count_apart(url: str, tmp_path: Path) -> None:
    services = fake_services(tmp_path / "other")
    with running(create_server(services, pages=False)) as other:
        httpx.get(f"{other}/healthz")
        assert figures(other)["luthier_requests_total", "/healthz", "200"] == 1
        assert ("luthier_requests_total", "/healthz", "200") not in figures(url)
    services.close()
