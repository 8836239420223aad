"""The Assistant page in a real browser: speaking, mending, asking, stopping, editing, and what a reload keeps."""

import base64
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.data.exactjson import loads
from luthier.engines.base import Piece, Sampling
from luthier.errors import DataError, RequestError
from luthier.schema import Message, Part
from luthier.serve import look, talk
from luthier.serve.answers import Answers, follow
from luthier.serve.pagefiles import taken
from luthier.serve.services import Services
from luthier.serve.store import Conversation
from luthier.serve.waiting import Waiting
from support.browser import WIDTHS, chromium, needs_chromium, open_page, overflow, served
from support.fakeserve import FakeChat, fake_services, png, tone, wav

pytestmark = needs_chromium
ATTACK = (
    "<img src=http://evil.test/a.png> ![b](http://evil.test/b.png) ![r][x] <script>window.hit=1</script> "
    "[link](http://evil.test/c) [run](javascript:window.hit=1) ${window.hit=1} {{window.hit}}\n\n[x]: http://evil.test/d"
)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Services:
    return fake_services(tmp_path_factory.mktemp("assistant"), chat=FakeChat(delay=0.01))


@pytest.fixture(scope="module")
def address(services: Services) -> Iterator[str]:
    with served(services) as found:
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    sound = tmp_path_factory.mktemp("sound") / "said.wav"
    sound.write_bytes(wav(tone(2.0)))
    with chromium(sound) as found:
        yield found


def ask(page: Any, text: str) -> None:
    """Type a question, send it, and wait until its answer is whole."""
    count = page.locator(".turn.assistant").count()
    page.get_by_label("Your question").fill(text)
    page.keyboard.press("Enter")
    whole(page, count + 1)


def whole(page: Any, count: int) -> None:
    page.wait_for_function(
        "count => document.querySelectorAll('.turn.assistant').length == count && !document.querySelector('.cursor')",
        arg=count,
    )


def turns(page: Any) -> list[str]:
    return [text.strip() for text in page.locator(".turn .words").all_inner_texts()]


def test_what_was_spoken_is_mended_sent_and_kept_with_consent(services: Services, address: str, browser: Any) -> None:
    page, seen = open_page(browser, address)
    page.get_by_role("button", name="Record").click()
    page.wait_for_timeout(600)
    page.get_by_role("button", name="Stop", exact=True).last.click()
    page.wait_for_selector(".heard")
    box = page.get_by_label("Your question")
    assert box.input_value() == "what is the capital of norway"
    box.fill("What is the capital of Norway?")
    page.get_by_label("Keep my recording").check()
    page.locator("#send").click()
    whole(page, 1)
    assert turns(page)[0] == "What is the capital of Norway?"
    assert turns(page)[1] == FakeChat.answer("one/sft", "What is the capital of Norway?")
    assert not page.locator(".heard").is_visible()
    assert services.chat.asked[-1].sampling == Sampling()  # type: ignore[union-attr]
    kept = services.store.transcripts()[-1]
    assert (kept["heard"], kept["corrected"]) == ("what is the capital of norway", "What is the capital of Norway?")
    assert services.store.media(kept["sound"])[:4] == b"fLaC"
    assert seen.said == []
    assert seen.outside(address) == []


def test_an_answer_can_make_the_browser_run_nothing_and_ask_nobody(address: str, browser: Any) -> None:
    page, seen = open_page(browser, address)
    ask(page, ATTACK.replace("\n\n", " "))
    page.wait_for_timeout(300)
    assert seen.outside(address) == []
    assert page.evaluate("() => window.hit") is None
    assert page.locator(".turn img, .turn script").count() == 0
    links = page.locator(".turn.assistant a")
    assert links.count() >= 2
    assert all("noopener" in links.nth(place).get_attribute("rel") for place in range(links.count()))
    assert not any("javascript" in links.nth(place).get_attribute("href") for place in range(links.count()))


def test_a_reload_in_the_middle_of_an_answer_loses_nothing(address: str, browser: Any) -> None:
    page, _ = open_page(browser, address)
    page.get_by_label("Your question").fill("a long one")
    page.keyboard.press("Enter")
    page.wait_for_selector(".cursor:has-text('w20')")
    page.reload()
    page.wait_for_selector(".cursor:has-text('w40')")
    whole(page, 1)
    assert turns(page) == ["a long one", FakeChat.answer("one/sft", "a long one")]
    page.reload()
    page.wait_for_selector(".turn.assistant")
    assert turns(page) == ["a long one", FakeChat.answer("one/sft", "a long one")]


