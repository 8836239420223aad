"""One repository on a hub, through huggingface_hub: what it holds, and changes to it that can be repeated.

Every call is tried again while its trouble passes (see `patience`); a refusal is one HubError with its mend. This
module knows nothing of runs and of what may be published.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from luthier.errors import HubError
from luthier.publishing.patience import Patience
from luthier.publishing.request import Endpoint

Result = TypeVar("Result")
KEPT = ".gitattributes"
"""A hub's own file: made with the repository, changed by it for large files."""
_MENDS = {
    400: "the name of the repository, or the front matter of the card, is not to this hub's taste: mend it",
    401: "the token is unknown there, or has expired: log in again, or set HF_TOKEN",
    402: "the account needs a plan or more storage for this: see its billing page, or publish publicly",
    403: "the token may not write there: give one with write access to this repository, or another publish.repo",
    404: "there is no such repository or branch for this token: look at the name, and at what the token may see",
    409: "somebody changes the repository at the same time, or its name is taken: look at it, then run the line again",
    412: "somebody changed the repository meanwhile: look at what is there, then run the line again",
    413: "a file is larger than this hub takes: publish an adapter of a lower rank, or ask for more room",
}


@dataclass(frozen=True)
class Held:
    """A file as a hub holds it: `large` by its sha256, else by its git sha1."""

    size: int
    digest: str
    large: bool


@dataclass(frozen=True)
class Head:
    """Where a branch stands."""

    commit: str
    private: bool


class Repository:
    """NAMESPACE/NAME at an endpoint. Methods raise HubError."""

    def __init__(self, endpoint: Endpoint, name: str, patience: Patience) -> None:
        from huggingface_hub import HfApi

        self._api = HfApi(endpoint=endpoint.url, token=endpoint.token, library_name="luthier")
        self._endpoint = endpoint
        self._patience = patience
        self.name = name

    @property
    def url(self) -> str:
        return f"{self._endpoint.url}/{self.name}"

    def head(self, branch: str) -> Head | None:
        """Where a branch stands; None without one, or without a repository that this token may see."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        try:
            found = self._do("look", lambda: self._api.model_info(self.name, revision=branch))
        except HubError as error:
            cause = error.__cause__
            hidden = isinstance(cause, (RepositoryNotFoundError, RevisionNotFoundError))
            if hidden and not isinstance(cause, GatedRepoError) and refused_with(error) == 404:
                return None
            raise
        return Head(str(found.sha), bool(found.private))

    def make(self, private: bool) -> None:
        """Make the repository; one that is there meanwhile is left as it is."""
        self._do("make", lambda: self._api.create_repo(self.name, private=private, exist_ok=True))

    def held(self, revision: str) -> dict[str, Held]:
        """All files at a branch or commit, but the hub's own."""
        from huggingface_hub.hf_api import RepoFile

        listed = self._do("list", lambda: list(self._api.list_repo_tree(self.name, recursive=True, revision=revision)))
        files = [item for item in listed if isinstance(item, RepoFile) and item.path != KEPT]
        return {
            item.path: Held(item.size, item.lfs.sha256, True) if item.lfs else Held(item.size, item.blob_id, False)
            for item in files
        }

    def document(self, path: str, revision: str) -> Any:
        """A small JSON file; None where it is something else."""
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        url = f"{self.url}/resolve/{revision}/{path}"

        def get() -> bytes:
            answer = get_session().get(url, headers=build_hf_headers(token=self._endpoint.token))
            hf_raise_for_status(answer)
            return bytes(answer.content)

        try:
            return json.loads(self._do(f"read {path}", get))
        except ValueError:
            return None

    def branch(self, name: str, start: str) -> None:
        """Make a branch at `start`, unless it is there."""
        self._do("branch", lambda: self._api.create_branch(self.name, branch=name, revision=start, exist_ok=True))

    def unbranch(self, name: str) -> None:
        """Remove a branch, unless it is gone."""
        try:
            self._do("tidy", lambda: self._api.delete_branch(self.name, branch=name))
        except HubError as error:
            if refused_with(error) != 404:
                raise

    def commit(
        self, folder: Path, add: Sequence[str], remove: Sequence[str], message: str, branch: str, parent: str | None
    ) -> None:
        """One commit on a branch. Large files that the hub has are not sent again.

        With `parent`, the branch must still stand there: 412 says that it does not. Whether a commit whose answer was
        lost has arrived is for the caller to see.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        with ExitStack() as opened:
            streams = {name: opened.enter_context((folder / name).open("rb")) for name in add}
            # A stream, not a path: huggingface_hub then sends over HTTP, where each byte is counted and timed out.
            files = [CommitOperationAdd(name, stream) for name, stream in streams.items()]
            gone = [CommitOperationDelete(name) for name in remove]

            def send() -> None:
                for stream in streams.values():
                    stream.seek(0)  # a try that was cut leaves it anywhere
                # One file after the other: a cut costs one, and the rest still go.
                self._api.preupload_lfs_files(self.name, files, revision=branch, num_threads=1, free_memory=False)
                self._api.create_commit(
                    self.name, [*files, *gone], commit_message=message, revision=branch, parent_commit=parent
                )

            self._do("send", send)

    def _do(self, what: str, call: Callable[[], Result]) -> Result:
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        doing = f"{self.url}: {what}"
        try:
            return self._patience.repeat(doing, call)
        except (HfHubHTTPError, HFValidationError, ValueError, RuntimeError, KeyError) as error:
            refusal = _refusal(error)
            status = _status(refusal)
            mend = _MENDS.get(status, "run the line again; if it stays, the hub does not speak as it should")
            raise HubError(f"{doing}: {self._clean(refusal)}", mend) from refusal

    def _clean(self, error: BaseException) -> str:
        """What a hub said, in one line without the token."""
        said = getattr(error, "server_message", None) or str(error)
        status = _status(error)
        line = " ".join(said.replace(self._endpoint.token, "…").split())
        return f"{status}: {line[:240]}" if status else line[:240] or type(error).__name__


def refused_with(error: HubError) -> int:
    """The HTTP status behind an error; 0 where there was no answer."""
    return _status(error.__cause__)


def _refusal(error: BaseException) -> BaseException:
    """The answer of the hub behind what the library wrapped around it."""
    from huggingface_hub.errors import HfHubHTTPError

    found: BaseException | None = error
    while found is not None and not isinstance(found, HfHubHTTPError):
        found = found.__cause__
    return found or error


def _status(error: BaseException | None) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)
