"""Uploads to a hub on loopback: whole or not at all, told in one message, whatever happens on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from luthier.errors import ExistsError, HubError, RequestError
from luthier.publishing import upload as uploading
from luthier.publishing.package import Package
from luthier.publishing.patience import Patience
from luthier.publishing.request import PublishRequest
from support.hub import TOKEN, Fault, Hub, regular
from support.packages import LARGE_FILES, send

Make = Callable[..., Package]
REPO = "group/model_1764"
PRIVATE = PublishRequest(REPO)


@dataclass
class Clock:
    """Waits that take no time, and how long they would have been."""

    waits: list[float] = field(default_factory=list)

    def patience(self) -> Patience:
        return Patience(sleep=self.waits.append, drawn=lambda: 1.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def digests(package: Package) -> dict[str, str]:
    return {name: file.sha256 for name, file in package.files.items()}


def never_half(hub: Hub, *packages: Package) -> bool:
    """Whether main only ever showed nothing or one of these packages, whole."""
    whole = [{name: file.size for name, file in package.files.items()} for package in packages]
    for state in hub.repos[REPO].shown if REPO in hub.repos else []:
        seen = {name: file.size for name, file in state.items() if name != ".gitattributes"}
        if seen and seen not in whole:
            return False
    return True


def test_a_new_repository_is_private_and_shows_all_files_in_one_commit(hub: Hub, make: Make, clock: Clock) -> None:
    package = make()
    done = send(package, hub.url, PRIVATE, clock.patience())
    repo = hub.repos[REPO]
    assert hub.main(REPO) == digests(package)
    assert (repo.private, done.private, done.unchanged, len(repo.shown)) == (True, True, False, 2)
    assert repo.branches == {"main": done.commit}
    assert sum(hub.received.values()) == 2 * 40_000
    assert hub.stolen == []
    assert clock.waits == []


def test_what_is_there_already_is_not_sent_again(hub: Hub, make: Make, clock: Clock) -> None:
    first = send(make(), hub.url, PRIVATE, clock.patience())
    before = hub.requests.copy()
    again = send(make(), hub.url, PRIVATE, clock.patience())
    assert (again.unchanged, again.commit) == (True, first.commit)
    assert {route for route in hub.requests if hub.requests[route] > before[route]} == {"info", "tree"}


def test_another_version_of_the_same_stage_replaces_the_old_one(hub: Hub, make: Make, clock: Clock) -> None:
    send(make("one"), hub.url, PRIVATE, clock.patience())
    send(make("two"), hub.url, PRIVATE, clock.patience())
    assert hub.main(REPO) == digests(make("two"))
    assert never_half(hub, make("one"), make("two"))


@pytest.mark.parametrize("theirs", ["another run", "something else"])
def test_what_is_not_of_this_run_is_refused_and_left(hub: Hub, make: Make, clock: Clock, theirs: str) -> None:
    if theirs == "another run":
        send(make("theirs", owner="them"), hub.url, PRIVATE, clock.patience())
    else:
        hub.create("", "", {"name": "model_1764", "organization": "group", "visibility": "private"}, {})
        hub.put(REPO, "main", {"model.bin": regular(b"weights")})
    before = hub.main(REPO)
    with pytest.raises(ExistsError, match=f"holds {theirs}") as caught:
        send(make(), hub.url, PRIVATE, clock.patience())
    assert "--update" in caught.value.mend
    assert hub.main(REPO) == before
    send(make(), hub.url, PublishRequest(REPO, update=True), clock.patience())
    assert hub.main(REPO) == digests(make())


def test_a_public_repository_is_refused_for_what_is_to_be_private(hub: Hub, make: Make, clock: Clock) -> None:
    send(make(), hub.url, PublishRequest(REPO, private=False), clock.patience())
    assert hub.repos[REPO].private is False
    with pytest.raises(RequestError, match="is public"):
        send(make("two"), hub.url, PRIVATE, clock.patience())
    assert hub.main(REPO) == digests(make())


def test_large_files_in_parts_arrive_whole(hub: Hub, make: Make, clock: Clock) -> None:
    hub.chunk = 15_000
    send(make(), hub.url, PRIVATE, clock.patience())
    assert hub.main(REPO) == digests(make())
    assert hub.requests["put"] == 6


def test_a_branch_that_is_not_main_is_made(hub: Hub, make: Make, clock: Clock) -> None:
    send(make(), hub.url, PublishRequest(REPO, revision="v2"), clock.patience())
    assert set(hub.files(REPO, "v2")[1]) - {".gitattributes"} == set(make().files)
    assert hub.main(REPO) == {}


ROUTES = ["info", "create", "tree", "branch", "preupload", "batch", "put", "verify", "validate", "commit", "unbranch"]
BUSY = (("RateLimit", '"api";r=0;t=55'),)
LATER = (("Retry-After", "7"),)
PASSING = [
    *(Fault(route, status) for route in ROUTES for status in (500, 503)),
    *(Fault(route, "reset", after=10) for route in ROUTES),
    *(Fault(route, "lost") for route in ROUTES),
    *(Fault(route, "half") for route in ROUTES if route != "put"),
    *(Fault(route, 429, headers=BUSY) for route in ROUTES),
    *(Fault(route, "stall") for route in ("info", "put", "commit")),
    Fault("put", "reset", at=2, after=20_000),
    Fault("put", "reset", at=1, times=3, after=39_999),
    Fault("commit", 502, at=2, times=3),
    Fault("commit", "lost", at=2),
    Fault("put", 504, times=2),
    Fault("tree", 429, at=3, headers=LATER),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda f: f"{f.route}-{f.kind}-{f.at}x{f.times}-{len(f.headers)}")
def test_a_trouble_that_passes_ends_equal_to_the_manifest(hub: Hub, make: Make, clock: Clock, fault: Fault) -> None:
    hub.faults, hub.stall = [fault], 1.5
    package = make()
    send(package, hub.url, PRIVATE, clock.patience(), silence=1.0 if fault.kind == "stall" else 30.0)
    repo = hub.repos[REPO]
    assert hub.main(REPO) == digests(package)
    assert list(repo.branches) == ["main"]
    assert len(repo.shown) == 2  # the empty repository, and all the files
    assert hub.requests[fault.route] > fault.times
    again = 0 if fault.route != "put" else fault.times * 40_000  # only what was cut
    assert sum(hub.received.values()) <= 2 * 40_000 + again
    assert 1 <= len(clock.waits) <= fault.times
    if fault.headers:
        assert clock.waits == [56.0 if fault.headers == BUSY else 8.0]


STAYING = {401: "HF_TOKEN", 402: "plan", 403: "may not write", 404: "look at the name", 409: "somebody", 413: "larger"}
FOREVER = [
    *(Fault("commit", status, times=0) for status in STAYING),
    *(Fault("commit", status, at=2, times=0) for status in (401, 403)),  # all is there, and main stays as it was
    *(Fault(route, 403, times=0) for route in ("create", "preupload", "batch", "put", "branch", "info")),
    Fault("create", 402, times=0),
    Fault("tree", 401, at=2, times=0),
    Fault("commit", 412, times=0),
    Fault("put", "wrong"),
]


@pytest.mark.parametrize("fault", FOREVER, ids=lambda f: f"{f.route}-{f.kind}-{f.at}")
def test_a_refusal_that_stays_is_one_message_at_once(hub: Hub, make: Make, clock: Clock, fault: Fault) -> None:
    hub.faults = [fault]
    with pytest.raises(HubError) as caught:
        send(make(), hub.url, PRIVATE, clock.patience())
    said = str(caught.value)
    assert caught.value.mend
    assert TOKEN not in said
    assert f"{hub.url}/{REPO}" in said
    if isinstance(fault.kind, int):
        assert str(fault.kind) in said
        assert STAYING.get(fault.kind, "") in said
    else:
        assert "other bytes than were sent" in said
    assert clock.waits == []
    assert never_half(hub)


@pytest.mark.parametrize("kind", [500, 429, "reset"])
@pytest.mark.parametrize("route", ["info", "put", "commit"])
def test_a_trouble_that_never_passes_is_left_after_a_few_tries(
    hub: Hub, make: Make, clock: Clock, route: str, kind: int | str
) -> None:
    hub.faults = [Fault(route, kind, times=0)]
    with pytest.raises(HubError, match="6 times in a row") as caught:
        send(make(), hub.url, PRIVATE, clock.patience())
    assert "not sent twice" in caught.value.mend
    assert clock.waits == [1, 2, 4, 8, 16]
    # Each file has its try, side by side; the last one ends as soon as one of them has failed.
    files = len(LARGE_FILES) if route == "put" else 1
    assert 5 * files < hub.requests[route] <= 6 * files
    assert never_half(hub)


def test_a_hub_that_asks_for_more_than_there_is_patience_is_left_at_once(hub: Hub, make: Make, clock: Clock) -> None:
    hub.faults = [Fault("info", 429, headers=(("Retry-After", "3600"),))]
    with pytest.raises(HubError, match="3601 s"):
        send(make(), hub.url, PRIVATE, clock.patience())
    assert clock.waits == []


def test_when_somebody_else_changes_main_meanwhile_it_is_looked_at_again(hub: Hub, make: Make, clock: Clock) -> None:
    send(make("one"), hub.url, PRIVATE, clock.patience())
    meddled = []

    def meddle(route: str) -> None:
        if route == "commit" and hub.requests["commit"] == 3 and not meddled:  # the one on main
            meddled.append(hub.put(REPO, "main", dict(hub.files(REPO, "main")[1])))

    hub.tick = meddle
    send(make("two"), hub.url, PRIVATE, clock.patience())
    assert meddled
    assert hub.main(REPO) == digests(make("two"))


@pytest.mark.parametrize("at", [3, 4])
def test_a_file_that_went_out_of_use_is_removed_though_an_answer_is_lost(
    hub: Hub, make: Make, clock: Clock, at: int
) -> None:
    send(make("one"), hub.url, PRIVATE, clock.patience())
    hub.put(REPO, "main", {**hub.files(REPO, "main")[1], "old.txt": regular(b"old")})
    hub.faults = [Fault("commit", "lost", at=at)]
    send(make("two"), hub.url, PRIVATE, clock.patience())
    assert hub.main(REPO) == digests(make("two"))
    assert list(hub.repos[REPO].branches) == ["main"]


def test_a_branch_that_cannot_be_removed_is_told_and_no_failure(
    hub: Hub, make: Make, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults = [Fault("unbranch", 403)]
    send(make(), hub.url, PRIVATE, clock.patience())
    assert hub.main(REPO) == digests(make())
    assert "is left there" in capsys.readouterr().err
    assert send(make(), hub.url, PRIVATE, clock.patience()).unchanged
    assert list(hub.repos[REPO].branches) == ["main"]


def test_a_file_that_the_repository_ignores_is_told_and_main_stays(
    hub: Hub, make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = hub.preupload

    def ignoring(*words: object) -> object:
        answer = found(*words)  # type: ignore[arg-type]
        for one in answer["files"]:
            one["shouldIgnore"] = one["path"] == "tokenizer.json"
        return answer

    monkeypatch.setattr(hub, "preupload", ignoring)
    with pytest.raises(HubError, match=r"tokenizer\.json.*visible files were not"):
        send(make(), hub.url, PRIVATE, clock.patience())
    assert hub.main(REPO) == {}
    assert list(hub.repos[REPO].branches) == ["main"]


def test_control_without_the_comparison_wrong_bytes_would_be_shown(
    hub: Hub, make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's fault is a real one: an upload that compares nothing shows the wrong bytes, and these tests see it."""
    monkeypatch.setattr(uploading, "differing", lambda package, held: [] if held else ["all"])
    hub.faults = [Fault("put", "wrong")]
    send(make(), hub.url, PRIVATE, clock.patience())
    assert hub.main(REPO) != digests(make())


