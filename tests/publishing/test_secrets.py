"""What must not leave is found and masked, in texts and in what weights say of themselves; the rest is left alone."""

from __future__ import annotations

import json
import random
import string
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import RequestError
from luthier.publishing.secrets import find_in_folder, find_in_text, looks_drawn, mask, refuse_secrets

LETTERS = string.ascii_letters + string.digits
# Put together here, so that no scanner of sources takes them for real ones.
DRAWN = "".join(random.Random(4).choices(LETTERS, k=64))
SECRETS = {
    "Hugging Face": "hf_" + DRAWN[:34],
    "OpenAI": "sk-" + "proj-" + DRAWN[:40],
    "AWS": "AKIA" + DRAWN[:16].upper(),
    "GitHub": "ghp_" + DRAWN[:36],
    "GitLab": "glpat-" + DRAWN[:20],
    "Stripe": "sk_" + "live_" + DRAWN[:24],
    "package index": "npm_" + DRAWN[:36],
    "bearer": "Authorization: Bearer " + DRAWN[:24],
    "Slack": "xoxb-" + "123456789012-" + DRAWN[:20],
    "Google": "AIza" + DRAWN[:35],
    "JWT": "eyJ" + DRAWN[:20] + ".eyJ" + DRAWN[20:44] + "." + DRAWN[:30],
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "password in an address": "https://somebody:" + "pa55word@host.example/x",
    "what looks like a secret": f'"wandb_api_key": "{DRAWN[:40].lower()}"',
}
HARMLESS = [
    "the bearer of good news, Bearer internationalisation-of-everything",
    "risk-averse-sk-learners-of-2026 and disk_live_wires",
    "hf_model_name and sk-learn and xoxo",
    '"eos_token": "<|end_of_text|>", "pad_token": "<|reserved_special_token_250|>"',
    '"tokenizer_class": "PreTrainedTokenizerFast"',
    '"tokenizer_sha256": "081adbe0a895947f9e4ea40a1bd4ab09ab1299128fdfc98ca66845978883d7f0"',
    "https://host.example/path:with@signs and mail somebody@host.example",
    '"max_new_tokens": 1234567890123456789',
    "key: the-quick-brown-fox-jumps-over-2-lazy-dogs",
]


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_found_at_its_line_and_masked(kind: str) -> None:
    text = f"first line\nand here: {SECRETS[kind]} ends\n"
    found = list(find_in_text(text, "card.md"))
    assert any(kind in find.kind for find in found), found
    assert all(find.line == 2 for find in found)
    secret = SECRETS[kind].rpartition(": ")[2].strip('"')
    assert secret not in " ".join(map(str, found))


@pytest.mark.parametrize("line", HARMLESS)
def test_what_is_no_secret_is_left_alone(line: str) -> None:
    assert list(find_in_text(line, "f")) == []


@pytest.mark.parametrize("kind", SECRETS)
def test_a_folder_with_a_secret_is_refused_with_file_and_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "tokenizer_config.json").write_text(f"{{\n{SECRETS[kind]}\n}}")
    with pytest.raises(RequestError, match=r"sub/tokenizer_config\.json:2:") as caught:
        refuse_secrets(tmp_path, {})
    assert SECRETS[kind] not in str(caught.value)


def test_weights_are_searched_in_what_they_say_of_themselves(tmp_path: Path) -> None:
    def weights(metadata: dict[str, str]) -> bytes:
        header = json.dumps({"__metadata__": metadata, "a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}})
        return len(header).to_bytes(8, "little") + header.encode()

    (tmp_path / "adapter_model.safetensors").write_bytes(weights({"format": "pt"}))
    assert list(find_in_folder(tmp_path, {})) == []
    (tmp_path / "adapter_model.safetensors").write_bytes(weights({"by": SECRETS["Hugging Face"]}))
    assert [find.kind for find in find_in_folder(tmp_path, {})] == ["a Hugging Face token"]
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0pickl")
    with pytest.raises(RequestError, match="no safetensors"):
        refuse_secrets(tmp_path, {})


def test_the_value_of_a_secret_variable_is_found_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("a\nsome correct horse battery here\n")
    found = list(find_in_folder(tmp_path, {"MY_PASSWORD": "correct horse battery", "PATH": "some", "X_TOKEN": "a"}))
    assert [str(find) for find in found] == ["README.md:2: the value of $MY_PASSWORD: corr… (21 characters)"]


SPELLED = {
    "a.json": '"token_' + SECRETS["Hugging Face"].replace("h", "\\u0068", 1) + '"',
    "b.json": f"token_{SECRETS['Hugging Face']}",
    "c.md": SECRETS["Hugging Face"].replace("_", "&#95;"),
    "d.md": SECRETS["Hugging Face"].replace("_", "\\_"),
    "e.yaml": "AccountKey=" + DRAWN,
}


@pytest.mark.parametrize("name", SPELLED)
def test_a_token_is_found_however_a_file_spells_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(SPELLED[name])
    assert list(find_in_folder(tmp_path, {}))


def test_the_name_of_a_file_may_give_it_away_too(tmp_path: Path) -> None:
    (tmp_path / f"notes-{SECRETS['GitHub']}.txt").write_text("nothing")
    assert [find.kind for find in find_in_folder(tmp_path, {})] == ["a GitHub token"]


@pytest.mark.parametrize("name", ["HF_TOKEN_2", "GITHUB_PAT", "DB_PASS", "SSH_PRIVATE_KEY", "STRIPE_SECRET_KEY"])
def test_variables_are_secret_by_their_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.txt").write_text("some correct horse battery here")
    assert list(find_in_folder(tmp_path, {name: "correct horse battery"}))
    assert not list(find_in_folder(tmp_path, {"GPG_KEY": "correct horse battery", "TOKENIZERS": "correct horse"}))


def test_a_path_of_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    found = list(find_in_text('"base": "/home/somebody/models/x"\n"/home/somebody-else/x"\n', "adapter_config.json"))
    assert [(find.line, find.kind) for find in found] == [(1, "a path of your home folder")]


@given(st.text(LETTERS, min_size=36, max_size=36).filter(lambda text: len(set(text)) > 15))
def test_no_token_of_the_hub_is_ever_printed(body: str) -> None:
    token = "hf_" + body
    found = list(find_in_text(f"x={token};", "f"))
    assert found
    assert token not in str(found)


@given(st.text())
def test_any_text_can_be_searched(text: str) -> None:
    for find in find_in_text(text, "f"):
        assert find.line >= 1


@pytest.mark.parametrize("letters", [LETTERS, LETTERS + "+/", "a", "token-", "eyJ.", "://a:"])
def test_a_long_line_takes_time_in_proportion(letters: str) -> None:
    """Tokenizers hold tables of a megabyte on one line: a pattern that looks back from each letter would take hours."""
    line = "".join(random.Random(2).choices(letters, k=1_000_000))
    begun = time.process_time()
    list(find_in_text(line, "tokenizer.json"))
    assert time.process_time() - begun < 10


def test_words_are_told_from_what_is_drawn_by_lot() -> None:
    rng = random.Random(1)
    drawn = ["".join(rng.choices("0123456789abcdef", k=32)) for _ in range(300)]
    assert sum(map(looks_drawn, drawn)) > 285
    assert not looks_drawn("reserved_special_token_250")
    assert not looks_drawn("a" * 30 + "11")
    assert mask("abcdefgh") == "abcd… (8 characters)"
