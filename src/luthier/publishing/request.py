"""What is to be published where, and whose token may go there. Nothing is sent from here, and no token is kept.

The rule for tokens: the default hub and one on this machine get what huggingface_hub finds ($HF_TOKEN, else a login).
Any other endpoint gets a token only from an environment variable that the request names (`token_env`), and only over
https: a login for one hub is never handed to another because $HF_ENDPOINT points there.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from luthier.errors import RequestError
from luthier.recipe import Recipe, repository_id

DEFAULT_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True)
class PublishRequest:
    """`repo` is NAMESPACE/NAME. `revision` is the branch where the upload becomes visible, in one commit."""

    repo: str
    private: bool = True
    update: bool = False
    """Replace what another run, or somebody, has put there."""
    revision: str = "main"
    token_env: str = ""
    """The environment variable that holds the token; empty: $HF_TOKEN or a login, for the default hub alone."""
    receipt: Path | None = None
    """receipt.json of an export, to go along and onto the card."""

    @classmethod
    def of(cls, stage: Recipe) -> PublishRequest:
        """What the recipe of a stage says. Raises RequestError where it names no repository."""
        publish = stage.publish
        if not publish.repo:
            raise RequestError("publish.repo: the recipe names no repository", "give --repo NAMESPACE/NAME")
        return cls(publish.repo, publish.private, publish.update, token_env=publish.token_env)

    def check(self) -> None:
        """Raise RequestError where a hub could not take the name."""
        if not repository_id(self.repo):
            raise RequestError(
                f"{self.repo!r} is no name of a repository",
                "give NAMESPACE/NAME of letters, digits and single . - or _ (--repo, or publish.repo)",
            )


@dataclass(frozen=True)
class Endpoint:
    """A hub, and the token for it, which is never printed."""

    url: str
    token: str = field(repr=False)


def find_endpoint(token_env: str = "") -> Endpoint:
    """The hub that huggingface_hub was started for ($HF_ENDPOINT), with the token that may go there.

    Raises RequestError where there is no such token, and where the hub must not be reached ($HF_HUB_OFFLINE).
    """
    from huggingface_hub import constants, get_token

    url = constants.ENDPOINT.rstrip("/")
    if "@" in urlsplit(url).netloc:
        raise RequestError(
            "publishing: HF_ENDPOINT has a name or password in it, which would be shown and written down",
            "give the address alone, and the token in a variable (publish.token_env, --token-env)",
        )
    if constants.is_offline_mode():
        raise RequestError("publishing: HF_HUB_OFFLINE is set, so nothing may be sent", "unset it, or do not publish")
    ours = url == DEFAULT_ENDPOINT or on_this_machine(url)
    if not ours and urlsplit(url).scheme != "https":
        raise RequestError(f"publishing: {url} would get the token in clear", "give an https address in HF_ENDPOINT")
    if token_env:
        token = os.environ.get(token_env, "").strip()
        if not token:
            raise RequestError(f"publishing: ${token_env} is not set", "set it to a token that may write there")
        return Endpoint(url, token)
    if not ours:
        raise RequestError(
            f"publishing: HF_ENDPOINT is {url}, and no token was given for it",
            "name the variable that holds its token (publish.token_env, --token-env): a login is for its own hub alone",
        )
    found = get_token()
    if not found:
        raise RequestError(
            f"publishing: there is no token for {url}",
            "set HF_TOKEN, or log in with `hf auth login`, with a token that may write to the repository",
        )
    return Endpoint(url, found)


def on_this_machine(url: str) -> bool:
    """Whether an address is a loopback one."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
