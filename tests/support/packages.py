"""Packages without a run, and a program that uploads one: it is killed by tests.

python -m support.packages FOLDER ENDPOINT REPO
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from luthier.files import atomic_folder
from luthier.publishing.package import Package, read_package
from luthier.publishing.patience import Patience, hub_session
from luthier.publishing.repository import Repository
from luthier.publishing.request import Endpoint, PublishRequest
from luthier.publishing.upload import Uploaded, upload
from support.hub import TOKEN

LARGE_FILES = ("adapter_model.safetensors", "tokenizer.json")


def noise(seed: str, size: int) -> bytes:
    """Bytes that no compressor shrinks, the same for the same seed."""
    return hashlib.shake_128(seed.encode()).digest(size)


def fill(folder: Path, words: str, owner: str, large: int) -> None:
    """Two large files and three small ones, sealed."""
    with atomic_folder(folder, {"owner": owner, "stage": "main"}) as place:
        for name in LARGE_FILES:
            (place / name).write_bytes(noise(words + name, large))
        (place / "README.md").write_text(f"---\nlibrary_name: peft\n---\n\n# {words}\n")
        (place / "adapter_config.json").write_text('{"r": 4}\n')


def sealed(folder: Path, owner: str) -> Package:
    return read_package(folder, owner, "main")


def send(package: Package, url: str, request: PublishRequest, patience: Patience, silence: float = 5.0) -> Uploaded:
    """Upload to the hub at an address."""
    with hub_session(url, silence):
        return upload(package, Repository(Endpoint(url, TOKEN), request.repo, patience), request)


if __name__ == "__main__":
    send(
        sealed(Path(sys.argv[1]), "me"), sys.argv[2], PublishRequest(sys.argv[3]), Patience(sleep=lambda seconds: None)
    )
