"""What people leave behind on the pages: conversations, ballots and votes, transcripts and their corrections.

One SQLite file. Knows nothing of who a visitor is: an owner is the digest of a random token that lies in the browser.
Words and sound of a vote or a correction are kept only with consent; without it the bare choice stays, for the
standings. Refuses to know pages and models; rows for training are made in `rowsout.py`.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from luthier.engines.base import Sampling
from luthier.errors import DataError, DiskError, RequestError
from luthier.outcome.looks import default_ledger
from luthier.outcome.statistics import Estimate, Vote, bradley_terry, first_position
from luthier.schema import Message, canonical

Choice = Literal["first", "second", "tie", "both_bad"]
_BUSY_SECONDS = 10.0
"""How long another process is waited for."""
CHOICES: tuple[Choice, ...] = ("first", "second", "tie", "both_bad")
_MIGRATIONS = (
    """
    CREATE TABLE conversation (id TEXT PRIMARY KEY, owner TEXT NOT NULL, model TEXT NOT NULL, sampling TEXT NOT NULL,
        messages TEXT NOT NULL, changed REAL NOT NULL);
    CREATE INDEX conversation_owner ON conversation (owner, changed);
    CREATE TABLE media (sha256 TEXT PRIMARY KEY, data BLOB NOT NULL);
    CREATE TABLE transcript (id TEXT PRIMARY KEY, owner TEXT NOT NULL, heard TEXT, corrected TEXT, engine TEXT NOT NULL,
        language TEXT NOT NULL, seconds REAL NOT NULL, sound TEXT, consent INTEGER NOT NULL, time REAL NOT NULL);
    CREATE TABLE ballot (id TEXT PRIMARY KEY, owner TEXT NOT NULL, prompt TEXT NOT NULL, messages TEXT NOT NULL,
        first_model TEXT NOT NULL, second_model TEXT NOT NULL, first_answer TEXT, second_answer TEXT,
        sampling TEXT NOT NULL, time REAL NOT NULL);
    CREATE TABLE vote (ballot TEXT PRIMARY KEY REFERENCES ballot (id), choice TEXT NOT NULL, reason TEXT NOT NULL,
        consent INTEGER NOT NULL, time REAL NOT NULL);
    """,
)
"""What brings a file of version n (its place here) to n + 1; never edited, only added to."""


def default_store() -> Path:
    """serve.sqlite in the user's data folder, or in `$LUTHIER_HOME`."""
    return default_ledger().parent / "serve.sqlite"


def owner_of(token: str) -> str:
    """Who a browser's random token stands for in the store: whoever reads the file cannot take their place."""
    return hashlib.sha256(token.encode()).hexdigest()[:32]


