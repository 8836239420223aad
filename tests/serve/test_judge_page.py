"""The page Judge in a real browser: spoken, judged by keys alone, once more with another model; and many at once."""

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest

from luthier.engines.base import Recording
from luthier.errors import RequestError
from luthier.serve.child import ChildFailed
from luthier.serve.judgepage import _Kept, _Page
from luthier.serve.services import Services
from luthier.serve.settings import Limits, ServeSettings
from luthier.serve.waiting import Busy
from support.browser import WIDTHS, chromium, needs_chromium, open_page, overflow, served
from support.fakeserve import FakeEars, FakeVerdict, fake_services, tone, wav

pytestmark = needs_chromium
BOX = "#question :is(input, textarea)"
READY = f"body:not(:has(#known)) {BOX}"
"""The server has answered: these models' runs have no questions on record, so that none are offered."""
PEAK = 0.55
TOKEN = "a-token-of-at-least-20-characters"
PAGE = """<html>not sound</html>"""


class Deaf(FakeEars):
    def transcribe(self, wave_L: Any) -> Any:
        raise ChildFailed("the recogniser broke down")


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Services:
    return fake_services(tmp_path_factory.mktemp("judge"), ServeSettings(limits=Limits(batch_files=4)))


@pytest.fixture(scope="module")
def address(services: Services) -> Iterator[str]:
    with served(services) as found:
        yield f"{found}/judge"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    sound = tmp_path_factory.mktemp("sound") / "said.wav"
    sound.write_bytes(wav(tone(2.0, PEAK)))
    with chromium(sound) as found:
        yield found


def record(page: Any) -> None:
    page.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(600)
    page.get_by_role("button", name="Stop", exact=True).last.click()
    page.wait_for_selector("#answer #waveform")


