"""Addresses are taken apart once, and lead to public machines alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.collect.addresses import follow, is_public, machine, parse
from luthier.collect.trouble import FetchError


def reason(call) -> str:
    with pytest.raises(FetchError) as caught:
        call()
    return caught.value.reason


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://Assets.Example.com/a b.jpg".replace(" ", "%20"), "https://assets.example.com/a%20b.jpg"),
        ("http://example.com", "http://example.com/"),
        ("http://example.com:80/a?b=c#d", "http://example.com/a?b=c"),
        ("http://example.com:8080/ü.jpg", "http://example.com:8080/%C3%BC.jpg"),
        ("https://bücher.example/1", "https://xn--bcher-kva.example/1"),
        ("http://[2001:4860:4860::8888]/a", "http://[2001:4860:4860::8888]/a"),
    ],
)
def test_an_address_is_shown_as_it_is_asked_for(text, shown):
    assert str(parse(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://example.com/a",
        "file:///etc/hostname",
        "javascript:alert(1)",
        "//example.com/a",
        "http:///a",
        "http://user:pw@example.com/",
        "http://example.com\\@127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://1.2.3.4.5/",
        "http://exa mple.com/",
        "http://example.com/a\nb",
        "http://example.com:99999/",
        "http://-a.example/",
        "http://[::1",
        "http://" + "a" * 300 + ".com/",
    ],
)
def test_what_is_no_plain_address_is_refused(text):
    assert reason(lambda: parse(text)) == "bad_address"


@pytest.mark.parametrize(
    "number",
    "127.0.0.1 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 255.255.255.255 192.0.2.1 "
    "198.18.0.1 ::1 :: fe80::1 fc00::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::7f00:1 64:ff9b::a00:1 "
    "2002:7f00:1:: 2002:a00:1:: 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:db8::1 nonsense".split(),
)
def test_private_numbers_are_not_public_however_they_are_wrapped(number):
    assert not is_public(number)


@pytest.mark.parametrize("number", "8.8.8.8 1.1.1.1 2001:4860:4860::8888 ::ffff:8.8.8.8 64:ff9b::808:808".split())
def test_public_numbers_are_public(number):
    assert is_public(number)


def test_a_name_that_stands_for_a_private_machine_too_is_refused():
    address = parse("http://example.com/")
    assert machine(address, lambda *_: ["8.8.8.8"]) == "8.8.8.8"
    assert reason(lambda: machine(address, lambda *_: ["8.8.8.8", "10.0.0.1"])) == "refused_address"
    assert reason(lambda: machine(address, lambda *_: [])) == "unknown_host"


def test_a_redirect_is_taken_apart_like_any_address():
    address = parse("https://example.com/a/b")
    assert str(follow(address, "../c")) == "https://example.com/c"
    assert str(follow(address, "//other.example/x")) == "https://other.example/x"
    assert reason(lambda: follow(address, "file:///etc/passwd")) == "bad_address"


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_is_refused(text):
    for candidate in (text, f"http://{text}", f"http://example.com/{text}"):
        try:
            found = parse(candidate)
        except FetchError:
            continue
        assert parse(str(found)) == found