def fresh_id() -> str:
    """An id that nobody can guess."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Conversation:
    """One talk with a model; a system turn, where there is one, comes first."""

    id: str
    owner: str
    model: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Correction:
    """What an engine heard, and what its speaker says it was. `sound`: a whole FLAC file."""

    heard: str
    corrected: str
    engine: str
    language: str
    seconds: float
    sound: bytes
    consent: bool


@dataclass(frozen=True)
class Ballot:
    """Two answers to one prompt in the order in which they are shown; whose they are is told after the vote."""

    id: str
    owner: str
    messages: tuple[Message, ...]
    first_model: str
    second_model: str
    sampling: Sampling = field(default_factory=Sampling)
    first_answer: str | None = None
    second_answer: str | None = None
    choice: Choice | None = None


@dataclass(frozen=True)
class Standings:
    """Strengths by Bradley and Terry, strongest first, and the share of decided votes that the first answer won.

    A tie, and two answers that are both bad, count as half a win for each.
    """

    votes: int
    prompts: int
    both_bad: int
    strengths: dict[str, Estimate]
    first_wins: Estimate | None


class Store:
    """The file at `path`, made where it is missing. May be used from any thread, and by several processes.

    Every change is on the disk when its call returns; a kill leaves it whole. Raises RequestError for a file of a
    newer version, DataError for one that is torn or no store, DiskError where it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False, isolation_level=None)
        except (OSError, sqlite3.OperationalError) as error:
            raise DiskError(
                f"{path}: cannot be opened: {error}", "name a file that can be written (--store)"
            ) from error
        try:
            self._prepare()
        except BaseException:
            self._file.close()
            raise

    def _prepare(self) -> None:
        with self._guarded():
            self._keep_journal()
            for setting in ("synchronous=FULL", "foreign_keys=ON"):
                self._file.execute(f"PRAGMA {setting}")
            found = self._file.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(found)
        with self._change():
            version = self._file.execute("PRAGMA user_version").fetchone()[0]
            if version > len(_MIGRATIONS):
                raise RequestError(
                    f"{self.path}: was written by a newer Luthier (version {version} of the store; this one knows "
                    f"{len(_MIGRATIONS)})",
                    "update luthier, or name another file (--store)",
                )
            for script in _MIGRATIONS[version:]:
                for statement in filter(str.strip, script.split(";")):
                    self._file.execute(statement)
            self._file.execute(f"PRAGMA user_version={len(_MIGRATIONS)}")

    def _keep_journal(self) -> None:
        """Of several that begin a new file together SQLite refuses all but one here at once, whatever the timeout."""
        end = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._file.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
            time.sleep(0.01)

    def close(self) -> None:
        """Give the file back; what was in the journal beside it is written into it."""
        with self._lock:
            self._file.close()

    @contextmanager
    def _guarded(self) -> Iterator[sqlite3.Connection]:
        """The connection, for this thread alone, with SQLite's troubles told in ours."""
        with self._lock:
            try:
                yield self._file
            except sqlite3.OperationalError as error:
                raise DiskError(
                    f"{self.path}: {error}", "free some space, or look at who may write the file; nothing is half-done"
                ) from error
            except sqlite3.DatabaseError as error:
                raise DataError(
                    f"{self.path}: is no store of Luthier, or is damaged: {error}",
                    "move the file away (a new one is then begun), or get a copy back",
                ) from error

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """All of a change, or nothing of it."""
        with self._guarded() as file:
            file.execute("BEGIN IMMEDIATE")
            try:
                yield file
                file.execute("COMMIT")
            except BaseException:
                if file.in_transaction:  # after a COMMIT that failed too: it would stand in the way of every later one
                    file.execute("ROLLBACK")
                raise

    def _all(self, question: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._guarded() as file:
            return file.execute(question, values).fetchall()

    # Conversations

    def conversation_saved(self, talk: Conversation) -> None:
        """Keep a conversation as it now is."""
        values = (talk.id, talk.owner, talk.model, _sampling_json(talk.sampling), _messages_json(talk.messages))
        with self._change() as file:
            file.execute("INSERT OR REPLACE INTO conversation VALUES (?, ?, ?, ?, ?, ?)", (*values, time.time()))

    def conversation(self, owner: str, id: str = "") -> Conversation | None:
        """One of an owner's conversations; without an id the one that changed last. None: it is not theirs, or gone."""
        rows = self._all(
            "SELECT id, owner, model, sampling, messages FROM conversation WHERE owner = ? AND (? = '' OR id = ?) "
            "ORDER BY changed DESC LIMIT 1",
            *(owner, id, id),
        )
        if not rows:
            return None
        key, owner, model, sampling, messages = rows[0]
        return Conversation(key, owner, model, _sampling(sampling), _messages(messages))

    def conversations(self, owner: str) -> list[tuple[str, str]]:
        """(id, the first question) of an owner's conversations, the last one first; empty ones are left out."""
        rows = self._all("SELECT id, messages FROM conversation WHERE owner = ? ORDER BY changed DESC LIMIT 50", owner)
        first = ((id, next((m.text for m in _messages(text) if m.role == "user"), None)) for id, text in rows)
        return [(id, asked) for id, asked in first if asked is not None]

    def conversation_removed(self, owner: str, id: str) -> None:
        """Forget a conversation, and the pictures that no other one shows."""
        with self._change() as file:
            found = file.execute("SELECT messages FROM conversation WHERE owner = ? AND id = ?", (owner, id)).fetchone()
            if found is None:
                return
            file.execute("DELETE FROM conversation WHERE id = ?", (id,))
            for part in (part for message in _messages(found[0]) for part in message.content if part.media):
                named = f'%"{part.media}"%'
                elsewhere = file.execute("SELECT 1 FROM conversation WHERE messages LIKE ? LIMIT 1", (named,))
                if elsewhere.fetchone() is None:
                    file.execute("DELETE FROM media WHERE sha256 = ?", (str(part.media).removeprefix("sha256:"),))

    def media_saved(self, data: bytes) -> str:
        """Keep a picture; its reference (`sha256:<hex>`)."""
        digest = hashlib.sha256(data).hexdigest()
        with self._change() as file:
            file.execute("INSERT OR IGNORE INTO media VALUES (?, ?)", (digest, data))
        return f"sha256:{digest}"

    def media(self, reference: str) -> bytes:
        """The bytes of a picture or a recording. Raises DataError where they are not kept."""
        rows = self._all("SELECT data FROM media WHERE sha256 = ?", reference.removeprefix("sha256:"))
        if not rows:
            raise DataError(f"{self.path}: {reference} is not in the store", "ask again with the picture")
        return bytes(rows[0][0])

    # Transcripts

    def correction(self, owner: str, said: Correction) -> str:
        """Keep a corrected transcript; its id. Without consent: that there was one, and neither words nor sound."""
        id, sound = fresh_id(), None
        with self._change() as file:
            if said.consent:
                sound = hashlib.sha256(said.sound).hexdigest()
                file.execute("INSERT OR IGNORE INTO media VALUES (?, ?)", (sound, said.sound))
            words = (said.heard, said.corrected) if said.consent else (None, None)
            file.execute(
                "INSERT INTO transcript VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (id, owner, *words, said.engine, said.language, said.seconds, sound, said.consent, time.time()),
            )
        return id

    def transcripts(self, owner: str = "") -> list[dict[str, Any]]:
        """All transcripts, oldest first, or one owner's; columns as in the table."""
        return self._records("SELECT * FROM transcript WHERE ? = '' OR owner = ? ORDER BY time, id", owner, owner)

    # Ballots and votes

    def ballot_drawn(self, ballot: Ballot) -> None:
        """Keep a new ballot, in place of the one that its owner left without a vote."""
        prompt = hashlib.sha256(_messages_json(ballot.messages).encode()).hexdigest()[:16]
        values = (_messages_json(ballot.messages), ballot.first_model, ballot.second_model)
        with self._change() as file:
            file.execute("DELETE FROM ballot WHERE owner = ? AND id NOT IN (SELECT ballot FROM vote)", (ballot.owner,))
            file.execute(
                "INSERT INTO ballot VALUES (?, ?, ?, ?, ?, ?, NULL, NULL, ?, ?)",
                (ballot.id, ballot.owner, prompt, *values, _sampling_json(ballot.sampling), time.time()),
            )

    def ballot_answered(self, id: str, first: str, second: str) -> None:
        """Keep both answers of a ballot, so that it can be voted on."""
        with self._change() as file:
            file.execute("UPDATE ballot SET first_answer = ?, second_answer = ? WHERE id = ?", (first, second, id))

    def ballot(self, owner: str, id: str = "") -> Ballot | None:
        """One of an owner's ballots; without an id the last. None: it is not theirs, or gone."""
        rows = self._records(
            "SELECT ballot.*, choice FROM ballot LEFT JOIN vote ON vote.ballot = ballot.id "
            "WHERE owner = ? AND (? = '' OR id = ?) ORDER BY ballot.time DESC LIMIT 1",
            *(owner, id, id),
        )
        if not rows:
            return None
        found = {key: value for key, value in rows[0].items() if key not in ("prompt", "time")}
        return Ballot(**{**found, "messages": _messages(found["messages"]), "sampling": _sampling(found["sampling"])})

    def vote(self, owner: str, ballot: str, choice: Choice, reason: str = "", consent: bool = False) -> Ballot:
        """Keep a vote and say whose the answers were. Without consent prompt, answers and reason are forgotten.

        Raises RequestError for a ballot that is not the owner's, has no answers yet or was voted on already.
        """
        if choice not in CHOICES:
            raise RequestError(f"{choice!r} is not a vote", f"vote {', '.join(CHOICES)}")
        with self._change() as file:
            found = self.ballot(owner, ballot)
            if found is None or found.first_answer is None or found.choice is not None:
                raise RequestError(
                    "this ballot cannot be voted on: it is gone, not answered yet, or has its vote already",
                    "ask both models again",
                )
            if not consent:
                file.execute(
                    "UPDATE ballot SET messages = '[]', first_answer = '', second_answer = '' WHERE id = ?", (ballot,)
                )
            values = (ballot, choice, reason if consent else "", consent, time.time())
            file.execute("INSERT INTO vote VALUES (?, ?, ?, ?, ?)", values)
        return replace(found, choice=choice)

    def votes(self, owner: str = "") -> list[dict[str, Any]]:
        """All votes with their ballots, oldest first, or one owner's; columns as in the tables."""
        return self._records(
            "SELECT ballot.*, choice, reason, consent, vote.time AS voted FROM vote JOIN ballot ON ballot.id = ballot "
            "WHERE ? = '' OR owner = ? ORDER BY vote.time, ballot.id",
            *(owner, owner),
        )

    def standings(self) -> Standings | None:
        """Who is preferred, over all votes; None without any.

        Raises DataError where two sets of models were never compared.
        """
        cast = self.votes()
        if not cast:
            return None
        winners = {"first": "first_model", "second": "second_model"}
        votes = [
            Vote(
                row["prompt"], row["first_model"], row["second_model"], str(row.get(winners.get(row["choice"], ""), ""))
            )
            for row in cast
        ]
        bad = sum(row["choice"] == "both_bad" for row in cast)
        prompts = len({vote.prompt for vote in votes})
        return Standings(len(votes), prompts, bad, bradley_terry(votes), first_position(votes))

    def _records(self, question: str, *values: Any) -> list[dict[str, Any]]:
        with self._guarded() as file:
            found = file.execute(question, values)
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found]


def _messages_json(messages: Sequence[Message]) -> str:
    return canonical([message.to_json() for message in messages])


def _messages(text: str) -> tuple[Message, ...]:
    return tuple(Message.from_json(item) for item in json.loads(text))


def _sampling_json(sampling: Sampling) -> str:
    return canonical(asdict(sampling))


def _sampling(text: str) -> Sampling:
    found = json.loads(text)
    return Sampling(**{**found, "stop": tuple(found["stop"])})
