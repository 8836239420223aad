"""What people leave behind: kept whole, told to nobody else, and read back by the data floor."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.media import decode_audio
from luthier.dataverbs import build
from luthier.engines.base import Sampling
from luthier.errors import DataError, DiskError, ExistsError, RequestError
from luthier.outcome.statistics import Vote, bradley_terry
from luthier.schema import Message, Part
from luthier.serve.rowsout import transcript_rows, vote_rows, write_rows
from luthier.serve.store import Ballot, Choice, Conversation, Correction, Store, default_store, fresh_id, owner_of
from support.children import environment
from support.fakeserve import png, tone, wav

ASKED = (Message("user", (Part("text", "Why is the sky blue?"),)),)


def flac(folder: Path) -> bytes:
    path = folder / "said.flac"
    soundfile.write(path, tone(0.5), 16000, format="FLAC", subtype="PCM_16")
    return path.read_bytes()


def ballot(owner: str = "me", first: str = "a", second: str = "b", prompt: str = "Why?") -> Ballot:
    return Ballot(fresh_id(), owner, (Message("user", (Part("text", prompt),)),), first, second)


def cast(store: Store, choice: Choice, one: Ballot | None = None, **more: object) -> Ballot:
    one = one or ballot()
    store.ballot_drawn(one)
    store.ballot_answered(one.id, f"{one.first_model} says so", f"{one.second_model} says no")
    return store.vote(one.owner, one.id, choice, **more)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "serve.sqlite")


def test_a_conversation_comes_back_as_it_was_after_the_file_is_opened_again(tmp_path: Path) -> None:
    talk = Conversation(
        "c1",
        "me",
        "one/sft",
        Sampling(7, 0.25, 0.5, 3, 11, ("###", "\n")),
        (Message("system", (Part("text", "Be brief."),)), *ASKED, Message("assistant", (Part("text", "Þáð 🎻"),))),
    )
    first = Store(tmp_path / "deep" / "serve.sqlite")
    first.conversation_saved(talk)
    first.close()
    assert Store(tmp_path / "deep" / "serve.sqlite").conversation("me", "c1") == talk


def test_nobody_is_shown_another_visitors_conversation_or_ballot(store: Store) -> None:
    store.conversation_saved(Conversation("c1", "me", "m", messages=ASKED))
    one = ballot()
    store.ballot_drawn(one)
    assert store.conversation("you", "c1") is None
    assert store.conversation("you") is None
    assert store.conversations("you") == []
    assert store.ballot("you", one.id) is None
    with pytest.raises(RequestError, match="cannot be voted on"):
        store.vote("you", one.id, "first")


def test_the_token_of_a_browser_is_not_in_the_file(store: Store) -> None:
    store.conversation_saved(Conversation("c1", owner_of("a-token-of-some-browser"), "m", messages=ASKED))
    held = b"".join(path.read_bytes() for path in store.path.parent.iterdir())
    assert b"a-token-of-some-browser" not in held
    assert b"the sky blue" in held


def test_a_deleted_conversation_takes_with_it_the_pictures_that_no_other_shows(store: Store) -> None:
    shared, own = store.media_saved(png(4, 4)), store.media_saved(png(5, 5))
    for id, pictures in (("c1", (shared, own)), ("c2", (shared,))):
        parts = tuple(Part("image", media=reference) for reference in pictures)
        store.conversation_saved(Conversation(id, "me", "m", messages=(Message("user", parts),)))
    store.conversation_removed("you", "c1")
    assert store.media(own) == png(5, 5)
    store.conversation_removed("me", "c1")
    assert store.media(shared) == png(4, 4)
    with pytest.raises(DataError, match="not in the store"):
        store.media(own)


def test_a_vote_is_cast_once_and_only_on_answers_that_are_there(store: Store) -> None:
    one = ballot()
    store.ballot_drawn(one)
    with pytest.raises(RequestError, match="not answered yet"):
        store.vote("me", one.id, "first")
    store.ballot_answered(one.id, "yes", "no")
    with pytest.raises(RequestError, match="is not a vote"):
        store.vote("me", one.id, "third")  # type: ignore[arg-type]
    assert store.vote("me", one.id, "second").choice == "second"
    with pytest.raises(RequestError, match="its vote already"):
        store.vote("me", one.id, "first")
    assert [vote["choice"] for vote in store.votes()] == ["second"]


def test_without_consent_no_word_of_a_vote_or_a_recording_stays(store: Store, tmp_path: Path) -> None:
    cast(store, "first", ballot(prompt="a secret prompt"), reason="a secret reason")
    sound = flac(tmp_path)
    store.correction("me", Correction("a secret word", "a secret ward", "ears", "en", 0.5, sound, consent=False))
    store.close()
    (tmp_path / "said.flac").unlink()
    with sqlite3.connect(store.path) as file:
        kept = "\n".join(file.iterdump())
    assert "secret" not in kept
    assert "says so" not in kept
    assert sound.hex().upper() not in kept
    again = Store(store.path)
    assert again.standings() is not None
    assert again.transcripts()[0]["engine"] == "ears"


def test_standings_are_those_of_bradley_and_terry_with_ties_for_both_bad(store: Store) -> None:
    choices: list[Choice] = ["first"] * 5 + ["second"] * 2 + ["tie", "both_bad"]
    wanted = []
    for number, choice in enumerate(choices):
        names = ("a", "b") if number % 2 else ("b", "a")
        cast(store, choice, ballot(first=names[0], second=names[1], prompt=f"prompt {number}"))
        wanted.append(Vote(str(number), *names, dict(zip(("first", "second"), names, strict=True)).get(choice, "")))
    found = store.standings()
    assert found is not None
    assert (found.votes, found.prompts, found.both_bad) == (9, 9, 1)
    theirs = bradley_terry(wanted)
    assert {name: one["value"] for name, one in found.strengths.items()} == pytest.approx(
        {name: one["value"] for name, one in theirs.items()}
    )
    assert found.first_wins is not None
    assert found.first_wins["value"] == pytest.approx(5 / 7)


def test_there_are_no_standings_without_a_vote_and_none_over_models_that_never_met(store: Store) -> None:
    assert store.standings() is None
    cast(store, "first", ballot(first="a", second="b"))
    cast(store, "first", ballot(first="c", second="d"))
    with pytest.raises(DataError, match="no vote compares"):
        store.standings()


def test_threads_that_write_at_once_lose_nothing(store: Store) -> None:
    def work(number: int) -> None:
        for turn in range(5):
            cast(store, "tie", ballot(owner=f"owner {number}", prompt=f"{number} {turn}"), consent=True)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.votes()) == 40


def test_a_server_that_is_killed_loses_no_vote_that_it_took(tmp_path: Path) -> None:
    path = tmp_path / "serve.sqlite"
    script = f"""