def tab_to(page: Any, found: str) -> None:
    """Go on by the tab key until what is focused matches."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("found => document.activeElement.matches(found)", found):
            return
    raise AssertionError(f"no way to {found} by keys")


@pytest.mark.parametrize("width", WIDTHS)
def test_by_keys_alone_a_spoken_answer_gets_its_verdict(
    services: Services, address: str, browser: Any, width: int
) -> None:
    page, seen = open_page(browser, address, width, ready=READY)
    assert overflow(page) <= 0
    tab_to(page, BOX)
    page.keyboard.type("Where do you live?")
    tab_to(page, "#answer .record-button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer .stop-button")
    page.wait_for_timeout(600)
    page.evaluate("() => document.querySelector('#answer').focus()")
    tab_to(page, "#answer .stop-button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer #waveform")
    tab_to(page, "#judge")
    page.keyboard.press("Enter")
    page.wait_for_selector("#verdict .scale")
    asked = services.verdict.asked[-1]  # type: ignore[union-attr]
    assert (asked[0], asked[2]) == ("speaking/1764", "Where do you live?")
    told = page.locator("#verdict svg.scale").get_attribute("aria-label")
    assert "within the zone of borderline answers (0.400 to 0.600" in told
    place = float(told.split(" ")[0])
    assert 0.4 < place < 0.6
    assert f"{place:.1%}"[:3] in page.locator("#verdict .verdict p").first.inner_text()
    assert "that the panel's grade reaches the pass mark" in page.locator("#verdict").inner_text()
    assert page.locator("#verdict h2").inner_text().endswith("borderline")
    assert overflow(page) <= 0
    assert seen.said == []
    assert seen.outside(address.removesuffix("/judge")) == []


def test_the_same_recording_is_judged_by_another_model(services: Services, address: str, browser: Any) -> None:
    page, _ = open_page(browser, address, ready=READY)
    page.locator("#judge").click()
    page.wait_for_selector(".said.bad:has-text('There is no recording')")
    record(page)
    page.get_by_label("Also write down").check()
    page.locator("#judge").click()
    page.wait_for_selector("#heard .heard:has-text('what is the capital of norway')")
    page.get_by_label("Judged by").click()
    page.get_by_role("option", name="speaking/1964").click()
    page.locator("#judge").click()
    page.wait_for_selector("#verdict :text('No zone of borderline answers')")
    asked = services.verdict.asked[-2:]  # type: ignore[union-attr]
    assert [model for model, _, _ in asked] == ["speaking/1764", "speaking/1964"]
    assert asked[0][1] == asked[1][1]


def test_of_many_files_those_that_cannot_be_read_say_why_and_the_others_go_on(
    tmp_path: Path, address: str, browser: Any
) -> None:
    files = []
    for name, data in (("=1+1.wav", PAGE.encode()), ("-good.wav", wav(tone(1.0, 0.9))), ("b.wav", wav(tone(0.5, 0.2)))):
        files.append(tmp_path / name)
        files[-1].write_bytes(data)
    page, seen = open_page(browser, address, 390, ready=READY)
    page.get_by_role("button", name="Many recordings at once").click()
    page.wait_for_selector("#batch button:has-text('Click to Upload')")
    page.wait_for_timeout(300)  # the button is there before it listens
    page.locator("#batch input[type=file]").set_input_files(files)
    page.wait_for_selector("#batch :text-is('-good')")  # listed once it has arrived, its ending apart
    page.locator("#judge-all").click()
    page.wait_for_selector(".said.good:has-text('3 recordings, of which 1')")
    with page.expect_download() as saved:
        page.locator("#verdicts a[download]").click()
    with Path(saved.value.path()).open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == ["'=1+1.wav", "'-good.wav", "b.wav"]
    assert [row["pass"] for row in rows] == ["", "pass", "fail"]
    assert "cannot be read as a recording" in rows[0]["error"]
    assert float(rows[1]["p_pass"]) == pytest.approx(0.9, abs=1e-3)
    assert float(rows[1]["p_pass_calibrated"]) == pytest.approx(0.82, abs=1e-3)
    assert overflow(page) <= 0
    assert seen.said == []


def handlers(services: Services) -> _Page:
    """The functions behind the page, to be called without a browser."""
    with gr.Blocks():
        assert services.verdict is not None
        page = _Page(services, services.verdict, services.verdict.models())
        page.lay_out()
    return page


def uploaded(name: str, data: bytes) -> str:
    from gradio.utils import get_upload_folder

    path = Path(get_upload_folder()) / "for-tests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def gone(path: str) -> bool:
    """Whether a file goes within a moment."""
    end = time.monotonic() + 5
    while Path(path).exists() and time.monotonic() < end:
        time.sleep(0.02)
    return not Path(path).exists()


def test_a_recogniser_that_fails_takes_no_verdict_away_and_a_file_that_went_no_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.serve.pagefiles.PLAYED_SECONDS", 0)
    found = fake_services(tmp_path, speech=Deaf())
    page = handlers(found)
    path = uploaded("deaf.wav", wav(tone(1.0, 0.8)))
    given = {
        page.visitor: TOKEN,
        page.model: "speaking/1764",
        page.question: "Why?",
        page.write: True,
        page.sound: path,
    }
    sent = list(page.judged(given))
    assert "svg" in next(one[page.verdict] for one in sent if one.get(page.verdict))
    assert "recogniser broke down" in sent[-1][page.words]
    assert gone(path)
    assert any("svg" in one.get(page.verdict, "") for one in page.judged(given))
    with pytest.raises(RequestError, match="no longer here"):
        list(page.judged({**given, page.visitor: f"another-{TOKEN}"}))
    found.close()


def test_a_batch_waits_where_all_are_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.serve.pagefiles.PLAYED_SECONDS", 0)
    found = fake_services(tmp_path)
    page = handlers(found)
    ask, tries, pauses = found.waiting.call, [0], []

    def busy_at_first(session: str, function: Any) -> Any:
        tries[0] += 1
        if tries[0] < 3:
            raise Busy("full", "full", 2)
        return ask(session, function)

    monkeypatch.setattr(found.waiting, "call", busy_at_first)
    monkeypatch.setattr("luthier.serve.judgepage.sleep", pauses.append)
    given = {page.visitor: TOKEN, page.model: "speaking/1964", page.question: ""}
    files = [uploaded(f"{number}.wav", wav(tone(0.2, 0.1 * number))) for number in range(1, 10)]
    sent = list(page.judged_all({**given, page.files: files}))
    assert pauses == [2, 2]
    assert sent[-1][page.table].count("<tr>") == 10
    assert found.verdict is not None
    assert [len(names) for _, names, _ in found.verdict.asked] == [8, 1]  # type: ignore[attr-defined]
    assert all(map(gone, files))
    found.close()


def test_kept_recordings_are_ones_own_and_few() -> None:
    kept, reads = _Kept(), list[str]()

    def read(path: str) -> Recording:
        reads.append(path)
        return Recording(path, np.zeros(4, np.float32))

    for owner in range(20):
        assert kept.of(str(owner), f"{owner}.wav", read).name == f"{owner}.wav"
    assert kept.of("19", "19.wav", read).name == "19.wav"
    assert len(reads) == 20
    kept.of("0", "0.wav", read)  # long forgotten
    kept.of("19", "0.wav", read)  # another visitor's is not handed over
    assert reads[20:] == ["0.wav", "0.wav"]


def test_a_page_without_a_verdict_model_says_so(tmp_path: Path, browser: Any) -> None:
    with served(fake_services(tmp_path, verdict=None)) as address:
        page, _ = open_page(browser, f"{address}/judge", ready=".absent")
        assert "No verdict model is served" in page.locator(".absent").inner_text()


def test_nothing_is_judged_that_is_not_on_offer(tmp_path: Path) -> None:
    found = fake_services(tmp_path, verdict=FakeVerdict())
    page = handlers(found)
    given = {page.visitor: TOKEN, page.model: "speaking/1764", page.question: "x", page.write: False, page.sound: "x"}
    for change in (
        {page.model: "other"},
        {page.question: "x" * 40_000},
        {page.sound: "/etc/hostname"},
        {page.sound: None},
    ):
        with pytest.raises(RequestError):
            list(page.judged({**given, **change}))
    with pytest.raises(RequestError, match="a batch has 1 to 200"):
        list(page.judged_all({**given, page.files: []}))
    assert Path("/etc/hostname").exists()
    found.close()


@pytest.mark.slow
def test_a_trained_stage_judges_a_recording_of_its_own_beside_its_like(finished: Path, tmp_path: Path) -> None:
    from luthier.engines.finding import find_models
    from luthier.engines.torch_verdict import TorchVerdict
    from luthier.files import read_jsonl
    from luthier.rundir import RunDir

    found = fake_services(tmp_path, verdict=TorchVerdict(find_models([finished])))
    page = handlers(found)
    model = next(model for model in page.models.values() if model.step is None)
    heard = next(path for path in sorted((finished / "data/media").rglob("*")) if path.is_file())
    given = {page.visitor: TOKEN, page.model: model.id, page.write: False, page.known: 0}
    given[page.question] = page.question_chosen(given)[page.question]
    assert given[page.question]
    given[page.sound] = uploaded(heard.name, heard.read_bytes())
    told = list(page.judged(given))[-1][page.verdict]
    assert "svg" in told
    rows = told.split("<tbody>")[1].split("<tr>")[1:]
    known = {row["id"][:12] for row in read_jsonl(RunDir(finished).stage(model.stage).predictions)}
    assert len(rows) == 5
    assert all(any(id in row for id in known) for row in rows)
    assert all("<td>–</td>" not in row for row in rows)
    found.close()
