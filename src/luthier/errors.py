"""Every exception that Luthier raises. Each says what is wrong and what to do about it.

LuthierError                 exit 1   the work failed
├── RequestError             exit 2   the request is wrong: nothing was started
│   ├── RecipeError                   one or more keys of a recipe; all of them at once
│   ├── SourceError                   a source that cannot be reached or read
│   ├── DataError                     rows that cannot be worked with (none left, leaking groups)
│   │   ├── MediaError                one recording or picture that cannot be used, and the word for why
│   │   └── ChatError                 one row that a chat template cannot carry, and the word for why
│   └── ExistsError                   an output that exists and would be overwritten
├── NonFiniteLoss            exit 1   NaN or infinity before an optimizer step
├── CheckpointError          exit 1   no checkpoint that can be trusted
├── HubError                 exit 1   a hub that refused, or that could not be reached for long
├── DiskError                exit 1   a write that did not happen (full disk, permissions)
└── Interrupted              exit 130 ctrl-C or SIGTERM; what was done is saved
"""

from __future__ import annotations

from collections.abc import Sequence


class LuthierError(Exception):
    """The root. `str()` is one message for a person: what is wrong, then the mend."""

    exit_code = 1

    def __init__(self, message: str, mend: str = "") -> None:
        super().__init__(message, mend)
        self.message = message
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.message}\n  mend: {self.mend}" if self.mend else self.message


class RequestError(LuthierError):
    """The request (recipe, file, key, flag) is wrong; nothing was started."""

    exit_code = 2


class RecipeError(RequestError):
    """Problems of one recipe, all at once. `problems` holds one line each: `key: reason (mend)`."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n".join([f"{where}: {count}", *(f"  - {line}" for line in self.problems)]))


class SourceError(RequestError):
    """A source that cannot be reached or read."""


class DataError(RequestError):
    """Rows that cannot be worked with."""


class MediaError(DataError):
    """A recording or picture that cannot be used: `reason` is a word of the REASONS of media, pictures or places."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}", "give a whole file of a common format, with sound or a picture in it")
        self.reason = reason
        self.detail = detail


class ChatError(DataError):
    """A row that a chat template cannot carry: `reason` is a word of `luthier.models.template_doctor.REASONS`."""

    def __init__(
        self, reason: str, detail: str, mend: str = "drop the row in data.steps, or take another base"
    ) -> None:
        super().__init__(f"{reason}: {detail}", mend)
        self.reason = reason
        self.detail = detail


class ExistsError(RequestError):
    """An output that exists already; nothing that exists is ever overwritten."""


class NonFiniteLoss(LuthierError):
    """The loss or a gradient became NaN or infinite; the optimizer did not step on it."""


class CheckpointError(LuthierError):
    """No checkpoint that can be trusted."""


class HubError(LuthierError):
    """A hub that refused, did not answer for long, or holds other bytes than it was sent."""


class DiskError(LuthierError):
    """A durable write that did not happen; nothing half-written was left in its place."""


class Interrupted(LuthierError):
    """Ctrl-C or SIGTERM. The message carries the line that resumes the work."""

    exit_code = 130