from pathlib import Path
from luthier.schema import Message, Part
from luthier.serve.store import Ballot, Store
store = Store(Path({str(path)!r}))
for number in range(10_000):
    prompt = (Message("user", (Part("text", "?"),)),)
    store.ballot_drawn(Ballot(str(number), "me", prompt, "a", "b"))
    store.ballot_answered(str(number), "x", "y")
    store.vote("me", str(number), "first")
    print(number, flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment())
    assert child.stdout is not None
    told = [int(child.stdout.readline()) for _ in range(20)]
    os.kill(child.pid, signal.SIGKILL)
    told += [int(line) for line in child.stdout.read().splitlines() if line]
    child.wait()
    kept = {int(vote["id"]) for vote in Store(path).votes()}
    assert set(told) <= kept
    assert len(kept) <= len(told) + 1


@pytest.mark.parametrize("how", ["cut", "scribbled", "html"])
def test_a_file_that_is_torn_or_no_store_is_named_and_left_alone(tmp_path: Path, how: str) -> None:
    path = tmp_path / "serve.sqlite"
    store = Store(path)
    for number in range(40):
        cast(store, "first", ballot(prompt=f"{number} " * 200), consent=True)
    store.close()
    whole = path.read_bytes()
    torn = {
        "cut": whole[: len(whole) // 2],
        "scribbled": whole[:6000] + b"\xff" * 9000 + whole[15000:],
        "html": b"<!doctype html>" * 400,
    }[how]
    path.write_bytes(torn)
    with pytest.raises(DataError, match=r"serve\.sqlite: is no store of Luthier, or is damaged"):
        Store(path)
    assert path.read_bytes() == torn


def test_a_newer_store_is_refused_and_one_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    path = tmp_path / "serve.sqlite"
    Store(path).close()
    with sqlite3.connect(path) as file:
        file.execute("PRAGMA user_version=9")
    with pytest.raises(RequestError, match="newer Luthier"):
        Store(path)
    (tmp_path / "a file").write_text("")
    with pytest.raises(DiskError, match="cannot be opened"):
        Store(tmp_path / "a file" / "serve.sqlite")


def test_the_default_place_is_in_the_users_folder(home_of_its_own: Path) -> None:
    assert default_store() == home_of_its_own / "serve.sqlite"


def test_only_what_was_agreed_to_is_exported_and_every_record_is_counted(store: Store, tmp_path: Path) -> None:
    sound = flac(tmp_path)
    cast(store, "second", ballot(prompt="Why?"), reason="clearer", consent=True)
    cast(store, "first", ballot(prompt="How?"))
    cast(store, "tie", ballot(prompt="Who?"), consent=True)
    cast(store, "both_bad", ballot(prompt="When?"), consent=True)
    store.correction("me", Correction("red", "read", "ears", "en", 0.5, sound, consent=True))
    store.correction("me", Correction("red", "read", "ears", "en", 0.5, sound, consent=False))
    counts = write_rows(store, tmp_path / "rows")
    assert counts["votes"] == {"in": 4, "exported": 1, "left out": {"no consent": 1, "a tie": 1, "both bad": 1}}
    assert counts["transcripts"] == {"in": 2, "exported": 1, "left out": {"no consent": 1}}
    vote = json.loads((tmp_path / "rows" / "votes.jsonl").read_text())
    assert vote["messages"][-1] == {"role": "assistant", "content": "b says no"}
    assert (vote["rejected"], vote["reason"], vote["chosen_model"]) == ("a says so", "clearer", "b")
    media = list((tmp_path / "rows" / "media").iterdir())
    assert [path.read_bytes() for path in media] == [sound]
    with pytest.raises(ExistsError):
        write_rows(store, tmp_path / "rows")


def test_a_visitors_own_export_holds_nothing_of_others(store: Store) -> None:
    cast(store, "first", ballot(owner="me", prompt="mine"), consent=True)
    cast(store, "first", ballot(owner="you", prompt="yours"), consent=True)
    rows = list(vote_rows(store, Counter(), "me"))
    assert [row["messages"][0]["content"] for row in rows] == ["mine"]
    assert list(transcript_rows(store, Counter(), "me")) == []


def test_exported_rows_are_built_into_a_table_with_nothing_lost(store: Store, tmp_path: Path) -> None:
    from luthier.data.table import iter_rows

    cast(store, "second", ballot(prompt="Why <image> [x](y)\nis it?"), consent=True)
    store.correction("me", Correction("read book", "red book", "ears", "en", 0.5, flac(tmp_path), consent=True))
    write_rows(store, tmp_path / "rows")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"""name: mine
model: {{base: "toy:llama"}}
data:
  sources:
    votes: {{path: {tmp_path}/rows/votes.jsonl}}
    spoken: {{path: {tmp_path}/rows/transcripts.jsonl}}
  train: [votes, spoken]
  validation_fraction: 0
task: {{kind: chat}}
""",
        encoding="utf-8",
    )
    build(recipe, tmp_path / "table")
    rows = {found.row.provenance.source: found.row for found in iter_rows(tmp_path / "table")}
    assert [message.text for message in rows["votes"].messages] == ["Why <image> [x](y)\nis it?", "b says no"]
    assert json.loads(rows["votes"].more)["rejected"] == "a says so"
    assert rows["spoken"].messages[-1].text == "red book"
    assert json.loads(rows["spoken"].more)["heard"] == "read book"
    (reference,) = rows["spoken"].media
    data = (tmp_path / "table" / "media" / reference.removeprefix("sha256:")).read_bytes()
    assert np.abs(decode_audio(data)[0].ravel() - tone(0.5)).max() < 1e-4


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=80), reason=st.text(max_size=30))
def test_any_text_survives_the_store(tmp_path_factory: pytest.TempPathFactory, text: str, reason: str) -> None:
    store = Store(tmp_path_factory.mktemp("any") / "serve.sqlite")
    talk = Conversation("c", "me", "m", messages=(Message("user", (Part("text", text),)),))
    store.conversation_saved(talk)
    assert store.conversation("me") == talk
    cast(store, "first", ballot(prompt=text), reason=reason, consent=True)
    rows = list(vote_rows(store, Counter()))
    assert (rows[0]["messages"][0]["content"], rows[0]["reason"]) == (text, reason)
    store.close()


