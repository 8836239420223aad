"""The page Runs in a real browser: what is listed, curves that grow while one looks, reports, two runs compared."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from luthier.files import append_jsonl, write_json, write_jsonl
from luthier.rundir import RunDir
from luthier.serve.runlist import find_runs
from luthier.serve.settings import ServeSettings
from support.browser import WIDTHS, chromium, needs_chromium, open_page, overflow, served
from support.fakecompare import chat_run, losses_of, verdict_run
from support.fakeserve import fake_services

pytestmark = needs_chromium
READY = "#runs table, .said:has-text('No runs')"
ATTACK = "<h1>A report</h1><script>document.title='hit'</script><img src=http://evil.test/a.png>"


def told(run: Path, **more: Any) -> Path:
    """Write more into its run.json."""
    write_json(run / "run.json", {**json.loads((run / "run.json").read_text()), **more})
    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two chat runs and a verdict run that are finished, one that was cut off, one that cannot be read."""
    place = tmp_path_factory.mktemp("runs")
    for number, name in enumerate(("chats-a", "chats-b")):
        run = told(
            chat_run(place / name, [2.0 + 0.1 * n + number for n in range(12)]), created=f"2026-01-0{number + 1}"
        )
        score = {"value": 2.5 + number, "ci": [2.4, 2.6], "n": 12}
        write_json(run / "stages/main/scores.json", {"bits_per_byte": score, "before.bits_per_byte": {"value": 4.0}})
        (run / "report.html").write_text(ATTACK)
    told(verdict_run(place / "deep/er/spoken", [0.2, 0.9, 0.7], [2, 5, 4]), created="2026-01-03")
    cut = told(chat_run(place / "cut-off", [3.0]), status="running", created="2026-01-04")
    (cut / "stages/main/stage.json").unlink()
    (place / "broken").mkdir()
    (place / "broken/run.json").write_text("{")
    return place


