"""The scrub finds personal data and keys, and leaves ordinary numbers alone."""

from collections import Counter

import pytest

from luthier.data.cleaning.scrub import luhn, scrub

GHP = "ghp_" + "a1B2" * 9
HF = "hf_" + "aBcD" * 9


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("write to ann.lee+x@mail.example.org.", "write to <EMAIL>."),
        ("call +44 20 7946 0958 now", "call <PHONE> now"),
        ("(415) 555-2671 or 415-555-2671", "<PHONE> or <PHONE>"),
        ("my phone number is 0171 1234567", "my phone number is <PHONE>"),
        ("from 8.8.8.8, and 2001:4860:4860::8888", "from <IP>, and <IP>"),
        ("card 4111 1111 1111 1111 ok", "card <CARD> ok"),
        (f"token {GHP}", "token <KEY>"),
        (f"{HF};", "<KEY>;"),
        ("AKIAIOSFODNN7EXAMPLE", "<KEY>"),
        ("sk-" + "abcd1234" * 5, "<KEY>"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefgh12", "<KEY>"),
    ],
)
def test_personal_data_becomes_a_placeholder(before: str, after: str) -> None:
    counts: Counter[str] = Counter()
    assert scrub(before, counts=counts) == after
    assert counts.total() == after.count("<")


@pytest.mark.parametrize(
    "text",
    [
        "on 2024-01-15 at 12:30:45, or 15.01.2024 and 01/15/2024",
        "version 1.2.3.4 of the driver, v10.4.2, python 3.11.7",
        "it costs $1,234,567.89 or 1.234.567,89 EUR",
        "1234567890123456 and 3.14159265358979323846",
        "order 20240115123456, ISBN 978-3-16-148410-0",
        "the years 1914-1918 and 1939-1945; 100 200 3000",
        "127.0.0.1 and 192.168.0.1",
        "std::vector<int>::size_type a::b @property user@host git@github.com:a/b.git",
        "sk-learn is fine, task-oriented-dialogue-systems-for-everyone too",
        "2 + 2 = 4 and 1 + 123 456 789",
    ],
)
def test_ordinary_numbers_and_code_stay(text: str) -> None:
    assert scrub(text) == text


def test_the_check_digit() -> None:
    assert luhn("4111111111111111")
    assert not luhn("4111111111111112")
