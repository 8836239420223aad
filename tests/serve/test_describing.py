"""Describe runs where they are served: the page asks as the run was taught, reads the fields, and takes pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from luthier import verbs
from luthier.errors import MediaError
from luthier.recipe_describe import DescribeSettings
from luthier.serve.describing import describing, reader
from luthier.serve.server import open_services
from luthier.serve.settings import ServeSettings
from support.browser import chromium, needs_chromium, open_page, served
from support.describerun import card_run
from support.fakeserve import CHAT_MODELS, FakeChat, fake_services, png
from support.films import film

FORM = DescribeSettings()
SAID = FORM.form.write({"title": "Red <b>Coat</b>", "category": "COATS", "price": "1,290"})


class Describer(FakeChat):
    """Says one thing of every picture, and of words alone what the others say."""

    @staticmethod
    def answer(model: str, question: str) -> str:
        return SAID if question == FORM.prompt else FakeChat.answer(model, question)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    services = fake_services(tmp_path_factory.mktemp("describer"), chat=Describer())
    with served(replace(services, describes={"one/sft": FORM})) as found:
        yield found


def add_picture(page: Any, file: Path) -> None:
    with page.expect_file_chooser() as chosen:
        page.locator("#picture").click()
    chosen.value.set_files(str(file))


def send(page: Any, count: int = 1) -> None:
    page.locator("#send").click()
    page.wait_for_function(
        "count => document.querySelectorAll('.turn.assistant').length == count && !document.querySelector('.cursor')",
        arg=count,
    )


def holds(page: Any, text: str) -> None:
    """Wait until the box has this text."""
    page.wait_for_function("text => document.querySelector('#question textarea')?.value == text", arg=text)


def cells(page: Any) -> list[str]:
    return [text.strip() for text in page.locator(".turn.assistant .table tbody td").all_inner_texts()]


@needs_chromium
def test_the_first_question_is_the_runs_own_and_the_fields_stand_under_the_answer(
    address: str, browser: Any, tmp_path: Path
) -> None:
    page, seen = open_page(browser, address)
    box = page.get_by_label("Your question")
    holds(page, FORM.prompt)
    (tmp_path / "card.png").write_bytes(png(30, 20))
    add_picture(page, tmp_path / "card.png")
    page.wait_for_selector(".preview img")
    send(page)
    assert cells(page) == ["title", "Red <b>Coat</b>", "category", "COATS", "price", "1,290"]
    box.fill("And in words?")
    send(page, 2)
    assert "Not in the form" in page.locator(".turn.assistant").last.inner_text()
    page.reload()
    page.wait_for_selector(".turn.assistant .table")
    page.locator("#new").click()
    page.wait_for_selector(".empty")
    holds(page, FORM.prompt)
    assert seen.said == []
    assert seen.outside(address) == []


@needs_chromium
def test_the_prompt_gives_way_to_another_model_and_never_to_words_of_the_visitor(address: str, browser: Any) -> None:
    page, _ = open_page(browser, address)
    box = page.get_by_label("Your question")
    for typed, model, wanted in ((None, "two/sft", ""), (None, "one/sft", FORM.prompt), ("mine", "two/sft", "mine")):
        if typed:
            box.fill(typed)
        page.get_by_label("Model", exact=True).click()
        page.get_by_role("option", name=model, exact=True).click()
        page.wait_for_selector("text=This model reads no pictures.", state="visible" if "two" in model else "hidden")
        holds(page, wanted)
    assert page.locator("#picture").is_disabled()


@needs_chromium
def test_a_video_is_refused_with_a_sentence(address: str, browser: Any, tmp_path: Path) -> None:
    page, _ = open_page(browser, address)
    (tmp_path / "clip.png").write_bytes(film(5))  # the chooser goes by names, we do not
    add_picture(page, tmp_path / "clip.png")
    page.wait_for_selector(".said.bad")
    assert "is a video or a recording" in page.locator(".said.bad").inner_text()


def test_programs_are_told_what_a_model_is_asked_and_that_videos_are_not_taken(address: str) -> None:
    told = {one["id"]: one for one in httpx.get(f"{address}/v1/models").json()["data"]}
    assert told["one/sft"]["describes"]["prompt"] == FORM.prompt
    assert told["one/sft"]["reads"] == ["text", "image"]
    assert "describes" not in told["two/sft"]
    clip = base64.b64encode(film(5)).decode()
    for part in (
        {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{clip}"}},
        {"type": "image_url", "image_url": {"url": f"data:video/mp4;base64,{clip}"}},
    ):
        body = {"model": "one/sft", "messages": [{"role": "user", "content": [part]}]}
        refused = httpx.post(f"{address}/v1/chat/completions", json=body)
        assert refused.status_code == 400
        assert "ideo" in refused.json()["error"]["message"]


def test_pictures_in_a_container_of_videos_are_not_called_videos(tmp_path: Path) -> None:
    services = fake_services(tmp_path)
    try:
        with pytest.raises(MediaError) as refused:
            services.uploads.picture(b"\0\0\0\x18ftypheic" + b"\0" * 64, "a.heic")
        assert refused.value.reason != "moves"
    finally:
        services.close()


def test_words_of_an_answer_are_nothing_but_words_in_the_table() -> None:
    assert "<b>" not in reader(FORM)(SAID)
    assert "&lt;b&gt;" in reader(FORM)(SAID)
    assert describing(CHAT_MODELS[-1:]) == {}


@pytest.mark.slow
@needs_chromium
def test_a_drawn_card_is_described_in_the_browser_as_predict_describes_it(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A toy that was tuned whole until it says the form."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    sets = ["model.tuning=full", "train.max_steps=120", "train.batch_size=8", "train.learning_rate=5.0e-3"]
    run = card_run(tmp_path, sets=[*sets, "train.micro_batch_size=8", "train.save_every=120"])
    card = next((tmp_path / "cards" / "pictures").iterdir())
    (own,) = verbs.predict(run, [card], "")
    services = open_services(ServeSettings(runs=(run,), store=tmp_path / "serve.sqlite"))
    with served(services) as address:
        page, seen = open_page(browser, address)
        page.set_default_timeout(60_000)
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("number input for Temperature").fill("0")
        page.keyboard.press("Tab")
        add_picture(page, card)
        page.wait_for_selector(".preview img")
        send(page)
        said = page.locator(".turn.assistant .words").inner_text().strip()
        assert said == " ".join(own["answer"].split())
        wanted = [text for pair in (own["fields"] or {}).items() for text in pair]
        assert wanted
        assert cells(page) == wanted
        assert seen.outside(address) == []
        url = "data:image/png;base64," + base64.b64encode(card.read_bytes()).decode()
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": FORM.prompt}]
        body = {"model": "run/main", "temperature": 0, "messages": [{"role": "user", "content": parts}]}
        answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).json()
        assert answer["choices"][0]["message"]["content"] == own["answer"]
