"""A hub on loopback that speaks the protocol of the real one: repositories, branches, commits, large files, faults.

What it stores it names as git and LFS do, and it refuses a digest that is not that of the bytes, a large file that was
never sent. Faults are planned by route and count; `hubserver` is what speaks HTTP.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_" + "loopback" * 5
LARGE = 8_000
"""Bytes from which this hub keeps a file as a large one; names that end in .safetensors always."""


@dataclass(frozen=True)
class Fault:
    """What happens at the `at`-th request (from 1) to a route, `times` times in a row (0: for ever).

    `kind`: a status (with `headers`), `reset` after `after` bytes of the body, `stall`, `half` an answer, `lost` (done,
    but the connection breaks before the answer), or `wrong` (other bytes are stored than came).
    """

    route: str
    kind: int | str
    at: int = 1
    times: int = 1
    headers: tuple[tuple[str, str], ...] = ()
    after: int = 0


@dataclass(frozen=True)
class File:
    """`large` by sha256, else by the sha1 of its git blob."""

    oid: str
    size: int
    large: bool
    content: bytes = b""


Files = dict[str, File]


@dataclass
class Repo:
    private: bool
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    shown: list[Files] = field(default_factory=list)
    """Every state that main was ever in."""


class Refused(Exception):
    """An answer other than 200. `code` is the hub's own word for it."""

    def __init__(self, status: int, text: str, code: str = "") -> None:
        super().__init__(text)
        self.status, self.text, self.code = status, text, code