@pytest.mark.slow
def test_stopping_keeps_what_was_written_and_retry_asks_again(services: Services, address: str, browser: Any) -> None:
    page, _ = open_page(browser, address)
    page.get_by_label("Your question").fill("a long one")
    page.keyboard.press("Enter")
    page.wait_for_selector(".cursor:has-text('w10')")
    page.locator("#stop").click()
    page.wait_for_selector(".said:has-text('Stopped.')")
    assert 10 < len(turns(page)[1].split()) < 190
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="two/sft").click()
    page.get_by_role("button", name="Settings").click()
    for label, value in (("Seed", "x7"), ("Seed", "7"), ("Instructions", "Be brief.")):
        page.get_by_label(label).fill(value)
        if value == "x7":
            page.locator("#retry").click()
            page.wait_for_selector(".said.bad:has-text('is not a whole number')")
    page.locator("#retry").click()
    page.wait_for_selector(".cursor:has-text('two/sft')")
    request = services.chat.asked[-1]  # type: ignore[union-attr]
    assert (request.sampling.seed, request.messages[0].text) == (7, "Be brief.")
    whole(page, 1)
    assert turns(page) == ["a long one", FakeChat.answer("two/sft", "a long one")]


@pytest.mark.slow
def test_an_earlier_question_is_edited_and_what_followed_is_replaced(address: str, browser: Any) -> None:
    page, _ = open_page(browser, address)
    ask(page, "one?")
    ask(page, "two?")
    page.get_by_role("button", name="Edit this question").first.click()
    page.wait_for_selector(".said:has-text('editing')")
    box = page.get_by_label("Your question")
    assert box.input_value() == "one?"
    box.fill("three?")
    page.locator("#send").click()
    page.wait_for_function("() => document.querySelectorAll('.turn').length == 2 && !document.querySelector('.cursor')")
    assert turns(page) == ["three?", FakeChat.answer("one/sft", "three?")]


@pytest.mark.slow
def test_visitors_share_nothing_and_old_chats_are_found_again(address: str, browser: Any) -> None:
    page, _ = open_page(browser, address)
    ask(page, "mine alone")
    other, _ = open_page(browser, address)
    other.wait_for_timeout(500)
    assert turns(other) == []
    page.locator("#new").click()
    page.wait_for_selector(".empty")
    page.get_by_role("button", name="Your chats").click()
    page.get_by_label("Open another chat").click()
    page.get_by_role("option", name="mine alone").click()
    page.wait_for_selector(".turn.assistant")
    assert turns(page)[0] == "mine alone"
    page.get_by_role("button", name="Export this chat").click()
    page.wait_for_selector(".links a")
    lines, text = (
        base64.b64decode(page.locator(".links a").nth(place).get_attribute("href").partition("base64,")[2])
        for place in (0, 1)
    )
    assert [turn["content"] for turn in json.loads(lines)["messages"]] == turns(page)
    assert text.decode().startswith("# A conversation with one/sft\n\n## You\n\nmine alone\n\n## Model")
    page.get_by_role("button", name="Delete this chat").click()
    page.wait_for_selector(".empty")
    page.reload()
    page.wait_for_timeout(600)
    assert turns(page) == []


@pytest.mark.slow
def test_a_picture_goes_only_to_a_model_that_reads_pictures(
    services: Services, address: str, browser: Any, tmp_path: Path
) -> None:
    page, seen = open_page(browser, address)
    (tmp_path / "p.png").write_bytes(png(30, 20))
    (tmp_path / "p.html.png").write_bytes(b"<script>alert(1)</script>")
    for name, found in (("p.html.png", ".said.bad"), ("p.png", ".preview img")):
        with page.expect_file_chooser() as chosen:
            page.locator("#picture").click()
        chosen.value.set_files(str(tmp_path / name))
        page.wait_for_selector(found)
    ask(page, "What is this?")
    (sent,) = services.chat.asked[-1].media.values()  # type: ignore[union-attr]
    assert sent.size == (30, 20)
    assert page.locator(".turn.user img").get_attribute("src").startswith("data:image/jpeg;base64,")
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="two/sft").click()
    page.wait_for_selector("text=This model reads no pictures.")
    assert page.locator("#picture").is_disabled()
    assert seen.outside(address) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("refuse me", "The question is too long for this model. Shorten it."),
        ("break it", "The model failed while it answered. Look into the server's log, or ask again."),
        ("", "The question is empty. Write or say something first."),
    ],
)
def test_what_goes_wrong_is_told_in_a_sentence(address: str, browser: Any, text: str, sentence: str) -> None:
    page, _ = open_page(browser, address)
    page.get_by_label("Your question").fill(text)
    page.locator("#send").click()
    page.wait_for_selector(".said.bad")
    assert page.locator(".said.bad").inner_text() == sentence
    assert "/secret" not in page.content()
    assert page.locator("#send").is_visible()


