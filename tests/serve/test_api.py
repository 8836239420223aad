"""The HTTP API with the `openai` client and with raw requests: answers, streams, refusals, load."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.serve.server import create_server
from luthier.serve.services import Services
from luthier.serve.settings import Limits, ServeSettings
from support.fakeserve import FakeChat, FakeEars, FakeVerdict, fake_services, png, tone, wav
from support.servers import running

LIMITS = Limits(text_chars=2000, max_new_tokens=300, turns=20, audio_bytes=2 * 2**20, picture_bytes=2**20)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    made = fake_services(tmp_path_factory.mktemp("serve"), ServeSettings(queue_size=16, limits=LIMITS))
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(services: Services) -> Iterator[str]:
    with running(create_server(services, pages=False)) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20) as made:
        yield made


def asked(text: str = "hello") -> list[Any]:
    return [{"role": "user", "content": text}]


def eventually(condition: Any, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.01)
    return bool(condition())


# Chats


def test_an_answer_comes_with_its_finish_and_its_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="one/sft", messages=asked())
    assert answer.choices[0].message.content == FakeChat.answer("one/sft", "hello")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "one/sft"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (1, 6, 7)


def test_a_streamed_answer_is_the_same_in_pieces(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="two/sft", messages=asked(), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == FakeChat.answer("two/sft", "hello")
    assert len(pieces) == 6
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_tells_no_usage_unless_it_is_asked_to_and_ends_with_done(url: str) -> None:
    body = {"model": "one/sft", "messages": asked(), "stream": True}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert not any("usage" in json.loads(event.removeprefix("data: ")) for event in events[:-2])


def test_what_is_asked_for_reaches_the_engine(client: openai.OpenAI, services: Services) -> None:
    client.chat.completions.create(
        model="one/sft@step-000005",
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "d"},
        ],
        temperature=0,
        top_p=0.5,
        max_completion_tokens=2,
        stop="END",
        seed=-1,
        user="somebody",
        extra_body={"top_k": 7},
    )
    request = chat_of(services).asked[-1]
    assert [(message.role, message.text) for message in request.messages] == [
        ("system", "be brief"),
        ("user", "a\nb"),
        ("assistant", "c"),
        ("user", "d"),
    ]
    how = request.sampling
    assert (how.temperature, how.top_p, how.top_k, how.max_new_tokens, how.stop) == (0, 0.5, 7, 2, ("END",))
    assert how.seed == 2**63 - 1


def test_an_answer_that_was_cut_by_its_length_says_so(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="one/sft", messages=asked(), max_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == "one/sft heard:"


def test_an_answer_can_be_sent_back_as_the_client_got_it(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="one/sft", messages=asked())
    turns = [*asked(), answer.choices[0].message.model_dump(), *asked("and now?")]
    assert client.chat.completions.create(model="one/sft", messages=turns).choices[0].finish_reason == "stop"


def test_a_picture_comes_decoded_and_one_sent_twice_is_one(client: openai.OpenAI, services: Services) -> None:
    url = "data:image/png;base64," + base64.b64encode(png(6, 4)).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    client.chat.completions.create(
        model="one/sft", messages=[{"role": "user", "content": [part, {"type": "text", "text": "what?"}, part]}]
    )
    request = chat_of(services).asked[-1]
    (reference,) = request.media
    assert [part.media for part in request.messages[-1].content] == [reference, None, reference]
    assert request.media[reference].size == (6, 4)


def test_sound_comes_decoded(tmp_path: Path) -> None:
    hears = FakeChat(served=[model_that_hears()])
    services = fake_services(tmp_path, chat=hears)
    sound = {"data": base64.b64encode(wav(tone(0.5))).decode(), "format": "wav"}
    body = {
        "model": "ears",
        "messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": sound}]}],
    }
    with running(create_server(services, pages=False)) as address:
        assert httpx.post(f"{address}/v1/chat/completions", json=body).status_code == 200
    (wave_L,) = hears.asked[-1].media.values()
    assert wave_L.shape == (8000,)
    assert np.abs(wave_L).max() == pytest.approx(0.7, abs=0.01)
    services.close()


# Refusals


@pytest.mark.parametrize(
    ("change", "status", "words", "param"),
    [
        ({"model": "nobody"}, 404, "no model nobody", "model"),
        ({"model": "speaking/1764"}, 404, "no model speaking/1764 for this", "model"),
        ({"messages": []}, 400, "at least 1 item", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "system", "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "last message", "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x" * 2001}]}, 400, "2001 characters", "messages"),
        ({"messages": [{"role": "user", "content": "x"}] * 21}, 400, "more than 20", "messages"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, 400, "tool calls", "messages[0]"),
        ({"messages": [{"role": "user", "content": "refuse this"}]}, 400, "too long for this model", None),
        ({"max_tokens": 301}, 400, "at most 300", "max_tokens"),
        ({"max_tokens": 0}, 400, "greater than", "max_tokens"),
        ({"temperature": 3}, 400, "less than", "temperature"),
        ({"temperature": "hot"}, 400, "number", "temperature"),
        ({"n": 2}, 400, "does not serve n", "n"),
        ({"tools": [{"type": "function"}]}, 400, "does not serve tools", "tools"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "response_format"),
        ({"logprobs": True}, 400, "logprobs", "logprobs"),
        ({"best_guess": 1}, 400, "Unrecognized request argument supplied: best_guess", "best_guess"),
        ({"stop": ["a", "b", "c", "d", "e"]}, 400, "at most 4", "stop"),
    ],
)
def test_what_is_not_served_is_refused_in_openais_form(
    url: str, change: dict[str, Any], status: int, words: str, param: str | None
) -> None:
    answer = httpx.post(f"{url}/v1/chat/completions", json={"model": "one/sft", "messages": asked()} | change)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert words in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "change",
    [
        {"n": 1},
        {"tools": []},
        {"logit_bias": {}},
        {"frequency_penalty": 0.0},
        {"tools": None},
        {"metadata": {"a": "b"}},
    ],
)
def test_what_changes_no_answer_is_taken(url: str, change: dict[str, Any]) -> None:
    body = {"model": "one/sft", "messages": asked()} | change
    assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:9/a.png", "never fetched"),
        ("https://example.org/a.png", "never fetched"),
        ("file:///etc/passwd", "never fetched"),
        ("/etc/passwd", "never fetched"),
        ("data:image/png,abc", "must read data:image/png;base64"),
        ("data:image/png;base64,***", "no base64"),
        ("data:image/png;base64,QUJD", "cannot be read as a picture"),
    ],
)
def test_only_pictures_that_are_sent_themselves_are_read(client: openai.OpenAI, address: str, words: str) -> None:
    part: Any = {"type": "image_url", "image_url": {"url": address}}
    with pytest.raises(openai.BadRequestError, match=words):
        client.chat.completions.create(model="one/sft", messages=[{"role": "user", "content": [part]}])


def test_a_model_that_reads_no_pictures_says_so(client: openai.OpenAI) -> None:
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    part: Any = {"type": "image_url", "image_url": {"url": url}}
    with pytest.raises(openai.BadRequestError, match="does not read image"):
        client.chat.completions.create(model="two/sft", messages=[{"role": "user", "content": [part]}])


def test_a_fault_of_the_engine_is_told_without_its_words(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        client.chat.completions.create(model="one/sft", messages=asked("break it"))
    assert "secret" not in str(failed.value)
    with pytest.raises(openai.APIError, match="failed over this request"):
        list(client.chat.completions.create(model="one/sft", messages=asked("break it"), stream=True))
    assert client.chat.completions.create(model="one/sft", messages=asked()).choices


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/chat/completions", 404), ("POST", "/v1/embeddings", 404), ("DELETE", "/v1/models/one/sft", 404)],
)
def test_what_is_not_there_is_told_in_the_same_form(url: str, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, url + path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == "unknown_url"


# Models


def test_models_are_listed_and_told(client: openai.OpenAI) -> None:
    ids = [model.id for model in client.models.list()]
    assert ids == ["one/sft", "one/sft@step-000005", "two/sft", "base:toy:llama", "speaking/1764", "speaking/1964"]
    told = client.models.retrieve("one/sft@step-000005").model_dump()
    assert (told["kind"], told["step"], told["base"]) == ("chat", 5, "toy:llama")
    with pytest.raises(openai.NotFoundError, match="no model two/none"):
        client.models.retrieve("two/none")


def test_readiness_needs_no_more_than_a_look(url: str) -> None:
    assert httpx.get(f"{url}/healthz").json() == {
        "status": "ready",
        "models": {"chat": 4, "verdict": 2},
        "speech": "fake-ears",
    }


# Sound


def test_speech_is_transcribed(client: openai.OpenAI) -> None:
    file = ("question.wav", wav(tone(2.0)))
    assert client.audio.transcriptions.create(model="whisper-1", file=file).text == "what is the capital of norway"
    told = client.audio.transcriptions.create(
        model="fake-ears", file=file, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert told.words is not None
    assert [word.word for word in told.words] == "what is the capital of norway".split()
    assert told.duration == pytest.approx(2.0)
    assert told.segments is not None
    assert told.segments[0].text == "what is the capital of norway"


def test_transcripts_come_as_text_and_as_subtitles(client: openai.OpenAI) -> None:
    def in_format(kind: Any) -> str:
        file = ("a.wav", wav(tone(2.0)))
        return str(client.audio.transcriptions.create(model="whisper-1", file=file, response_format=kind))

    assert in_format("text") == "what is the capital of norway\n"
    assert in_format("srt") == "1\n00:00:00,000 --> 00:00:02,000\nwhat is the capital of norway\n"
    assert in_format("vtt") == "WEBVTT\n\n00:00:00.000 --> 00:00:02.000\nwhat is the capital of norway\n"


def test_silence_is_an_empty_text_with_a_note(url: str) -> None:
    answer = httpx.post(f"{url}/v1/audio/transcriptions", files={"file": ("a.wav", wav(tone(1.0, peak=0.0)))})
    assert answer.json()["text"] == ""
    assert "silent" in answer.json()["note"]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"data": {}}, "multipart/form-data"),
        ({"data": {"file": "text"}, "files": {"other": b"x"}}, "Give a file"),
        ({"files": [("file", b"a"), ("file", b"b")]}, "At most 1"),
        ({"files": {"file": ("../../etc/passwd", b"<html>hello")}}, "cannot be read as a recording"),
        ({"files": {"file": b""}}, "holds no sound"),
        ({"files": {"file": wav(tone())}, "data": {"response_format": "xml"}}, "response_format is one of"),
        ({"files": {"file": wav(tone())}, "data": {"model": "other"}}, "no model other"),
        ({"files": {"file": wav(tone())}, "data": {"stream": "true"}}, "not streamed"),
        ({"files": {"file": wav(tone())}, "data": {"language": "no"}}, "hears en"),
        ({"files": {"file": wav(tone()), "model": b"x"}}, "model is a text"),
    ],
)
def test_forms_that_cannot_be_transcribed_are_refused(url: str, form: dict[str, Any], words: str) -> None:
    answer = httpx.post(f"{url}/v1/audio/transcriptions", **form, timeout=20)
    assert answer.status_code in (400, 404)
    assert words in answer.json()["error"]["message"]


def test_recordings_are_judged_in_order_and_a_broken_one_says_why(url: str, services: Services) -> None:
    files = [
        ("file", ("loud.wav", wav(tone(peak=0.9)))),
        ("file", ("../page.wav", b"<html>")),
        ("file", ("even.wav", wav(tone(peak=0.45)))),
    ]
    answer = httpx.post(f"{url}/v1/verdicts", files=files, data={"question": "Why?", "model": "speaking/1764"})
    told = answer.json()
    assert (told["model"], told["zone"]) == ("speaking/1764", {"low": 0.4, "high": 0.6, "n": 12})
    loud, page, even = told["data"]
    assert (loud["name"], loud["pass"], loud["borderline"], loud["event"]) == ("loud.wav", True, False, "panel")
    assert loud["p_pass"] == pytest.approx(0.9, abs=1e-3)
    assert loud["p_pass_calibrated"] == pytest.approx(0.82, abs=1e-3)
    assert page["name"] == "../page.wav"
    assert "cannot be read" in page["error"]
    assert "pass" not in page
    assert (even["pass"], even["borderline"]) == (False, True)
    engine = services.verdict
    assert isinstance(engine, FakeVerdict)
    assert engine.asked[-1] == ("speaking/1764", ["loud.wav", "even.wav"], "Why?")


def test_the_first_verdict_model_is_asked_where_none_is_named(url: str) -> None:
    answer = httpx.post(f"{url}/v1/verdicts", files={"file": wav(tone())})
    assert answer.json()["model"] == "speaking/1764"


def test_recordings_of_which_none_can_be_read_are_refused(url: str) -> None:
    answer = httpx.post(f"{url}/v1/verdicts", files=[("files", b"<html>"), ("files", b"")])
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unreadable_audio"


def test_a_server_without_an_engine_says_so(tmp_path: Path) -> None:
    services = fake_services(tmp_path, chat=None, verdict=None)
    with running(create_server(services, pages=False)) as address:
        chat = httpx.post(f"{address}/v1/chat/completions", json={"model": "one/sft", "messages": asked()})
        verdict = httpx.post(f"{address}/v1/verdicts", files={"file": wav(tone())})
        assert httpx.get(f"{address}/v1/models").json()["data"] == []
    assert (chat.status_code, verdict.status_code) == (404, 404)
    services.close()


# Load, and clients that leave


def test_a_full_queue_answers_429_and_recovers(tmp_path: Path) -> None:
    slow = FakeChat(delay=0.05)
    services = fake_services(tmp_path, ServeSettings(queue_size=2), chat=slow)
    with running(create_server(services, pages=False)) as address:

        def ask(_number: int) -> httpx.Response:
            return httpx.post(
                f"{address}/v1/chat/completions", json={"model": "one/sft", "messages": asked()}, timeout=30
            )

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(8)))
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [200] * 3 + [429] * 5
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert ask(0).status_code == 200
        with (
            openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=5) as client,
            ThreadPoolExecutor(5) as pool,
        ):
            told = list(pool.map(lambda _: client.chat.completions.create(model="one/sft", messages=asked()), range(5)))
        assert all(answer.choices[0].finish_reason == "stop" for answer in told)
    assert slow.most_at_once == 1
    services.close()


def test_two_hundred_requests_at_eight_at_once_are_all_answered(client: openai.OpenAI, services: Services) -> None:
    before = len(chat_of(services).asked)

    def ask(number: int) -> str | None:
        model = ("one/sft", "two/sft")[number % 2]
        if number % 3:
            return client.chat.completions.create(model=model, messages=asked(f"q{number}")).choices[0].message.content
        stream = client.chat.completions.create(model=model, messages=asked(f"q{number}"), stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(200)))
    assert answers == [FakeChat.answer(("one/sft", "two/sft")[n % 2], f"q{n}") for n in range(200)]
    assert len(chat_of(services).asked) == before + 200
    assert chat_of(services).most_at_once == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_answer_and_frees_its_place(tmp_path: Path, stream: bool) -> None:
    slow = FakeChat(delay=0.02)
    services = fake_services(tmp_path, chat=slow)
    body = {"model": "one/sft", "messages": asked("a long one"), "stream": stream}
    with running(create_server(services, pages=False)) as address:
        if stream:
            with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as answer:
                assert next(answer.iter_lines()).startswith("data: ")
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{address}/v1/chat/completions", json=body, timeout=0.3)
        assert eventually(lambda: slow.cancelled == 1, 2.0)  # four seconds of words were left
        assert eventually(lambda: services.waiting.counts().working == 0)
    assert services.waiting.counts().left == 1
    services.close()


def test_a_client_that_leaves_while_it_waits_is_never_answered(tmp_path: Path) -> None:
    slow = FakeChat(delay=0.05)
    services = fake_services(tmp_path, chat=slow)
    with running(create_server(services, pages=False)) as address:
        path = f"{address}/v1/chat/completions"
        first = threading.Thread(
            target=lambda: httpx.post(path, json={"model": "one/sft", "messages": asked("one")}, timeout=20)
        )
        first.start()
        assert eventually(lambda: services.waiting.counts().working == 1)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(path, json={"model": "one/sft", "messages": asked("two"), "stream": True}, timeout=0.1)
        assert eventually(lambda: services.waiting.counts().waiting == 0, 1.0)
        first.join()
    assert [request.messages[-1].text for request in slow.asked] == ["one"]
    services.close()


# Whatever is sent


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "input_audio", "file"])},
    optional={
        "text": JSON,
        "image_url": JSON | st.fixed_dictionaries({"url": st.text(max_size=40)}),
        "input_audio": JSON,
    },
)
TURNS = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]) | JSON},
    optional={"content": st.text(max_size=20) | st.lists(PARTS, max_size=3) | JSON, "name": JSON, "tool_calls": JSON},
)
NUMBERS_AND_MORE = "stream stream_options temperature top_p max_tokens stop seed n tools é".split()
BODIES = st.fixed_dictionaries(
    {"model": st.just("one/sft") | JSON, "messages": st.lists(TURNS, max_size=3) | JSON},
    optional=dict.fromkeys(NUMBERS_AND_MORE, JSON),
)
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def check_told(answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text
    assert "Traceback" not in answer.text
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@FUZZ
@given(body=BODIES)
def test_no_chat_body_breaks_the_server(url: str, body: Any) -> None:
    check_told(send(f"{url}/v1/chat/completions", json.dumps(body).encode(), "application/json"))


@FUZZ
@given(
    body=st.binary(max_size=200) | st.text(max_size=100).map(str.encode), kind=st.sampled_from(["application/json", ""])
)
def test_no_bytes_break_the_server(url: str, body: bytes, kind: str) -> None:
    check_told(send(f"{url}/v1/chat/completions", body, kind))


@FUZZ
@given(body=st.binary(max_size=300), path=st.sampled_from(["audio/transcriptions", "verdicts"]), data=st.data())
def test_no_form_breaks_the_server(url: str, body: bytes, path: str, data: st.DataObject) -> None:
    whole = (
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n'
        b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b--\r\n'
    )
    place = data.draw(st.integers(0, len(whole)))
    sent = data.draw(st.sampled_from([body, whole[:place] + body + whole[place:], whole[:place]]))
    check_told(send(f"{url}/v1/{path}", sent, "multipart/form-data; boundary=b"))


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"model": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b"1" * 5000,
        b"NaN",
    ],
)
def test_known_traps_of_json_are_refused(url: str, body: bytes) -> None:
    answer = send(f"{url}/v1/chat/completions", body, "application/json")
    assert answer.status_code in (400, 404)
    check_told(answer)


@pytest.mark.parametrize(
    "messages",
    [
        b'[{"role": "user", "content": [' + b",".join([b'{"type": "text", "text": ""}'] * 50_000) + b"]}]",
        b"[" + b",".join([b'{"role": "user", "content": "a"}'] * 50_000) + b"]",
    ],
)
def test_a_body_of_very_many_small_things_is_not_looked_at_to_its_end(url: str, messages: bytes) -> None:
    answer = send(
        f"{url}/v1/chat/completions", b'{"model": "one/sft", "messages": ' + messages + b"}", "application/json"
    )
    assert answer.status_code == 400
    assert "at most" in answer.json()["error"]["message"]


_SENDER = httpx.Client(timeout=20)


def send(url: str, body: bytes, kind: str) -> httpx.Response:
    return _SENDER.post(url, content=body, headers={"content-type": kind} if kind else {})


def chat_of(services: Services) -> FakeChat:
    assert isinstance(services.chat, FakeChat)
    assert isinstance(services.speech, FakeEars)
    return services.chat


def model_that_hears() -> Any:
    from luthier.engines.base import ServedModel

    return ServedModel("ears", "chat", "toy:phi4-multimodal", reads=("text", "audio"))