@pytest.fixture(scope="module")
def address(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = ServeSettings(runs=(place / "chats-a",), watched=place)
    with served(fake_services(tmp_path_factory.mktemp("store"), settings)) as found:
        yield f"{found}/runs"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def choose(page: Any, label: str, name: str) -> None:
    page.get_by_label(label, exact=True).click()
    page.locator("[role=option]:visible").filter(has_text=name).last.click()  # the list before it may still fade out
    page.wait_for_selector("[role=option]", state="detached")


def test_runs_are_found_and_told_from_their_records(place: Path) -> None:
    found = find_runs([place / "chats-a"], place)
    assert [(run.name, run.kind, run.status) for run in found] == [
        ("cut-off", "chat", "interrupted"),
        ("spoken", "verdict", "finished"),
        ("chats-b", "chat", "finished"),
        ("chats-a", "chat", "finished"),
        ("broken", "", "unreadable"),
    ]
    assert found[3].headline == "bits per byte 2.500 [2.400, 2.600], before 4.000"
    assert [run.finished for run in found] == [(), ("main",), ("main",), ("main",), ()]
    assert str(place) not in "".join(f"{run.key} {run.headline}" for run in found)
    with RunDir(place / "cut-off").lock():
        assert find_runs([], place)[0].status == "running"
        assert RunDir(place / "cut-off").held
    assert not RunDir(place / "cut-off").held
    assert not RunDir(place / "chats-a").held
    assert not (place / "chats-a/.lock").exists()


def test_a_glance_at_the_lock_keeps_no_run_from_starting(place: Path) -> None:
    import fcntl
    import threading

    run = RunDir(place / "cut-off")
    with ExitStack() as stack:
        glance = stack.enter_context((run.path / ".lock").open("a"))
        fcntl.flock(glance, fcntl.LOCK_SH)
        threading.Timer(0.01, glance.close).start()
        with run.lock():
            assert run.held


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_shows_the_newest_run(address: str, browser: Any, width: int, place: Path) -> None:
    page, seen = open_page(browser, address, width, ready=READY)
    page.wait_for_selector("#curves svg")
    assert overflow(page) <= 0
    rows = page.locator("#runs tbody tr").all_inner_texts()
    assert len(rows) == 5
    assert "interrupted" in rows[0]
    assert page.locator("#about h2").inner_text() == "cut-off"
    assert str(place) not in page.content()
    assert seen.said == []
    assert seen.outside(address.removesuffix("/runs")) == []


def test_curves_grow_while_one_looks_and_a_reload_loses_nothing(place: Path, address: str, browser: Any) -> None:
    run = told(Path(shutil.copytree(place / "cut-off", place / "going")), created="2026-01-09")
    metrics = run / "stages/main/metrics.jsonl"
    line = {"loss": 9.0, "learning_rate": 1e-3, "tokens": 100, "seconds": 1.0}
    write_jsonl(metrics, [{"step": 1, **line}])
    with RunDir(run).lock():
        page, seen = open_page(browser, address, ready=READY)
        page.wait_for_selector("#about :text('running')")
        assert page.locator("#about h2").inner_text() == "going"
        for step in (2, 3):
            append_jsonl(metrics, {**line, "step": step, "loss": 9.0 - step, "tokens": 250 * step, "seconds": step})
        page.wait_for_selector("#about :text('6.0000')")
        assert "to 6.000 at step 3" in page.locator("#curves desc").first.text_content()
        assert page.locator("#curves svg").count() == 3
        choose(page, "Show this run", "chats-a")
        page.wait_for_selector("#about h2:text-is('chats-a')")
        page.reload()
        page.wait_for_selector("#about h2:text-is('chats-a')")
        choose(page, "Show this run", "going")
        page.wait_for_selector("#about :text('6.0000')")
    (run / "stages/main/stage.json").write_text("{}")
    told(run, status="finished")
    page.wait_for_selector("#runs tr:has-text('going') :text('finished')")
    page.wait_for_timeout(500)
    before = len(seen.asked)
    page.wait_for_timeout(2500)
    assert len(seen.asked) == before  # what has ended is not asked for again
    shutil.rmtree(run)


def test_a_report_opens_sealed(address: str, browser: Any) -> None:
    page, seen = open_page(browser, address, ready=READY)
    choose(page, "Show this run", "chats-b")
    page.wait_for_selector("#about h2:text-is('chats-b')")
    link = page.get_by_role("link", name="Open its report")
    with page.context.expect_page() as opened:
        link.click()
    opened.value.wait_for_selector("h1:text('A report')")
    report, failed = page.context.new_page(), list[tuple[str, str]]()
    report.on("requestfailed", lambda request: failed.append((request.url, request.failure)))
    report.goto(f"{address.removesuffix('/runs')}{link.get_attribute('href')}")
    report.wait_for_selector("h1:text('A report')")
    report.wait_for_timeout(200)
    assert report.title() != "hit"
    assert report.evaluate("() => self.origin") == "null"
    assert failed == [("http://evil.test/a.png", "csp")]
    assert seen.said == []


@pytest.mark.slow
def test_two_runs_are_compared_and_those_that_cannot_be_say_why(address: str, browser: Any) -> None:
    page, seen = open_page(browser, address, 390, ready=READY)
    choose(page, "One finished run", "chats-a")
    choose(page, "The other finished run", "chats-b")
    page.locator("#compare").click()
    page.wait_for_selector("#compared a", timeout=30_000)
    with page.context.expect_page() as opened:
        page.locator("#compared a").click()
    opened.value.wait_for_selector("h1")
    assert {"chats-a", "chats-b"} <= set(opened.value.inner_text("body").replace("\t", "\n").split("\n"))
    page.bring_to_front()
    choose(page, "The other finished run", "spoken")
    page.locator("#compare").click()
    page.wait_for_selector("#compared .bad:has-text('of different tasks')")
    choose(page, "The other finished run", "chats-a")
    page.locator("#compare").click()
    page.wait_for_selector("#compared .bad:has-text('is named twice')")
    assert overflow(page) <= 0
    assert seen.said == []


def test_no_model_is_loaded_to_compare(place: Path, tmp_path: Path) -> None:
    from luthier.errors import RequestError
    from luthier.serve.runspage import compared_page

    other = chat_run(tmp_path / "other", [])
    rows = losses_of([1.0, 2.0])
    write_jsonl(other / "stages/main/predictions.jsonl", [{**row, "id": f"new-{row['id']}"} for row in rows])
    with pytest.raises(RequestError, match="held out different rows"):
        compared_page([place / "chats-a", other])


def test_a_report_that_is_a_link_to_somewhere_else_is_not_shown(tmp_path: Path) -> None:
    from luthier.serve.runspage import _report

    run = chat_run(tmp_path / "runs/one", [2.0])
    (tmp_path / "secret").write_text("secret")
    (run / "report.html").symlink_to(tmp_path / "secret")
    found = fake_services(tmp_path)
    (listed,) = find_runs([run], None)
    assert "href" not in _report(found, listed)
    (run / "report.html").unlink()
    (run / "report.html").write_text("mine")
    assert "href" in _report(found, listed)
    found.close()


def test_without_runs_the_page_says_so(tmp_path: Path, browser: Any) -> None:
    with served(fake_services(tmp_path)) as address:
        page, seen = open_page(browser, f"{address}/runs", ready=READY)
        page.locator("#compare").click()
        page.wait_for_selector("#compared .bad")
        assert seen.said == []