@pytest.mark.slow
def test_a_full_queue_is_told_and_the_question_is_kept(tmp_path: Path, browser: Any) -> None:
    slow = fake_services(tmp_path, chat=FakeChat(delay=0.3), waiting=Waiting(1, 1))
    with served(slow) as address:
        pages = [open_page(browser, address)[0] for _ in range(3)]
        for page in pages:
            page.get_by_label("Your question").fill("a long one")
            page.keyboard.press("Enter")
            page.wait_for_selector(".turn.user")
        pages[-1].wait_for_selector(".said.bad")
        assert re.search(r"waiting already\. Try again in \d+ s\.", pages[-1].locator(".said.bad").inner_text())
        assert turns(pages[-1]) == ["a long one"]
        assert pages[-1].locator("#retry").is_visible()
        for page in pages[:2]:
            page.locator("#stop").click()
            page.wait_for_selector(".said:has-text('Stopped.')")


@pytest.mark.parametrize("width", [390, pytest.param(1440, marks=pytest.mark.slow)])
def test_the_page_fits_and_can_be_worked_with_keys_alone(address: str, browser: Any, width: int) -> None:
    page, seen = open_page(browser, address, width)
    page.wait_for_timeout(500)
    assert overflow(page) <= 0
    named = page.evaluate("() => getComputedStyle(document.querySelector('nav'), '::before').display != 'none'")
    assert named == (width > 640)  # Gradio confines rules of media queries to its middle: frame.css goes round that
    microphone = page.get_by_role("button", name="Record").bounding_box()
    assert microphone["y"] < WIDTHS[width]  # seen without scrolling
    names = []
    for _ in range(40):
        page.keyboard.press("Tab")
        found = page.evaluate(
            "() => { const e = document.activeElement; const s = getComputedStyle(e); return {"
            "name: e.getAttribute('aria-label') || e.labels?.[0]?.innerText || e.innerText, tag: e.tagName, "
            "ring: s.outlineStyle != 'none' || s.boxShadow != 'none'}; }"
        )
        assert found["ring"], found
        names.append(found["name"].strip().split("\n")[0])
        if names[-1] == "Your question":
            break
    order = ["Assistant", "Side by side", "Skip to the main part", "Model", "New chat", "Settings", "Your question"]
    assert [name for name in names if name in order] == order
    page.keyboard.type("With keys alone?")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.id") == "send"
    page.keyboard.press("Enter")
    whole(page, 1)
    assert turns(page)[0] == "With keys alone?"
    assert overflow(page) <= 0
    assert seen.said == []


def test_programs_can_call_no_event_of_the_pages(address: str) -> None:
    import httpx

    with httpx.Client(base_url=address) as client:
        found = client.get("/gradio_api/info").json()
        assert (found["named_endpoints"], found["unnamed_endpoints"]) == ({}, {})
        config = client.get("/config").json()
        names = {event["api_name"] for event in config["dependencies"]}
        assert {event["api_visibility"] for event in config["dependencies"]} == {"private"}
        for name in [*names, "predict"]:
            for way in ("call", "run", "api", "call/v2"):
                assert client.post(f"/gradio_api/{way}/{name}", json={"data": []}).status_code in (404, 405)