class Hub:
    """State and faults. `requests` counts by route; `received` has the bytes that came for each large file."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.stolen: list[str] = []
        """Routes that got a token where none belongs."""
        self.chunk = 0
        """Bytes of a part, where large files are asked for in parts."""
        self.stall = 2.0
        self.tick: Any = lambda route: None
        """Called with the route of each request before it is looked at, and with "body" as a large file comes in."""
        self.parts: dict[tuple[str, int], bytes] = {}
        self.lock = threading.RLock()
        self.url = ""

    def fault(self, route: str) -> Fault | None:
        with self.lock:
            self.requests[route] += 1
            count = self.requests[route]
            for one in self.faults:
                if one.route == route and one.at <= count and (not one.times or count < one.at + one.times):
                    return one
        return None

    def repo(self, name: str) -> Repo:
        if name not in self.repos:
            raise Refused(404, "Repository not found", "RepoNotFound")
        return self.repos[name]

    def files(self, name: str, revision: str) -> tuple[str, Files]:
        repo = self.repo(name)
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            raise Refused(404, "Invalid rev id", "RevisionNotFound")
        return commit, repo.commits[commit]

    def main(self, name: str) -> dict[str, str]:
        """sha256 of each file that main shows, but the hub's own."""
        files = self.files(name, "main")[1]
        return {
            path: hashlib.sha256(self.stored[file.oid] if file.large else file.content).hexdigest()
            for path, file in files.items()
            if path != ".gitattributes"
        }

    def put(self, name: str, branch: str, files: Files) -> str:
        repo = self.repo(name)
        listed = sorted((path, file.oid) for path, file in files.items())
        parent = repo.branches.get(branch, "")
        commit = hashlib.sha1(json.dumps([parent, listed, len(repo.commits)]).encode()).hexdigest()
        repo.commits[commit] = files
        repo.branches[branch] = commit
        if branch == "main":
            repo.shown.append(files)
        return commit

    # What the routes do. Each takes (name, rest, body, query) and returns what is answered as JSON.

    def create(self, name: str, rest: str, body: Any, query: Any) -> Any:
        name = f"{body['organization']}/{body['name']}" if body.get("organization") else f"user/{body['name']}"
        if name in self.repos:
            raise Refused(409, json.dumps({"error": "You already created this", "url": f"{self.url}/{name}"}))
        self.repos[name] = Repo(body.get("visibility") == "private")
        self.put(name, "main", {".gitattributes": regular(b"*.safetensors filter=lfs\n")})
        return {"url": f"{self.url}/{name}"}

    def info(self, name: str, rest: str, body: Any, query: Any) -> Any:
        commit, _ = self.files(name, rest or "main")
        return {"id": name, "modelId": name, "sha": commit, "private": self.repo(name).private, "tags": []}

    def validate(self, name: str, rest: str, body: Any, query: Any) -> Any:
        if not body["content"].startswith("---\n"):
            raise Refused(400, json.dumps({"errors": [{"message": "no front matter"}]}))
        return {"warnings": [], "errors": []}

    def branch(self, name: str, rest: str, body: Any, query: Any) -> Any:
        repo = self.repo(name)
        if rest in repo.branches:
            raise Refused(409, "Reference already exists")
        repo.branches[rest] = self.files(name, (body or {}).get("startingPoint", "main"))[0]
        return {}

    def unbranch(self, name: str, rest: str, body: Any, query: Any) -> Any:
        if self.repo(name).branches.pop(rest, None) is None:
            raise Refused(404, "Reference does not exist", "RevisionNotFound")
        return {}

    def preupload(self, name: str, rest: str, body: Any, query: Any) -> Any:
        files = self.files(name, rest)[1]
        found = []
        for one in body["files"]:
            large = one["path"].endswith(".safetensors") or one["size"] >= LARGE
            there = files.get(one["path"])
            answer = {"path": one["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            found.append(answer | ({"oid": there.oid} if there else {}))
        return {"files": found}

    def batch(self, name: str, rest: str, body: Any, query: Any) -> Any:
        self.repo(name)
        return {"transfer": "basic", "objects": [self._object(one["oid"], one["size"]) for one in body["objects"]]}

    def _object(self, oid: str, size: int) -> Any:
        found = {"oid": oid, "size": size}
        if oid in self.stored:
            return found
        verify = {"href": f"{self.url}/lfs-verify/{oid}"}
        if not self.chunk:
            return {**found, "actions": {"upload": {"href": f"{self.store}/lfs/{oid}"}, "verify": verify}}
        places = {str(n + 1): f"{self.store}/lfs/{oid}/{n + 1}" for n in range(-(-size // self.chunk))}
        header = {"chunk_size": str(self.chunk), **places}
        upload = {"href": f"{self.url}/lfs-complete/{oid}", "header": header}
        return {**found, "actions": {"upload": upload, "verify": verify}}

    @property
    def store(self) -> str:
        """Large files go to another origin, as they do on the real hub."""
        return self.url.replace("127.0.0.1", "localhost")

    def keep(self, oid: str, content: bytes, wrong: bool = False) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refused(400, "the bytes are not those of the digest")
        with self.lock:
            self.stored[oid] = content[:-1] + b"?" if wrong else content

    def complete(self, name: str, rest: str, body: Any, query: Any) -> Any:
        parts = [self.parts[rest, one["partNumber"]] for one in body["parts"]]
        if [hashlib.md5(part).hexdigest() for part in parts] != [one["etag"] for one in body["parts"]]:
            raise Refused(400, "a part has another etag")
        self.keep(rest, b"".join(parts))
        return {}

    def verify(self, name: str, rest: str, body: Any, query: Any) -> Any:
        if len(self.stored.get(rest, b"")) != body["size"]:
            raise Refused(404, "the object was never sent")
        return {}

    def commit(self, name: str, rest: str, body: Any, query: Any) -> Any:
        with self.lock:
            parent, before = self.files(name, rest)
            lines = [json.loads(line) for line in body.splitlines()]
            wanted = lines[0]["value"].get("parentCommit")
            if wanted not in (None, parent):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            files = dict(before)
            for line in lines[1:]:
                self._change(files, line["key"], line["value"])
            commit = self.put(name, rest, files)
        return {"commitOid": commit, "commitUrl": f"{self.url}/{name}/commit/{commit}"}

    def _change(self, files: Files, key: str, value: Any) -> None:
        if key == "file":
            files[value["path"]] = regular(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in self.stored:
                raise Refused(400, f"lfs pointer {value['oid']} was not sent")
            # What is told of a large file is what is stored, so that bytes that were changed on the way show.
            oid = hashlib.sha256(self.stored[value["oid"]]).hexdigest()
            self.stored.setdefault(oid, self.stored[value["oid"]])
            files[value["path"]] = File(oid, value["size"], True)
        elif key == "deletedFile" and files.pop(value["path"], None) is None:
            raise Refused(400, "A file with this name doesn't exist")

    def tree(self, name: str, rest: str, body: Any, query: Any) -> Any:
        return [told(path, file) for path, file in sorted(self.files(name, rest)[1].items())]

    def paths(self, name: str, rest: str, body: Any, query: Any) -> Any:
        asked = {path: file for path, file in self.files(name, rest)[1].items() if path in body.get("paths", [])}
        return [told(path, file) for path, file in sorted(asked.items())]

    def refs(self, name: str, rest: str, body: Any, query: Any) -> Any:
        found = self.repo(name).branches.items()
        branches = [{"name": one, "ref": f"refs/heads/{one}", "targetCommit": commit} for one, commit in found]
        return {"branches": branches, "tags": [], "converts": []}

    def whoami(self, name: str, rest: str, body: Any, query: Any) -> Any:
        return {"type": "user", "name": "user", "auth": {"accessToken": {"role": "write"}}}

    def resolve(self, name: str, rest: str, body: Any, query: Any) -> Any:
        revision, _, path = rest.partition("/")
        commit, files = self.files(name, unquote(revision))
        if path not in files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        file = files[path]
        return commit, file, self.stored[file.oid] if file.large else file.content


def regular(content: bytes) -> File:
    oid = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    return File(oid, len(content), False, content)


def told(path: str, file: File) -> Any:
    if not file.large:
        return {"type": "file", "path": path, "size": file.size, "oid": file.oid}
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.oid}\nsize {file.size}\n".encode()
    large = {"oid": file.oid, "size": file.size, "pointerSize": len(pointer)}
    return {"type": "file", "path": path, "size": file.size, "oid": regular(pointer).oid, "lfs": large}
