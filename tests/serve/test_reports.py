"""Pages of runs through the server: those that were named, sealed, and nothing else."""

from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from luthier.serve.reports import Reports, report_routes


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def client(reports: Reports) -> TestClient:
    app = FastAPI()
    app.include_router(report_routes(reports))
    return TestClient(app)


def test_a_page_is_shown_as_it_is_now_and_sealed(tmp_path: Path, reports: Reports, client: TestClient) -> None:
    page = tmp_path / "report.html"
    page.write_text("<h1>one</h1>")
    address = reports.address(page)
    assert address == reports.address(page)
    assert client.get(address).text == "<h1>one</h1>"
    page.write_text("<h1>two</h1>")
    found = client.get(address)
    assert found.text == "<h1>two</h1>"
    assert found.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert found.headers["content-type"].startswith("text/html")
    page.unlink()
    assert client.get(address).status_code == 404


@pytest.mark.parametrize("token", ["x", "..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd", "", "a/b", "%00", "é"])
def test_nothing_that_was_not_named_is_shown(tmp_path: Path, reports: Reports, client: TestClient, token: str) -> None:
    (tmp_path / "x").write_text("secret")
    reports.address(tmp_path / "report.html")
    found: httpx.Response = client.get(f"/reports/{token}")
    assert found.status_code == 404
    assert "secret" not in found.text


def test_pages_made_on_request_make_room_for_one_another(reports: Reports, client: TestClient) -> None:
    addresses = [reports.keep(str(number).encode()) for number in range(40)]
    assert len(set(addresses)) == 40
    assert client.get(addresses[0]).status_code == 404
    assert client.get(addresses[39]).text == "39"
    assert client.post(addresses[39]).status_code == 405