def test_a_path_that_a_client_made_up_is_neither_opened_nor_removed(
    services: Services, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    monkeypatch.setattr("luthier.serve.pagefiles.PLAYED_SECONDS", 0.1)

    mine = tmp_path / "mine.wav"
    mine.write_bytes(wav(tone(0.5)))
    heard = len(services.speech.heard)  # type: ignore[attr-defined]
    with httpx.Client(base_url=address, headers={"origin": address}) as client:
        config = client.get("/config").json()
        (spoken,) = [event for event in config["dependencies"] if event["api_name"] == "spoken"]
        kinds = {part["id"]: part["type"] for part in config["components"]}
        uploaded = client.post("/gradio_api/upload", files={"files": ("a.wav", wav(tone(0.5)))}).json()[0]
        hidden = f"{Path(uploaded).parent}{'/..' * 9}{mine}"
        for path in (str(mine), "../../mine.wav", f"{address}/config", "http://example.test/a.wav", hidden, ["x"]):
            for more in ({}, {"url": path}, {"is_stream": True}):
                file = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.wav", **more}
                for kind in ("audio", "textbox"):  # Gradio looks for files in the values of every component
                    values = {"audio": None, "textbox": "", "browserstate": "t" * 24, kind: file}
                    data = [values[kinds[id]] for id in spoken["inputs"]]
                    body = {"data": data, "fn_index": spoken["id"], "session_hash": "s"}
                    assert client.post("/gradio_api/queue/join", json=body).status_code == 403
        file = {"path": uploaded, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.wav"}
        data = [{"audio": file, "textbox": "", "browserstate": "t" * 24}[kinds[id]] for id in spoken["inputs"]]
        body = {"data": data, "fn_index": spoken["id"], "session_hash": "s"}
        assert client.post("/gradio_api/queue/join", json=body).status_code == 200
        with client.stream("GET", "/gradio_api/queue/data?session_hash=s") as lines:
            told = next(line for line in lines.iter_lines() if "process_completed" in line)
        assert "what is the capital of norway" in told
    for _ in range(100):
        if not Path(uploaded).exists():
            break
        time.sleep(0.02)
    assert not Path(uploaded).exists()
    with pytest.raises(RequestError, match="was not uploaded"):
        taken(str(mine))
    assert mine.read_bytes() == wav(tone(0.5))
    assert len(services.speech.heard) == heard + 1  # type: ignore[attr-defined]


def test_the_page_asks_for_nothing_from_elsewhere_in_its_markup(address: str) -> None:
    import httpx

    sheets = [httpx.get(f"{address}/{name}").text for name in ("", "theme.css", "side-by-side")]
    assert not re.search(r"(url\(|@import\s+)['\"]?(https?:)?//", "".join(sheets))


def test_an_answer_nobody_follows_is_stopped_and_one_a_key_is_written_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting, answers, kept = Waiting(4, 4), Answers(), []

    def slow(cancel: Any) -> Any:
        def pieces() -> Iterator[Piece]:
            while not cancel.is_set():
                time.sleep(0.01)
                yield Piece("x")

        return waiting.stream("me", pieces, gone=cancel)

    monkeypatch.setattr("luthier.serve.answers.ABANDONED_SECONDS", 0.2)
    answer = answers.begin("k", [slow], kept.append)
    assert answer is not None
    assert answers.begin("k", [slow], kept.append) is None
    assert next(follow(answer)).texts[0]
    assert answer.done.wait(5)
    assert kept == [answer]
    assert answer.finishes == ["cancelled"]
    assert answers.find("k") is None
    waiting.close()


def test_an_exported_conversation_is_read_back_by_the_formats() -> None:
    from luthier.data.formats import detect

    said = (
        Message("system", (Part("text", "Be brief."),)),
        talk.user_message("What?", (Part("image", media="sha256:00"),)),
        talk.assistant_message("A `code` ​ answer"),
    )
    record = loads(talk.as_jsonl(Conversation("c", "me", "m", messages=said), lambda _: "data:image/png;base64,AA=="))
    assert detect([record]) == "messages"
    assert record["messages"][1]["content"][0]["image_url"]["url"] == "data:image/png;base64,AA=="


def test_markdown_is_set_without_a_word_of_foreign_html() -> None:
    shown = look.markdown(ATTACK)
    assert set(re.findall(r"<(\w+)", shown)) == {"div", "p", "a"}
    assert "![" not in shown.replace("<a", "")
    assert look.exact("<b>&") == '<div class="words exact">&lt;b&gt;&amp;</div>'


def test_a_picture_that_was_forgotten_costs_neither_the_page_nor_its_conversation() -> None:
    def gone(reference: str) -> str:
        raise DataError("it is not in the store", "ask again with the picture")

    asked = talk.user_message("What is on it?", (Part("image", media="sha256:0"),))
    shown = talk.transcript(Conversation("c", "me", messages=(asked,)), gone)
    assert "What is on it?" in shown
    assert "It is not in the store." in shown
