"""Rows with media as lessons: spelled whole or refused by name, kept on disk, never cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.mediasource import Facts
from luthier.models.chat import ChatTemplate
from luthier.models.lessons import Encoder, Encoding, Lessons, write_lessons
from luthier.models.senses.base import senses_of
from luthier.models.senses.spelling import Speller
from luthier.models.senses.unfold import clock, unfold
from luthier.models.toys import build_toy
from luthier.schema import Message, Part
from support import chats, seeing
from support.seeing import SOURCE, asked, image, kept, sound, video

MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content[0].text if m.content is not string else m.content }}{% endgeneration %}"
    "{% else %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% else %}"
    "<|vision_start|><|{{ p.type }}_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Earlier answers are written otherwise than the last one, so no prompt begins as the whole row does.
CHANGING = MARKED.replace("{% generation %}", "{% if not loop.last %}(before) {% endif %}").replace(
    "{% endgeneration %}", ""
)


@pytest.fixture(scope="module", params=seeing.TOYS)
def name(request):
    return request.param


def speller_of(name, template=None):
    model, tokenizer, _ = build_toy(name)
    if template is not None:
        tokenizer.chat_template = template
    senses = senses_of(model, tokenizer, name)
    return ChatTemplate.of(tokenizer), Speller(senses, SOURCE)


def encoder_of(name, most=4096, truncation="reject", template=None):
    its, speller = speller_of(name, template)
    return Encoder(its, most, truncation, speller)


def encode(encoder, *rows):
    found = Encoding()
    return [lesson for _, lesson in encoder.encode(rows, found)], found


def slots(encoder, lesson):
    return int(encoder.speller.slots(lesson.ids_L).sum())


def test_every_medium_has_its_slots_and_the_answers_are_learned(name):
    encoder = encoder_of(name)
    rows = seeing.mixed(encoder.speller.senses.kinds)
    lessons, found = encode(encoder, *rows)
    assert not found.dropped, found.first
    for item, lesson in zip(rows, lessons, strict=True):
        assert slots(encoder, lesson) == sum(medium.slots for medium in lesson.media)
        assert {medium.reference.partition("#")[0] for medium in lesson.media} == set(item.row.media)
        learned = encoder.template.tokenizer.decode(lesson.ids_L[lesson.weight_L > 0], skip_special_tokens=True)
        said = [message.text for message in item.row.messages if message.role == "assistant"]
        assert "".join(learned.split()) == "".join("".join(said).split())


@pytest.mark.parametrize("template", [MARKED, CHANGING], ids=["marked", "changing"])
def test_places_of_answers_move_with_the_spellings_before_them(template):
    encoder = encoder_of("toy:qwen2-vl", template=template)
    more = (Message("user", (Part("text", "and "), image(25, 70))), chats.turn("assistant", "three pass"))
    [lesson], found = encode(encoder, asked(0, [image(61, 47), "what?", image(130, 33)], "green", *more))
    assert not found.dropped, found.first
    text = encoder.template.tokenizer.decode(lesson.ids_L[lesson.weight_L > 0]).replace("(before) ", "")
    assert text.split("<|im_end|>") == ["green", "three pass", ""]


def test_no_length_cuts_a_medium_and_every_row_is_kept_or_named(name):
    encoder = encoder_of(name)
    more = (
        Message("user", (Part("text", "And here?"), image(25, 70), video(10))),
        chats.turn("assistant", "three pass"),
        chats.turn("user", "Why?"),
        chats.turn("assistant", "so"),
    )
    row = asked(7, [image(40, 44, 1), "How many?", image(61, 47)], "two", *more)
    [whole], _ = encode(encoder, row)
    seen = set()
    for truncation in ("reject", "whole_turns"):
        for most in range(1, len(whole.ids_L) + 1):
            [lesson], found = encode(replace(encoder, max_tokens=most, truncation=truncation), row)
            if lesson is None:
                assert found.dropped == {"too_many_tokens": 1}
                assert found.first["too_many_tokens"].startswith("row row-7: ")
                assert truncation == "whole_turns" or most < len(whole.ids_L)
                continue
            assert len(lesson.ids_L) <= most
            assert lesson.media == whole.media[: len(lesson.media)]
            assert slots(encoder, lesson) == sum(medium.slots for medium in lesson.media)
            assert np.array_equal(lesson.ids_L, whole.ids_L[: len(lesson.ids_L)])
            seen.add(len(lesson.media))
    assert seen == {2, len(whole.media)}


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_words_that_hold_a_mark_or_a_slot_are_refused(name, role):
    encoder = encoder_of(name)
    senses = encoder.speller.senses
    for kind in senses.kinds:
        for token in (senses.mark(kind, 1), senses.slot_token(kind)):
            turns = [chats.turn("user", "one"), chats.turn("assistant", "two")]
            place = {"system": 0, "user": 0, "assistant": 1}[role]
            turns[place] = chats.turn(turns[place].role, f"a {token} b")
            with_picture = asked(1, [image(30, 30), f"a {token}"], "two")
            lessons, found = encode(encoder, chats.row(0, *turns), with_picture)
            assert lessons == [None, None]
            assert found.dropped == {"media_placeholders": 2}
            assert repr(token) in found.first["media_placeholders"]


def test_a_text_and_the_tools_of_a_row_may_not_hold_a_slot_either():
    encoder = encoder_of("toy:qwen2-vl")
    text = chats.row(0, chats.turn("assistant", "words <|image_pad|> words"))
    called = chats.turn("assistant", "", tool_calls=[{"function": {"name": "<|image_pad|>", "arguments": {}}}])
    its = "{% for m in messages %}{{ m.role }}{{ m.tool_calls }}{% for p in m.content %}{{ p.text }}{% endfor %}"
    tools = encoder_of("toy:qwen2-vl", template=its + "<|im_end|>{% endfor %}")
    for one, row in ((encoder, text), (tools, chats.row(1, chats.turn("user", "one"), called))):
        lessons, found = encode(one, row)
        assert lessons == [None]
        assert set(found.dropped) == {"media_placeholders"}


def test_answers_with_media_and_media_that_the_base_does_not_read_are_refused():
    encoder = encoder_of("toy:qwen2-vl")
    drawn = chats.row(0, chats.turn("user", "draw"), Message("assistant", (image(30, 30), Part("text", "there"))))
    lessons, found = encode(encoder, drawn, asked(1, [sound(0.5), "what?"], "one"))
    assert lessons == [None, None]
    assert found.dropped == {"media_placeholders": 2}
    assert "a base answers in text" in found.first["media_placeholders"]


def test_a_medium_that_cannot_be_read_takes_its_row_with_it_for_its_own_reason():
    torn, empty = (Part("image", media=kept(data)) for data in (b"<html>not found</html>", b""))
    lessons, found = encode(encoder_of("toy:smolvlm"), asked(0, [torn, "what?"], "a"), asked(1, [empty, "what?"], "b"))
    assert lessons == [None, None]
    assert found.dropped == {"unreadable_image": 1, "empty_image": 1}
    assert found.first["empty_image"].startswith("row row-1: image sha256:")


def test_a_base_that_reads_text_alone_refuses_rows_with_media_as_ever():
    tokenizer = build_toy("toy:llama")[1]
    lessons, found = encode(Encoder(ChatTemplate.of(tokenizer), 4096), asked(0, [image(30, 30), "what?"], "a"))
    assert lessons == [None]
    assert found.dropped == {"media_in_text_chat": 1}


def test_a_video_is_its_frames_with_their_times_and_its_sound_where_the_base_hears():
    encoder = encoder_of("toy:phi4-multimodal")
    [lesson], _ = encode(encoder, asked(0, [video(15, voice=True), "what?"], "one"))
    reference = video(15, voice=True).media
    names = [medium.reference.removeprefix(f"{reference}#") for medium in lesson.media]
    assert names == ["frame=0", "frame=1", "frame=2", "sound"]
    text = encoder.template.tokenizer.decode(lesson.ids_L)
    assert [text.count(time) for time in ("[0:00.0]", "[0:00.5]", "[0:01.0]", "[0:01.5]")] == [1, 1, 1, 0]
    [deaf], _ = encode(encoder_of("toy:idefics3"), asked(0, [video(15, voice=True), "what?"], "one"))
    assert [medium.kind for medium in deaf.media] == ["image"] * 3
    [native], _ = encode(encoder_of("toy:qwen2-vl"), asked(0, [video(15, voice=True), "what?"], "one"))
    assert [medium.kind for medium in native.media] == ["video"]


def test_an_unfolded_video_tells_its_parts_in_order():
    facts = Facts("video", 64, 48, seconds=(0.0, 59.96, 3661.25), sound=True)
    parts = [part for part, _ in unfold("sha256:a", facts, ("image", "audio"))]
    assert [part.text or part.media for part in parts] == [
        "[0:00.0]", "sha256:a#frame=0", "[1:00.0]", "sha256:a#frame=1", "[61:01.2]", "sha256:a#frame=2",
        "sha256:a#sound",
    ]  # fmt: skip


@given(st.floats(0, 1e5))
def test_a_time_is_right_to_a_twentieth_of_a_second(second):
    minutes, _, rest = clock(second)[1:-1].partition(":")
    assert 0 <= float(rest) < 60
    assert abs(int(minutes) * 60 + float(rest) - second) <= 0.0500001


def test_sound_beside_a_picture_is_read_in_its_own_way_unless_the_picture_was_cut_off():
    encoder = encoder_of("toy:phi4-multimodal")
    more = (Message("user", (image(30, 30), Part("text", "and?"))), chats.turn("assistant", "b"))
    row = asked(0, [sound(0.5), "what?"], "a", *more)
    [whole], _ = encode(encoder, row)
    assert [medium.mode for medium in whole.media] == ["vision_speech", ""]
    [part], _ = encode(replace(encoder, max_tokens=len(whole.ids_L) - 1, truncation="whole_turns"), row)
    assert [(medium.kind, medium.mode) for medium in part.media] == [("audio", "")]


def test_lessons_read_back_hold_the_same_media(tmp_path, name):
    encoder = encoder_of(name)
    rows = seeing.mixed(encoder.speller.senses.kinds)
    lessons, _ = encode(encoder, *rows)
    written = write_lessons(tmp_path / "a", lambda: enumerate(rows), encoder, Encoding())
    again = Lessons.read(tmp_path / "a")
    of = Lessons.of(lessons)
    assert [written[i].media for i in range(len(rows))] == [lesson.media for lesson in lessons]
    assert [again[i].media for i in range(len(rows))] == [of[i].media for i in range(len(rows))]
    assert list(again.media()) == [medium for lesson in lessons for medium in lesson.media]
    assert again.media_count == len(list(again.media()))
    assert written.digest() == of.digest()
    first = next(place for place, lesson in enumerate(lessons) if lesson.media)
    other = replace(lessons[first].media[0], reference="sha256:" + "0" * 64)
    lessons[first] = replace(lessons[first], media=(other, *lessons[first].media[1:]))
    assert Lessons.of(lessons).digest() != of.digest(), "another picture is another lesson"


def test_a_prompt_is_how_the_lesson_of_its_answer_begins(name):
    encoder = encoder_of(name)
    for item in seeing.mixed(encoder.speller.senses.kinds):
        [lesson], _ = encode(encoder, item)
        ids, media = encoder.speller.prompt(encoder.template, item.row.messages[:-1])
        assert lesson.ids_L[: len(ids)].tolist() == ids
        assert lesson.weight_L[len(ids)] > 0
        assert len(media) == len(lesson.media)


def test_what_the_family_begins_every_text_with_is_there_once_and_places_move_with_it(name):
    encoder = encoder_of(name)
    senses = encoder.speller.senses
    senses.opening = "<|endoftext|>"
    for item in seeing.mixed(senses.kinds):
        [lesson], found = encode(encoder, item)
        assert not found.dropped
        ids = lesson.ids_L.tolist()
        assert encoder.template.tokenizer.decode(ids[:1]) == senses.opening
        assert encoder.template.tokenizer.decode(ids[1:2]) != senses.opening
        learned = encoder.template.tokenizer.decode(lesson.ids_L[lesson.weight_L > 0], skip_special_tokens=True)
        said = [message.text for message in item.row.messages if message.role == "assistant"]
        assert "".join(learned.split()) == "".join("".join(said).split())


WORDS = st.lists(st.one_of(st.sampled_from(chats.WORDS), st.text(max_size=5)), max_size=4).map(" ".join)
SIZES = st.tuples(st.integers(12, 140), st.integers(12, 140))


@settings(max_examples=25)
@given(turns=st.lists(st.tuples(WORDS, st.lists(SIZES, max_size=2), WORDS), min_size=1, max_size=3))
def test_wild_rows_are_kept_whole_or_refused(name, turns):
    encoder = encoder_of(name) if name not in _ENCODERS else _ENCODERS[name]
    _ENCODERS[name] = encoder
    messages = []
    for question, sizes, answer in turns:
        pictures = [image(*size) for size in sizes]
        messages += [Message("user", (*pictures, Part("text", question))), chats.turn("assistant", answer)]
    [lesson], found = encode(encoder, chats.row(0, *messages))
    if lesson is None:
        assert sum(found.dropped.values()) == 1
        return
    assert len(lesson.media) == sum(len(sizes) for _, sizes, _ in turns)
    assert slots(encoder, lesson) == sum(medium.slots for medium in lesson.media)
    assert not (encoder.speller.slots(lesson.ids_L) & (lesson.weight_L > 0)).any()


_ENCODERS: dict[str, Encoder] = {}
