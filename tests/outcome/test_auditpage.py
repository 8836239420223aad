"""The page of an audit: both texts, all escaped, and it opens offline; beside it every touched item."""

import re
from pathlib import Path

import pytest

from luthier import files
from luthier.data.leaks.auditresult import AuditResult, AuditSettings, Hit
from luthier.errors import RequestError
from luthier.outcome.auditpage import SHOWN, write_audit

CHROMIUM = Path("/usr/bin/chromium")
ATTACK = "<script>alert('x')</script>"


def hit(kind: str, number: int, score: float = 1.0) -> Hit:
    row = (("… well, ", False), ("the shared words", True), (f" of {ATTACK}", False))
    item = (("the shared words", True), (" & what the item goes on to ask", False))
    where = f"chats.jsonl#{number}", f"item{number}", f"e.json#{number}"
    return Hit(kind, f"row{number}", "chats", *where, score, row, item)


def found(count: int = 3) -> AuditResult:
    result = AuditResult(f"tables/{ATTACK}", "exam.json", AuditSettings(), "exam", rows=1200, items=400)
    result.hits = [hit("near", n, 0.91) for n in range(count)]
    result.hits += [hit("ngram", 7, 21), hit("group", 8), hit("exact", 9, 40)]
    result.touched = {one.item: {one.kind: 2} for one in result.hits}
    result.touched["unshown"] = {"media": 1}
    result.origins = dict.fromkeys(result.touched, "e.json#1")
    result.pairs = {"group": 2, "exact": 2, "near": 2 * count, "ngram": 2, "media": 1}
    result.sibling_pairs, result.siblings = 321, [hit("sibling", 11)]
    result.boilerplate, result.boilerplate_samples, result.boilerplate_items = 17, [f"choose one {ATTACK}"], 2
    result.too_short = 4
    result.unread = [("e.json#5", "no_question", ATTACK)] * 30
    result.unreadable = {"no_question": 30}
    return result


def test_both_texts_stand_there_with_their_shared_words_marked(tmp_path: Path) -> None:
    page = write_audit(found(), tmp_path / "audit.html").page.read_text(encoding="utf-8")
    assert page.count("<mark>the shared words</mark>") == 2 * (3 + 3 + 1)
    for expected in (
        "7 of 400 items are touched (1.8%)",
        "Jaccard 0.91",
        "21 words",
        "the same group",
        "chats: chats.jsonl#7",
        "&amp; what the item goes on to ask",
        "3 more pairs are not shown",
        "17 different runs of 13 words",
        "321 pairs",
        "4 items have fewer than five words",
        "could not be read: 30",
        "All touched items are in audit.jsonl",
    ):
        assert expected in page, expected


def test_text_of_others_is_escaped_and_nothing_is_fetched(tmp_path: Path) -> None:
    page = write_audit(found(), tmp_path / "audit.html").page.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert" in page
    assert not re.search(r"""src=|href=["'](?!data:|#)""", page)
    assert "default-src 'none'" in page


def test_every_touched_item_is_in_the_file_beside_it(tmp_path: Path) -> None:
    records = files.read_jsonl(write_audit(found(), tmp_path / "audit.html").records)
    assert records[0]["touched_items"] == [*[f"item{n}" for n in (0, 1, 2, 7, 8, 9)], "unshown"]
    assert [one["item"] for one in records if one["record"] == "item"] == records[0]["touched_items"]
    kinds = [one["record"] for one in records]
    assert [kinds.count(kind) for kind in ("audit", "item", "hit", "sibling", "unreadable")] == [1, 7, 6, 1, 30]
    assert next(one for one in records if one["record"] == "hit")["item_text"][0] == ["the shared words", True]


def test_a_page_shows_so_many_and_says_how_many_it_left_out(tmp_path: Path) -> None:
    page = write_audit(found(SHOWN + 50), tmp_path / "audit.html").page.read_text(encoding="utf-8")
    assert page.count("Jaccard 0.91") == SHOWN
    assert f"{SHOWN + 100} more pairs are not shown" in page


def test_nothing_found_is_said(tmp_path: Path) -> None:
    empty = AuditResult("t", "e.json", AuditSettings(), "exam", rows=1200, items=400)
    page = write_audit(empty, tmp_path / "audit.html").page.read_text(encoding="utf-8")
    assert "None of the 400 items is touched by the 1,200 rows" in page
    assert "<article" not in page


def test_half_a_surrogate_pair_and_a_giant_word_do_no_harm(tmp_path: Path) -> None:
    result = found(0)
    text = ((f"\ud83d{'x' * 100_000}", True),)
    result.hits = [Hit("exact", "r", "s", "o", "i", "p", 1.0, text, text)]
    written = write_audit(result, tmp_path / "audit.html")
    assert written.page.stat().st_size < 40_000
    assert files.read_jsonl(written.records)


def test_a_name_that_is_no_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"ends in \.html"):
        write_audit(found(), tmp_path / "audit.jsonl")


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium at /usr/bin/chromium")
def test_it_opens_offline_at_both_widths(tmp_path: Path) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = write_audit(found(), tmp_path / "audit.html").page
    said: list[str] = []
    asked: list[str] = []
    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        for width, height in ((390, 844), (1440, 900)):
            page = browser.new_page(viewport={"width": width, "height": height})
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(path.resolve().as_uri())
            assert page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth") <= 0
            assert page.evaluate("() => document.querySelectorAll('mark').length") == 14
        browser.close()
    assert said == []
    assert asked
    assert all(url.startswith(("file:", "data:")) for url in asked)
