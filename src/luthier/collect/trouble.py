"""What can go wrong with one address."""

from __future__ import annotations

REASONS = (
    "bad_address",
    "refused_address",
    "unknown_host",
    "unreachable",
    "timeout",
    "robots",
    "opted_out",
    "too_many_redirects",
    "host_budget",
    "too_large",
    "torn",
    "busy",
)
"""Words of a FetchError, beside `http_404` and its like. `opted_out`: X-Robots-Tag says noai or noimageai."""


class FetchError(Exception):
    """An address that gave nothing. `reason` is one word; `passing` trouble may be over at the next try."""

    def __init__(self, reason: str, detail: str, passing: bool = False, wait: float = 0.0) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.passing = reason, detail, passing
        self.wait = wait
        """Seconds that the server asks to be left alone (Retry-After); 0 where it says nothing."""
