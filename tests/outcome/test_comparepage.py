"""Blind votes on answers, and the pages of a comparison in a browser. No model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier import files
from luthier.errors import DataError, RequestError
from luthier.outcome.comparepage import write_ballots, write_comparison
from luthier.outcome.comparing.ballots import Asked, make_ballots, standings
from luthier.rundir import RunDir
from support.fakecompare import ATTACK, by_records, chat_recipe, chat_run, write_exam

CHROMIUM = Path("/usr/bin/chromium")


def asked(count: int = 6) -> list[Asked]:
    return [
        Asked(f"p:{n}", f"{ATTACK} {n}", {"secret-one": f"one {n}", "secret-two": f"two {n}" if n else "one 0"})
        for n in range(count)
    ]


def cast(ballots: Any, favourite: str, path: Path) -> Path:
    lines = [
        {"page": ballots.page, "ballot": one.id, "choice": "first" if one.first_run == favourite else "second"}
        for one in ballots.ballots
    ]
    files.write_jsonl(path, lines)
    return path


def test_swapped_ballots_show_every_pair_in_both_orders(tmp_path: Path) -> None:
    ballots = make_ballots(asked(), seed=3, swap=True)
    shown = {(one.prompt, one.first_run, one.second_run) for one in ballots.ballots}
    assert len(shown) == len(ballots.ballots) == 10
    assert all((prompt, b, a) in shown for prompt, a, b in shown)
    assert ballots.equal == [("p:0", "secret-one", "secret-two")]
    assert make_ballots(asked(), seed=3, swap=True) == ballots
    assert len({one.first_run for one in make_ballots(asked(20), seed=3, swap=False).ballots}) == 2


def test_votes_become_standings_and_a_preference_for_places_shows(tmp_path: Path) -> None:
    ballots, key = make_ballots(asked(), seed=3, swap=True), tmp_path / "key.json"
    files.write_json(key, ballots.key())
    found = standings([cast(ballots, "secret-two", tmp_path / "votes.jsonl")], key, seed=0)
    assert list(found["standings"]) == ["secret-two", "secret-one"]
    assert found["standings"]["secret-two"]["value"] > 0 > found["standings"]["secret-one"]["value"]
    assert found["first"]["value"] == 0.5
    assert (found["votes"], found["equal"]) == (10, 1)
    lines = [{"page": ballots.page, "ballot": one.id, "choice": "first"} for one in ballots.ballots]
    files.write_jsonl(tmp_path / "always-first.jsonl", lines)
    placed = standings([tmp_path / "always-first.jsonl"], key, seed=0)
    assert placed["first"]["value"] == 1.0
    assert placed["standings"]["secret-one"]["value"] == pytest.approx(0.0, abs=1e-9)


def test_a_changed_mind_counts_once(tmp_path: Path) -> None:
    ballots, key = make_ballots(asked(2), seed=3, swap=False), tmp_path / "key.json"
    files.write_json(key, ballots.key())
    votes = [{"page": ballots.page, "ballot": "b0001", "choice": choice} for choice in ("second", "first", "tie")]
    files.write_jsonl(tmp_path / "votes.jsonl", votes)
    found = standings([tmp_path / "votes.jsonl"], key, seed=0)
    assert found["votes"] == 1
    assert found["first"] is None


def test_votes_of_another_page_are_refused(tmp_path: Path) -> None:
    ballots, key = make_ballots(asked(), seed=3, swap=False), tmp_path / "key.json"
    files.write_json(key, ballots.key())
    other = cast(make_ballots(asked(), seed=4, swap=False), "secret-one", tmp_path / "votes.jsonl")
    with pytest.raises(DataError, match="is a vote on page"):
        standings([other], key, seed=0)
    with pytest.raises(RequestError, match="is not the key"):
        standings([other], other, seed=0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=30), st.dictionaries(st.text(max_size=6), st.none() | st.text(max_size=6))))
)
def test_any_file_of_votes_is_counted_or_refused_with_a_sentence(tmp_path_factory: Any, lines: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("votes")
    ballots, key = make_ballots(asked(), seed=3, swap=False), folder / "key.json"
    files.write_json(key, ballots.key())
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / "votes.jsonl").write_bytes(b"\n".join(raw))
    with pytest.raises((DataError, RequestError)):
        standings([folder / "votes.jsonl"], key, seed=0)


def test_answers_that_are_all_equal_bear_no_vote() -> None:
    with pytest.raises(RequestError, match="none has two answers that differ"):
        make_ballots(asked(1), seed=0, swap=False)


@pytest.fixture
def pages(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A comparison of three runs with everything on it, ballots, and their key."""
    bits, rng = np.linspace(1, 3, 60), np.random.default_rng(0)
    a_long_name = "a-run-with-a-name-as-long-as-people-give-them-when-nobody-stops-them"
    paths = [chat_run(tmp_path / f"s{n}", bits + 0.02 * n, recipe=chat_recipe(seed=n)) for n in (1, 2)]
    other = {"recipe": chat_recipe("two"), "about": {"lessons_sha256": "cd" * 32}}
    paths.append(chat_run(tmp_path / a_long_name, bits + 0.2 * rng.normal(size=60), **other))
    for path in paths:
        write_exam(RunDir(path).stage("main").exam("quiz"), {"step-000003": rng.random(80) < 0.7})
    found, runs = by_records(paths)
    found["answers"] = [{"name": "p", "question": ATTACK, "answers": {"s1": "x" * 900, "s2": ATTACK}}]
    ballots, key = make_ballots(asked(), seed=3, swap=False), tmp_path / "key.json"
    files.write_json(key, ballots.key())
    found["votes"] = standings([cast(ballots, "secret-two", tmp_path / "votes.jsonl")], key, seed=0)
    write_comparison(tmp_path / "compare.html", found, runs)
    write_ballots(tmp_path / "ballots.html", ballots)
    return tmp_path / "compare.html", tmp_path / "ballots.html", key