def test_a_recording_is_kept_as_it_was_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.serve.services import Services
    from luthier.serve.spoken import hear
    from support.fakeserve import fake_services

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    services: Services = fake_services(tmp_path)
    path = tmp_path / "sent.wav"
    path.write_bytes(wav(tone(1.0)))
    heard = hear(services, "me", str(path))
    assert heard.text == "what is the capital of norway"
    assert np.abs(decode_audio(heard.sound)[0].ravel() - tone(1.0)).max() < 1e-4
    path.write_bytes(wav(tone(1.0, peak=0)))
    with pytest.raises(RequestError, match="nobody spoke"):
        hear(services, "me", str(path))
    services.close()


def test_a_change_that_the_disk_refuses_at_its_end_stands_in_nobodys_way(store: Store, tmp_path: Path) -> None:
    """SQLite keeps a transaction open whose COMMIT failed; here that of a reader who holds the old kind of journal."""
    store._file.execute("PRAGMA journal_mode=DELETE")
    store._file.execute("PRAGMA busy_timeout=0")
    reader = sqlite3.connect(tmp_path / "serve.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM conversation").fetchall()
    with pytest.raises(DiskError, match="locked"):
        store.conversation_saved(Conversation("c1", "me"))
    reader.close()
    store.conversation_saved(Conversation("c2", "me"))
    assert store.conversation("me", "c1") is None
    assert store.conversation("me", "c2") is not None


def test_a_new_file_that_another_process_is_just_beginning_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "serve.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.2, other.close)
    release.start()
    Store(path).close()
    release.join()
