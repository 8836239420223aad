"""What pages and API share: the engines, the ears, the queue in front of them, the store of votes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luthier.engines.base import ChatEngine, VerdictEngine
from luthier.recipe_describe import DescribeSettings
from luthier.serve.reports import Reports
from luthier.serve.settings import ServeSettings
from luthier.serve.speech.base import Transcriber

if TYPE_CHECKING:
    from luthier.serve.store import Store
    from luthier.serve.uploads import Uploads
    from luthier.serve.waiting import Waiting


@dataclass(frozen=True)
class Services:
    """One server's parts. Runs of one kind only leave the other engine out."""

    settings: ServeSettings
    chat: ChatEngine | None
    verdict: VerdictEngine | None
    speech: Transcriber
    uploads: Uploads
    waiting: Waiting
    store: Store
    reports: Reports = field(default_factory=Reports)
    describes: Mapping[str, DescribeSettings] = field(default_factory=dict)
    """Models that describe pictures, by id."""

    def close(self) -> None:
        """Give back what the parts hold, the queue first; one that fails keeps no other from it."""
        with ExitStack() as closing:
            for part in (self.store, self.uploads, self.speech, self.verdict, self.chat, self.waiting):
                if part is not None:
                    closing.callback(part.close)
