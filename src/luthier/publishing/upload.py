"""A package becomes what a branch of a repository shows, in one commit: before it the old files, after it all the new.

The way there: a branch of its own, the files onto it, every digest there compared with ours, then one commit on the
visible branch whose large files the hub has already. A run that is cut anywhere is gone on with by calling again: what
has arrived is found by its digest. This module decides what may be replaced; it knows no HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.console import say
from luthier.errors import ExistsError, HubError, RequestError
from luthier.files import MANIFEST
from luthier.publishing.package import Package, owner_of
from luthier.publishing.repository import Held, Repository, refused_with
from luthier.publishing.request import PublishRequest

_BOUND = 1_000_000
"""Bytes: a manifest that is larger is none of ours."""


@dataclass(frozen=True)
class Uploaded:
    """The commit that shows the package, and whether it was there before."""

    commit: str
    private: bool
    unchanged: bool


def upload(package: Package, repository: Repository, request: PublishRequest) -> Uploaded:
    """Make the repository show the package at `request.revision`. Raises ExistsError, RequestError or HubError.

    When somebody else changes the branch meanwhile, what is there now is looked at once more.
    """
    aside = f"luthier-{package.digest[:12]}"
    for last in (False, True):
        head = repository.head(request.revision)
        if head is None and request.revision != "main":
            head = repository.head("main")
        if head is None:
            repository.make(request.private)
            head = repository.head("main")
            if head is None:
                raise HubError(f"{repository.url}: was made, and is not there", "run the line again")
        if request.private and not head.private:
            raise RequestError(
                f"{repository.url}: is public, and this upload is to be private",
                "make it private in its settings, or say --public (publish.private: false)",
            )
        held = repository.held(head.commit)
        there = not differing(package, held)
        if not there:
            _refuse_foreign(package, repository, request, held, head.commit)
            _stage(package, repository, aside, head.commit)
        if request.revision != "main":
            repository.branch(request.revision, head.commit)
        if there:
            if repository.head(aside) is not None:  # an upload that was killed before it tidied up
                repository.unbranch(aside)
            return Uploaded(head.commit, head.private, unchanged=True)
        try:
            _send(package, repository, held, request.revision, head.commit)
        except HubError as error:
            if refused_with(error) not in (409, 412):
                raise
            moved = repository.head(request.revision)
            # A commit whose answer was lost has moved the branch to what we want it to show.
            if moved is None or differing(package, repository.held(moved.commit)):
                if last:
                    raise
                say(f"{repository.url}: {request.revision} was changed meanwhile; looking again")
                continue
        return _finish(package, repository, request.revision, aside)
    raise AssertionError("the second round returns or raises")


def differing(package: Package, held: dict[str, Held]) -> list[str]:
    """Names of files that are missing, other than ours, or strangers."""
    wrong = []
    for name, file in package.files.items():
        there = held.get(name)
        if there is None or there.digest != (file.sha256 if there.large else file.git):
            wrong.append(name)
    return [*wrong, *sorted(set(held) - set(package.files))]


def _refuse_foreign(
    package: Package, repository: Repository, request: PublishRequest, held: dict[str, Held], commit: str
) -> None:
    """Raise ExistsError where the files are not of this run and stage. An empty repository is anybody's."""
    if not held or request.update:
        return
    known = MANIFEST in held and held[MANIFEST].size <= _BOUND
    owner, stage = owner_of(repository.document(MANIFEST, commit)) if known else ("", "")
    if (owner, stage) != (package.owner, package.stage):
        whose = f"another run (its stage {stage})" if owner and owner != package.owner else "something else"
        whose = f"stage {stage} of this run" if owner == package.owner else whose
        raise ExistsError(
            f"{repository.url}: holds {whose}, and nothing that exists is overwritten",
            "give another publish.repo, or --update to replace it (its history stays there)",
        )


def _stage(package: Package, repository: Repository, aside: str, start: str) -> None:
    """All files on a branch of their own, each compared with ours there."""
    repository.branch(aside, start)
    held = repository.held(aside)
    if differing(package, held):
        try:
            _send(package, repository, held, aside, None)
        except HubError as error:
            # Of a commit whose answer was lost, the second try may be refused: what it removes is gone.
            if not refused_with(error) or differing(package, repository.held(aside)):
                raise
    wrong = differing(package, repository.held(aside))
    if wrong:
        repository.unbranch(aside)
        raise HubError(
            f"{repository.url}: holds other bytes than were sent: {', '.join(wrong[:5])}; the visible files were not "
            "touched",
            "run the line again; if it stays, look at the repository's .gitignore and at the hub",
        )


def _send(package: Package, repository: Repository, held: dict[str, Held], branch: str, parent: str | None) -> None:
    message = f"{package.stage}: {len(package.files)} files, {package.digest[:12]}"
    strangers = sorted(set(held) - set(package.files))
    repository.commit(package.folder, sorted(package.files), strangers, message, branch, parent)


def _finish(package: Package, repository: Repository, branch: str, aside: str) -> Uploaded:
    head = repository.head(branch)
    wrong = differing(package, repository.held(head.commit)) if head else ["everything"]
    if head is None or wrong:
        raise HubError(
            f"{repository.url}: {branch} does not show what was sent: {', '.join(wrong[:5])}",
            f"look at it; the files lie on the branch {aside}",
        )
    try:
        repository.unbranch(aside)
    except HubError as error:  # what was asked for is done
        say(f"{error.message}: the branch {aside} is left there, and can be removed")
    return Uploaded(head.commit, head.private, unchanged=False)
