"""Which web addresses may be fetched, and at which machine: one parser, one look-up, public machines alone.

An address is taken apart once, strictly, and what was taken apart is what is connected to: a client that parsed it in
another way, or asked for the name a second time, could be led elsewhere. Knows names and numbers; refuses to connect.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from luthier.collect.trouble import FetchError

Resolver = Callable[[str, int], Sequence[str]]
"""(host, port) -> its addresses as numbers."""
_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\.?", re.ASCII)
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+))*\.?", re.ASCII)
_CARRIERS = (
    (ipaddress.ip_network("64:ff9b::/96"), 0),
    (ipaddress.ip_network("64:ff9b:1::/48"), 0),
    (ipaddress.ip_network("2002::/16"), 80),
)
"""IPv6 addresses that carry one of IPv4 (NAT64, RFC 6052 and 8215; 6to4, RFC 3056), and the bits behind it."""


@dataclass(frozen=True, slots=True)
class Address:
    """An http(s) address, taken apart. `host` is in ASCII and small letters, `target` begins with "/"."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> str:
        """Scheme, host and port, as robots.txt is kept for."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{shown}" + ("" if self.port == _PORTS[self.scheme] else f":{self.port}")

    def __str__(self) -> str:
        return self.origin + self.target


def parse(text: str) -> Address:
    """Take an address apart. Raises FetchError (bad_address) for what is not plain http(s)."""
    text = text.strip()
    if not text or len(text) > 4096 or any(char <= " " or char in '\\<>"^`{|}' or char == "\x7f" for char in text):
        raise _bad(text, "it holds blanks, backslashes or other signs that addresses do not have")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _bad(text, str(error)) from error
    if parts.scheme.lower() not in _PORTS:
        raise _bad(text, f"its scheme is {parts.scheme or 'missing'}, not http or https")
    if "@" in parts.netloc:
        raise _bad(text, "it has a user name in it")
    host = _host(text, parts.hostname or "")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=-._~")
    query = "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=-._~[]") if parts.query else ""
    scheme = parts.scheme.lower()
    return Address(scheme, host, _PORTS[scheme] if port is None else port, path + query)


def follow(address: Address, location: str) -> Address:
    """Where a redirect leads. Raises FetchError as `parse`."""
    return parse(urljoin(str(address), location.strip()))


def machine(address: Address, resolve: Resolver, allow_private: bool = False) -> str:
    """The number to connect to. Raises FetchError: unknown_host, or refused_address where any of the host's numbers is
    not public: a name that stands for both is a trick, or a network of one's own."""
    try:
        numbers = list(resolve(address.host, address.port))
    except OSError as error:
        raise FetchError("unknown_host", f"{address.host}: {error.strerror or error}", passing=True) from error
    if not numbers:
        raise FetchError("unknown_host", f"{address.host} has no address", passing=True)
    for number in numbers:
        if not allow_private and not is_public(number):
            raise FetchError("refused_address", f"{address.host} is {number}, which is not a public address")
    return numbers[0]


def is_public(number: str) -> bool:
    """Whether an IP address is one of the public internet; one that carries another is as public as that."""
    try:
        found = ipaddress.ip_address(number.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if found.teredo is not None:
            return False
        for network, bits in _CARRIERS:
            if found in network:
                return is_public(str(ipaddress.IPv4Address(int(found) >> bits & 0xFFFFFFFF)))
    return found.is_global and not found.is_multicast and not found.is_unspecified


def resolve_host(host: str, port: int) -> list[str]:
    """The addresses of a host, IPv4 first, as the system's resolver gives them. Raises OSError."""
    found = {str(entry[4][0]): entry[0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    return sorted(found, key=lambda number: found[number] != socket.AF_INET)


def _host(text: str, host: str) -> str:
    if ":" in host:
        try:
            return ipaddress.IPv6Address(host).compressed
        except ValueError as error:
            raise _bad(text, f"{host} is no IPv6 address") from error
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError as error:
            raise _bad(text, f"{host} is no host name: {error}") from error
    host = host.lower()
    if _NUMBER.fullmatch(host):
        try:  # 127.1, 0177.0.0.1 and 2130706433 are numbers to some resolvers and names to others
            return str(ipaddress.IPv4Address(host))
        except ValueError as error:
            raise _bad(text, f"{host} is no IPv4 address in its plain form") from error
    if len(host) > 253 or not _NAME.fullmatch(host):
        raise _bad(text, f"{host or 'nothing'} is no host name")
    return host


def _bad(text: str, reason: str) -> FetchError:
    return FetchError("bad_address", f"{text[:200]!r}: {reason}")