def test_the_page_tells_the_whole_story_and_escapes_what_others_wrote(pages) -> None:
    page = pages[0].read_text(encoding="utf-8")
    for expected in (
        "What differs",
        "Loss on one fixed probe",
        "Exam quiz",
        "Training loss of s1, s2",
        "Blind votes",
        "What is not compared",
        "Answers to the same prompts",
        "they are of one recipe",
        "Rows that changed most",
    ):
        assert expected in page, expected
    assert "<script" not in page
    assert "&lt;script&gt;alert" in page


def test_the_ballots_say_nothing_of_whose_answers_they_show(pages) -> None:
    page = pages[1].read_text(encoding="utf-8")
    assert "secret" not in page
    assert "&lt;script&gt;alert" in page
    assert page.count("<script>") == 1


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium at /usr/bin/chromium")
def test_pages_open_offline_at_both_widths_and_a_vote_can_be_cast_and_counted(pages, tmp_path: Path) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    said: list[str] = []
    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        for path in pages[:2]:
            for width in (390, 1440):
                page = browser.new_page(viewport={"width": width, "height": 900})
                page.on("console", lambda message: said.append(message.text))
                page.on("pageerror", lambda error: said.append(str(error)))
                page.on("request", lambda request: said.append(request.url) if request.url[:4] == "http" else None)
                page.goto(path.as_uri())
                assert page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth") <= 0
                for details in page.query_selector_all("details"):
                    details.evaluate("(node) => { node.open = true; }")
                assert page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth") <= 0
        names = page.evaluate("() => [...new Set([...document.querySelectorAll('input')].map((input) => input.name))]")
        for name in names:
            page.check(f"input[name={name}][value=first]")
        assert page.inner_text("#state") == "5 of 5 ballots filled in"
        with page.expect_download() as download:
            page.click("#save")
        download.value.save_as(tmp_path / "saved.jsonl")
        browser.close()
    assert said == []
    found = standings([tmp_path / "saved.jsonl"], pages[2], seed=0)
    assert found["votes"] == 5
    assert found["first"]["value"] == 1.0
