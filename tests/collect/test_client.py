"""A polite client against a host that misbehaves."""

from __future__ import annotations

import gzip
import time

import pytest

from luthier.collect.client import PoliteClient, Politeness
from luthier.collect.trouble import FetchError
from support.picturehost import picture, picture_host


@pytest.fixture
def host():
    with picture_host() as found:
        yield found


def client(resolve=lambda host, port: ["127.0.0.1"], private: bool = True, **settings) -> PoliteClient:
    usual = {"seconds_between": 0.0, "silent_seconds": 2.0, "total_seconds": 2.0, "retries": 2}
    return PoliteClient(Politeness(**{**usual, **settings}), resolve, allow_private=private)


def trouble(call) -> FetchError:
    with pytest.raises(FetchError) as caught:
        call()
    return caught.value


def test_it_says_who_it_is_and_asks_for_no_packing(host):
    host.paths["/a.png"] = picture()
    found = client(contact="me@example.org").fetch(host.url("/a.png"))
    assert found.data == picture()
    assert host.headers[-1]["User-Agent"].startswith("luthier/")
    assert "me@example.org" in host.headers[-1]["User-Agent"]
    assert host.headers[-1]["Accept-Encoding"] == "identity"
    assert host.headers[-1]["Host"] == f"shop.example:{host.port}"
    assert "Cookie" not in host.headers[-1]


def test_robots_are_read_once_and_kept_to(host):
    host.paths |= {"/robots.txt": (200, {}, b"User-agent: *\nDisallow: /no*.png$\n"), "/yes.png": picture()}
    one = client()
    one.fetch(host.url("/yes.png"))
    assert trouble(lambda: one.fetch(host.url("/no1.png"))).reason == "robots"
    one.fetch(host.url("/yes.png"))
    assert host.asked == {"/robots.txt": 1, "/yes.png": 2}


def test_robots_that_cannot_be_had_close_the_host_and_a_missing_one_opens_it(host):
    host.paths |= {"/robots.txt": (500, {}, b""), "/a.png": picture()}
    assert trouble(lambda: client(retries=0).fetch(host.url("/a.png"))).reason == "robots"
    host.paths["/robots.txt"] = (404, {}, b"")
    assert client().fetch(host.url("/a.png")).data == picture()


def test_passing_trouble_is_tried_again_and_lasting_trouble_is_not(host):
    answers = iter([(500, {}, b""), (429, {"Retry-After": "0.0"}, b"")])
    host.paths |= {"/a.png": lambda _: next(answers, picture()), "/gone.png": (404, {}, b"")}
    assert client().fetch(host.url("/a.png")).data == picture()
    assert host.asked["/a.png"] == 3
    assert trouble(lambda: client().fetch(host.url("/gone.png"))).reason == "http_404"
    assert host.asked["/gone.png"] == 1


def test_it_waits_as_long_as_the_server_asks_and_gives_up_where_that_is_too_long(host):
    answers = iter([(503, {"Retry-After": "1"}, b"")])
    host.paths |= {"/a.png": lambda _: next(answers, picture()), "/b.png": (429, {"Retry-After": "900"}, b"")}
    begin = time.monotonic()
    client().fetch(host.url("/a.png"))
    assert time.monotonic() - begin >= 1.0
    found = trouble(lambda: client().fetch(host.url("/b.png")))
    assert (found.reason, found.wait) == ("http_429", 900.0)
    assert host.asked["/b.png"] == 1


def test_requests_to_one_host_keep_their_distance(host):
    host.paths |= {f"/{number}.png": picture(number) for number in range(4)}
    one = client(seconds_between=0.2)
    for number in range(4):
        one.fetch(host.url(f"/{number}.png"))
    gaps = [after - before for before, after in zip(host.times, host.times[1:], strict=False)]
    assert min(gaps) >= 0.18


def test_bounds_hold_while_bytes_come(host):
    host.paths |= {
        "/large.png": b"x" * 5000,
        "/packed.png": (200, {"Content-Encoding": "gzip"}, gzip.compress(b"0" * 10**6)),
        "/short.png": (200, {"Content-Length": "500"}, b"short"),
    }
    assert trouble(lambda: client(most_bytes=1000).fetch(host.url("/large.png"))).reason == "too_large"
    assert trouble(lambda: client().fetch(host.url("/packed.png"))).reason == "torn"
    assert trouble(lambda: client(retries=0).fetch(host.url("/short.png"))).reason == "torn"
    full = client(host_bytes=4000)
    full.fetch(host.url("/large.png"))
    assert trouble(lambda: full.fetch(host.url("/large.png"))).reason == "host_budget"


def test_a_server_that_is_silent_or_drips_is_left(host):
    def drip(handler):
        for _ in range(100):
            handler.wfile.write(b"H")
            time.sleep(0.1)
        return (200, {}, b"")

    host.paths |= {"/silent.png": lambda _: time.sleep(4) or picture(), "/drip.png": drip}
    for path in ("/silent.png", "/drip.png"):
        begin = time.monotonic()
        assert trouble(
            lambda path=path: client(retries=0, silent_seconds=0.5, total_seconds=1.0).fetch(host.url(path))
        ).reason in ("timeout", "torn")
        assert time.monotonic() - begin < 3


def test_redirects_are_followed_three_times_and_never_into_a_private_network(host):
    host.paths |= {f"/{n}": (302, {"Location": f"/{n + 1}"}, b"") for n in range(1, 10)} | {"/5": picture()}
    assert client().fetch(host.url("/2")).url.endswith("/5")
    assert trouble(lambda: client().fetch(host.url("/1"))).reason == "too_many_redirects"
    host.paths["/away"] = (302, {"Location": "http://inside.example/secret"}, b"")

    def resolve(name, _port):
        return ["10.0.0.1"] if name == "inside.example" else ["127.0.0.1"]

    class Guarded(PoliteClient):
        """Loopback stands for the public host; all else is as it is for users."""

        def _followed(self, address):
            self._allow_private = address.host == "shop.example"
            return super()._followed(address)

        def _host(self, address):
            self._allow_private = address.host == "shop.example"
            return super()._host(address)

    guarded = Guarded(Politeness(seconds_between=0.0), resolve)
    assert trouble(lambda: guarded.fetch(host.url("/away"))).reason == "refused_address"


def test_a_private_machine_is_refused_whatever_its_name(host):
    host.paths["/a.png"] = picture()
    found = trouble(lambda: client(private=False).fetch(host.url("/a.png")))
    assert found.reason == "refused_address"
    assert not host.asked


def test_a_name_is_looked_up_once_a_request_and_that_number_is_used(host):
    """DNS that answers differently the second time (rebinding) leads nowhere else."""
    host.paths["/a.png"] = picture()
    numbers = iter(["127.0.0.1", "127.0.0.1"])
    seen = []

    def resolve(name, _port):
        seen.append(next(numbers))
        return [seen[-1]]

    client(resolve).fetch(host.url("/a.png"))
    assert seen == ["127.0.0.1", "127.0.0.1"]  # robots.txt, and the picture


def test_who_does_not_want_pictures_learned_from_is_heard(host):
    host.paths["/a.png"] = (200, {"X-Robots-Tag": "noindex, noimageai"}, picture())
    host.paths["/b.png"] = (200, {"X-Robots-Tag": "otherbot: noindex"}, picture())
    assert trouble(lambda: client().fetch(host.url("/a.png"))).reason == "opted_out"
    assert client().fetch(host.url("/b.png")).data == picture()
