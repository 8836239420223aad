"""The page Side by side in a real browser: asked by voice, voted on blind, told whose the answers were, exported."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest

from luthier.engines.base import ServedModel
from luthier.serve.answers import Answers
from luthier.serve.arena import _Page, drawn_order, first_pair, standings
from luthier.serve.services import Services
from luthier.serve.settings import ServeSettings
from luthier.serve.store import fresh_id
from support.browser import WIDTHS, another, chromium, needs_chromium, open_page, overflow, served
from support.fakeserve import FakeChat, fake_services, tone, wav

pytestmark = needs_chromium
READY = "#standings .quiet, #standings .table"
TOKEN = "a-token-of-at-least-20-characters"
PAIR = ("one/sft", "one/sft@step-000005")


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Services:
    return fake_services(tmp_path_factory.mktemp("arena"), chat=FakeChat(delay=0.01))


@pytest.fixture(scope="module")
def address(services: Services) -> Iterator[str]:
    with served(services) as found:
        yield f"{found}/side-by-side"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    sound = tmp_path_factory.mktemp("sound") / "said.wav"
    sound.write_bytes(wav(tone(2.0)))
    with chromium(sound) as found:
        yield found


def ask(page: Any, text: str) -> None:
    page.get_by_label("The prompt").fill(text)
    page.keyboard.press("Enter")
    page.wait_for_selector("#vote-first")


def shown(page: Any) -> list[str]:
    return [text.strip() for text in page.locator(".answer .words").all_inner_texts()]


def test_from_the_microphone_to_rows_for_training(services: Services, address: str, browser: Any) -> None:
    page, seen = open_page(browser, address, ready=READY)
    page.get_by_role("button", name="Record").click()
    page.wait_for_timeout(600)
    page.get_by_role("button", name="Stop", exact=True).last.click()
    page.wait_for_selector(".heard")
    assert page.get_by_label("The prompt").input_value() == "what is the capital of norway"
    page.get_by_label("The prompt").fill("What is the capital of Norway?")
    page.locator("#consent input").check()
    page.locator("#ask").click()
    page.wait_for_selector("#vote-first")
    models = [request.model for request in services.chat.asked[-2:]]  # type: ignore[union-attr]
    answers = [FakeChat.answer(model, "What is the capital of Norway?") for model in models]
    assert shown(page) == answers
    page.get_by_label("Why (optional)").fill("It is shorter.")
    page.locator("#vote-second").click()
    page.wait_for_selector(".whose")
    assert page.locator(".whose").all_inner_texts() == models
    assert models[1] in page.locator("#standings tbody tr").first.inner_text()
    page.locator("#export").click()
    page.wait_for_selector(".said:has-text('1 of 1 votes and 1 of 1 transcripts')")
    with page.expect_download() as saved:
        page.locator("#rows").click()
    with zipfile.ZipFile(io.BytesIO(Path(saved.value.path()).read_bytes())) as rows:
        names = rows.namelist()
        vote = json.loads(rows.read("rows/votes.jsonl"))
        said = json.loads(rows.read("rows/transcripts.jsonl"))
        assert f"rows/{said['audio']}" in names
    assert [turn["content"] for turn in vote["messages"]] == ["What is the capital of Norway?", answers[1]]
    assert (vote["rejected"], vote["reason"]) == (answers[0], "It is shorter.")
    assert (said["heard"], said["text"]) == ("what is the capital of norway", "What is the capital of Norway?")
    assert seen.said == []
    assert seen.outside(address.removesuffix("/side-by-side")) == []


def handlers(services: Services) -> Any:
    """The functions behind the page, to be called without a browser."""
    with gr.Blocks():
        page = _Page(services, services.chat, Answers(), services.chat.models())  # type: ignore
        page.lay_out()
    return page


def test_nothing_that_is_sent_before_the_vote_says_whose_an_answer_is(tmp_path: Path) -> None:
    class Mute(FakeChat):
        @staticmethod
        def answer(model: str, question: str) -> str:
            return "the same words"

    twins = [ServedModel(name, "chat", "toy:llama") for name in ("secret-one", "secret-two")]
    found = fake_services(tmp_path, chat=Mute(served=twins))
    page = handlers(found)
    given = {page.visitor: TOKEN, page.box: "Say it", page.heard: None, page.consent: True, page.reason: ""}
    given |= {page.left: "secret-one", page.right: "secret-two", page.most: 9, page.temperature: 0.5}
    sent = list(page.drawn(given))
    assert "the same words" in str([list(one.values()) for one in sent])
    assert "secret" not in str([[getattr(value, "value", value) for value in one.values()] for one in sent])
    told = page.vote_of("first")({**given, page.ballot_id: sent[-1][page.ballot_id]})
    order = [request.model for request in found.chat.asked]  # type: ignore[union-attr]
    assert [name in told[part] for name, part in zip(order, page.shown, strict=True)] == [True, True]
    found.close()


@pytest.mark.parametrize("width", [390, pytest.param(1440, marks=pytest.mark.slow)])
def test_the_page_fits_and_votes_are_cast_by_keys(services: Services, address: str, browser: Any, width: int) -> None:
    page, seen = open_page(browser, address, width, ready=READY)
    assert overflow(page) <= 0
    before = len(services.store.votes())
    page.get_by_label("One model").focus()
    page.wait_for_selector("[role=listbox]")
    for _ in range(4):
        page.keyboard.press("Tab")  # through both lists of models
    page.wait_for_selector("[role=listbox]", state="detached")
    page.get_by_label("The prompt").focus()
    page.keyboard.type("1 2 3 4")  # digits in a text are no votes
    page.keyboard.press("Enter")
    page.wait_for_selector("#vote-first")
    page.get_by_label("Why (optional)").focus()
    page.keyboard.type("4")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.id") == "vote-first"
    assert len(services.store.votes()) == before
    page.keyboard.press("3")
    page.wait_for_selector(".whose")
    assert [vote["choice"] for vote in services.store.votes()][before:] == ["tie"]
    assert overflow(page) <= 0
    assert seen.said == []


@pytest.mark.slow
def test_a_reload_keeps_a_ballot_that_waits_for_its_vote(address: str, browser: Any) -> None:
    page, _ = open_page(browser, address, ready=READY)
    ask(page, "Keep me")
    before = shown(page)
    page.reload()
    page.wait_for_selector("#vote-first")
    assert shown(page) == before
    page.locator("#vote-both_bad").click()
    page.wait_for_selector(".whose")
    page.reload()
    page.wait_for_selector(READY)
    page.wait_for_timeout(300)
    assert not page.locator("#vote-first").is_visible()


@pytest.mark.slow
def test_answers_that_were_stopped_cannot_be_voted_on(address: str, browser: Any) -> None:
    page, _ = open_page(browser, address, ready=READY)
    page.get_by_label("The prompt").fill("a long one")
    page.keyboard.press("Enter")
    page.wait_for_selector(".cursor:has-text('w5')")
    page.locator("#stop").click()
    page.wait_for_selector(".said:has-text('not whole')")
    assert not page.locator("#vote-first").is_visible()


def test_a_vote_is_offered_between_two_stages_before_two_checkpoints_of_one() -> None:
    models = FakeChat().served
    assert first_pair(models) == ("one/sft", "two/sft")
    assert first_pair([*models[:2], models[3]]) == ("one/sft", "base:toy:llama")
    assert first_pair(models[:2]) == PAIR


def test_the_order_is_a_fair_lot_that_the_ballots_id_decides() -> None:
    ids = [fresh_id() for _ in range(2000)]
    firsts = np.mean([drawn_order(id, PAIR)[0] == PAIR[0] for id in ids])
    assert 0.45 < firsts < 0.55
    assert all(drawn_order(id, PAIR) == drawn_order(id, PAIR) for id in ids[:50])
    assert {drawn_order(id, PAIR) for id in ids} == {PAIR, PAIR[::-1]}


def test_standings_wait_for_votes_and_intervals_for_enough_prompts(tmp_path: Path) -> None:
    from luthier.schema import Message, Part
    from luthier.serve.store import Ballot, Store

    store = Store(tmp_path / "serve.sqlite")
    assert "first vote" in standings(store)
    for number in range(8):
        assert number == 0 or "from 8 prompts on" in standings(store)
        one = Ballot(str(number), "me", (Message("user", (Part("text", str(number)),)),), "<b>", "b")
        store.ballot_drawn(one)
        store.ballot_answered(one.id, "x", "y")
        store.vote("me", one.id, "first")
    assert "from 8 prompts on" not in standings(store)
    assert "&lt;b&gt;" in standings(store)


@pytest.mark.slow
@pytest.mark.parametrize(("models", "words"), [(1, "there is one"), (0, "there are none")])
def test_the_page_says_what_it_lacks(tmp_path: Path, browser: Any, models: int, words: str) -> None:
    engine = FakeChat(served=FakeChat().served[:models])
    with served(fake_services(tmp_path, chat=engine if models else None)) as address:
        page, _ = open_page(browser, f"{address}/side-by-side", ready=".absent")
        assert words in page.locator(".absent").inner_text()
        page.goto(address)
        page.wait_for_selector(".absent" if not models else "#question")


@pytest.mark.parametrize(("host", "own"), [("127.0.0.1", False), ("192.0.2.7", True)])
def test_everyones_rows_leave_a_machine_of_ones_own_alone(tmp_path: Path, host: str, own: bool) -> None:
    asked: list[str] = []
    found = fake_services(tmp_path, ServeSettings(host=host))
    found.store.votes = lambda owner="": asked.append(owner) or []  # type: ignore
    page = handlers(found)
    page.exported({page.visitor: TOKEN})
    assert bool(asked[0]) is own
    found.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_a_voice_is_heard_mended_answered_voted_on_and_exported(tmp_path: Path, browser: Any, width: int) -> None:
    from luthier.data.voice import Speaker, open_voice
    from luthier.serve.rowsout import write_rows
    from luthier.serve.settings import SpeechSettings
    from luthier.serve.speech.choose import open_transcriber

    voice = open_voice("espeak")
    spoken = voice.speak("what is the capital of norway", 150, 0.5, Speaker())
    voice.close()
    quiet = np.zeros(8000, np.float32)
    (tmp_path / "said.wav").write_bytes(wav(np.concatenate([quiet, 0.5 * spoken / np.abs(spoken).max(), quiet])))
    ears = open_transcriber(SpeechSettings(engine="pocketsphinx"))
    found = fake_services(tmp_path, speech=ears)
    with served(found) as address, another(browser, tmp_path / "said.wav") as listening:
        page, seen = open_page(listening, f"{address}/side-by-side", width, ready=READY)
        page.get_by_role("button", name="Record").click()
        page.wait_for_timeout(4000)
        page.get_by_role("button", name="Stop", exact=True).last.click()
        page.wait_for_selector(".heard", timeout=60_000)
        heard = page.get_by_label("The prompt").input_value()
        assert {"what", "is", "the"} & set(heard.lower().split()), heard
        page.locator("#consent input").check()
        ask(page, "What is the capital of Norway?")
        page.locator("#vote-first").click()
        page.wait_for_selector(".whose")
        assert overflow(page) <= 0
        assert seen.said == []
        counts = write_rows(found.store, tmp_path / "rows")
    assert [counts[name]["exported"] for name in ("votes", "transcripts")] == [1, 1]
    row = json.loads((tmp_path / "rows" / "transcripts.jsonl").read_text())
    assert (row["heard"], row["text"]) == (heard, "What is the capital of Norway?")
