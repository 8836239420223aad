"""What a tracker may be told of a run: keys of the recipe, versions and hashes, with everything secret taken out.

It is an allow-list: the environment, the command line and a recipe's `vars` are never passed on. What is passed on is
searched for the shapes of credentials and for the values of variables whose names say that they are secret. A plain
password that has no shape and stands in no such variable cannot be told from a word; it does not belong in a recipe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from luthier.recipe import Recipe

HIDDEN = "[secret]"
RECIPE_KEYS = {item.name for item in fields(Recipe)} - {"vars", "publish"}
_SECRET_NAME = re.compile(r"key$|keys$|token$|secret|passw|passphrase|credential|authorization|cookie", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(r"KEY|TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|COOKIE", re.IGNORECASE)
_SHORTEST_VALUE = 8  # a shorter one, such as "false", would be found in innocent words
_HASH = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHAPES = [
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL),
    re.compile(r"(?<=://)[^/\s@]+(?=@)"),  # who and password of a URL
    re.compile(r"(?i)(?<=bearer )\s*[^\s\"']+|(?<=basic )\s*[A-Za-z0-9+/=]{8,}"),
    re.compile(
        r"(?i)(?<=[?&;])[\w.-]*(?:key|token|secret|passw\w*|pwd|sig|signature|credential|auth\w*|code)=[^&;\s#]+"
    ),
    re.compile(r"(?<![A-Za-z0-9])(?:hf|api_org|hf_oauth|wandb_v\d+|gh[pousr]|github_pat|npm|dop_v1)_[A-Za-z0-9_]{12,}"),
    re.compile(r"(?<![A-Za-z0-9])(?:sk|pk|rk|glpat|xox[a-z]|pypi|dckr_pat)[-_][A-Za-z0-9_-]{12,}"),
    re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}"),
    re.compile(r"(?<![A-Za-z0-9])(?:AIza[\w-]{30,}|dapi[0-9a-f]{32}|ya29\.[\w-]{12,})"),
    re.compile(r"(?<![A-Za-z0-9])eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"),  # a JSON web token
    re.compile(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])"),  # a key of Weights & Biases
    re.compile(  # a secret key of AWS, which may hold slashes and stand between them
        r"(?<![A-Za-z0-9+])(?=.{0,39}\d)(?=.{0,39}[a-z])(?=.{0,39}[A-Z])[A-Za-z0-9/+]{40}(?![A-Za-z0-9+])"
    ),
]


class Scrubber:
    """Takes secrets out of text: known values first, then whatever has the shape of a credential."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        """`variables`: names and values, such as the environment's and the recipe's; only secret names count."""
        values = {
            str(value)
            for name, value in variables.items()
            if _SECRET_VARIABLE.search(name) and len(str(value)) >= _SHORTEST_VALUE
        }
        self._values = sorted(values, key=len, reverse=True)  # a longer one may contain a shorter one

    def text(self, text: str) -> str:
        """The text without what is secret in it."""
        for value in self._values:
            text = text.replace(value, HIDDEN)
        for shape in _SHAPES:
            text = shape.sub(HIDDEN, text)
        return text

    def tree(self, value: Any, name: str = "") -> Any:
        """A copy of a tree of mappings, lists and scalars, its keys and texts scrubbed."""
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.tree(item, str(key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.tree(item, name) for item in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        text = str(value)
        if text and _SECRET_NAME.search(name):
            return HIDDEN
        if name == "revision" and _COMMIT.fullmatch(text):  # a pinned commit looks like a key
            return text
        return self.text(text)


def told_about(about: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """What is passed on of `about`: its `recipe`, `versions` and `hashes`, scrubbed; anything else is left out.

    The `environment` is looked through for the values of secret variables, so that they can be taken out of the rest.
    """
    recipe = about.get("recipe", {})
    scrub = Scrubber({**environment, **recipe.get("vars", {})})
    return {
        "recipe": scrub.tree({key: value for key, value in recipe.items() if key in RECIPE_KEYS}),
        "versions": scrub.tree(about.get("versions", {})),
        "hashes": {
            scrub.text(str(name)): digest if _HASH.fullmatch(digest) else scrub.text(digest)
            for name, digest in about.get("hashes", {}).items()
        },
    }
