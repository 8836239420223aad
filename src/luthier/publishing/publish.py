"""`publish`: one finished stage to one repository, and the record of it beside the stage.

What may go is decided in `package` and `secrets`, how it goes in `upload`; this module joins them and tells the result.
"""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path
from typing import Any

from luthier.console import say, transfer_bar
from luthier.files import write_json
from luthier.publishing.package import finished_stage, make_package
from luthier.publishing.patience import Patience, hub_session
from luthier.publishing.repository import Repository
from luthier.publishing.request import PublishRequest, find_endpoint
from luthier.publishing.upload import upload
from luthier.rundir import RunDir

SILENCE = 120.0
"""Seconds without an answer after which a request is given up and made again."""


def publish(
    run: RunDir, stage: str, request: PublishRequest, patience: Patience | None = None, silence: float = SILENCE
) -> dict[str, Any]:
    """Publish a finished stage, or find that it is there already. Returns what published.json then holds.

    Keys: repo url endpoint private revision commit digest state (published or unchanged) files (name -> sha256, size)
    bytes_sent time. Raises RequestError (name, token, secret among the files), ExistsError (what is there is not this
    run's) and HubError (the hub).
    """
    request.check()
    place = finished_stage(run, stage)
    endpoint = find_endpoint(request.token_env)
    with tempfile.TemporaryDirectory(prefix="luthier-publish-") as scratch:
        package = make_package(run, stage, request, Path(scratch) / "package")
        say(
            f"stage {stage}: {len(package.files)} files, {package.size:,} bytes, to {endpoint.url}/{request.repo} "
            f"({'private' if request.private else 'public'})"
        )
        with hub_session(endpoint.url, silence) as traffic, transfer_bar(package.size, request.repo) as traffic.told:
            repository = Repository(endpoint, request.repo, patience or Patience())
            done = upload(package, repository, request)
    found = {
        "repo": request.repo,
        "url": repository.url,
        "endpoint": endpoint.url,
        "private": done.private,
        "revision": request.revision,
        "commit": done.commit,
        "digest": package.digest,
        "state": "unchanged" if done.unchanged else "published",
        "files": {name: {"sha256": file.sha256, "size": file.size} for name, file in package.files.items()},
        "bytes_sent": traffic.sent,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    write_json(place.published, found)
    say(f"stage {stage}: {repository.url} shows it at {request.revision}, commit {done.commit[:12]}")
    return found