def test_control_without_a_branch_aside_main_would_be_seen_half_done(hub: Hub, make: Make, clock: Clock) -> None:
    package = make()
    hub.create("", "", {"name": "model_1764", "organization": "group", "visibility": "private"}, {})
    from luthier.publishing.patience import hub_session
    from luthier.publishing.repository import Repository
    from luthier.publishing.request import Endpoint

    with hub_session(hub.url):
        repository = Repository(Endpoint(hub.url, TOKEN), REPO, clock.patience())
        for name in LARGE_FILES:
            repository.commit(package.folder, [name], [], "one file", "main", None)
    assert not never_half(hub, package)


@pytest.mark.parametrize("kind", [503, "reset", "lost", "half"])
def test_whose_files_are_there_is_asked_again_when_the_answer_is_lost(
    hub: Hub, make: Make, clock: Clock, kind: int | str
) -> None:
    send(make("one"), hub.url, PRIVATE, clock.patience())
    hub.faults = [Fault("resolve", kind)]
    send(make("two"), hub.url, PRIVATE, clock.patience())
    assert hub.main(REPO) == digests(make("two"))
    assert clock.waits == [1.0]


def test_every_route_of_an_upload_has_its_faults(
    hub: Hub, make: Make, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    send(make(), hub.url, PRIVATE, clock.patience())
    assert set(hub.requests) == set(ROUTES)
    for kind in (500, 503, 429, "reset", "lost"):
        assert {fault.route for fault in PASSING if fault.kind == kind} == set(ROUTES)
    with capsys.disabled():
        print(f"\n{len(PASSING)} faults that pass, {len(FOREVER)} that stay, 9 that never end")
