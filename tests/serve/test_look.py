"""What pages make of foreign text and of what goes wrong."""

from __future__ import annotations

import pytest

pytest.importorskip("gradio")

from luthier.errors import RequestError
from luthier.serve import look

LINE = "the line of a page"


def refuse():
    raise RequestError("it is too long", "shorten it")


def break_down():
    raise ZeroDivisionError("/secret/place")


def begin_and_break_down():
    yield {LINE: "begun"}
    break_down()


def test_a_refusal_is_a_sentence_with_its_mend():
    assert look.guarded(refuse, LINE)() == {LINE: look.said("It is too long. Shorten it.", "bad")}


def test_a_fault_of_ours_is_a_sentence_without_its_traceback_which_the_log_has(caplog):
    said = look.guarded(break_down, LINE)()[LINE]
    assert "not your doing" in said
    assert "secret" not in said
    assert "/secret/place" in caplog.text


def test_a_fault_in_the_middle_of_a_stream_ends_it_with_the_sentence(caplog):
    begun, ended = look.guarded(begin_and_break_down, LINE)()
    assert begun == {LINE: "begun"}
    assert "not your doing" in ended[LINE]
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    "text",
    ["<img src=http://x/y.png>", "![a](http://x/y.png)", "<script>alert(1)</script>", "[a](javascript:alert(1))"],
)
def test_words_of_a_model_make_no_browser_ask_or_run_anything(text):
    shown = look.markdown(text)
    assert "<img" not in shown
    assert "<script" not in shown
    assert 'href="javascript' not in shown
