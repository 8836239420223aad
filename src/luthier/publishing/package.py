"""The folder that is published: an allow-list of files made anew from a stage, sealed by a manifest that names the run.

Equal stages give equal bytes: there is no date in it, so that a second upload can see that nothing is to be done. This
module knows what goes into the folder and how git and LFS name it; it sends nothing.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import CheckpointError, RequestError
from luthier.files import MANIFEST, atomic_folder, json_text, read_json, sha256_bytes, sha256_file, verify_folder
from luthier.publishing.request import PublishRequest
from luthier.publishing.secrets import refuse_secrets
from luthier.rundir import RunDir, StageDir


@dataclass(frozen=True)
class FileDigest:
    """A file of the package. A hub names it by `git`, the sha1 of its blob, or by `sha256` where it is a large file."""

    size: int
    sha256: str
    git: str


@dataclass(frozen=True)
class Package:
    """A sealed folder, the digests of its files by name, and one digest of all of them."""

    folder: Path
    files: Mapping[str, FileDigest]
    owner: str
    """`run_owner` of the run that it comes from."""
    stage: str

    @property
    def digest(self) -> str:
        return self.files[MANIFEST].sha256

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())


def run_owner(run: RunDir) -> str:
    """What tells this run from every other, wherever its folder is moved: a digest of its name, recipe and birth."""
    manifest = run.read_manifest()
    about = {"name": manifest["name"], "created": manifest["created"], "recipe": manifest["hashes"]["recipe"]}
    return sha256_bytes(json_text(about).encode())


def finished_stage(run: RunDir, name: str) -> StageDir:
    """Raises RequestError for a stage that is not finished, CheckpointError for an adapter that was changed."""
    stage = run.stage(name)
    if not stage.finished:
        done = ", ".join(sorted(path.parent.name for path in run.path.glob("stages/*/stage.json"))) or "none"
        raise RequestError(f"{run.path}: stage {name} is not finished (finished: {done})", "name a finished --stage")
    wrong = verify_folder(stage.adapter)
    if wrong is not None:
        raise CheckpointError(f"{stage.adapter}: {wrong}", "take the folder from its origin again")
    return stage


def make_package(run: RunDir, name: str, request: PublishRequest, out: Path) -> Package:
    """Make the folder `out` of a finished stage. Raises RequestError where it holds what should not leave."""
    from luthier.exporting.adapter import about, fill_adapter, write_card
    from luthier.exporting.kinds import open_subject
    from luthier.models.adapters import WEIGHTS

    subject = open_subject(finished_stage(run, name).path.parent.parent, name)
    receipt = _receipt(request.receipt, sha256_file(subject.stage.adapter / WEIGHTS)) if request.receipt else None
    owner = run_owner(run)
    with atomic_folder(out, {**about(subject, "adapter"), "owner": owner}) as folder:
        fill_adapter(subject, folder)
        if subject.stage.scores.is_file():
            shutil.copyfile(subject.stage.scores, folder / subject.stage.scores.name)
        write_card(subject, folder, "adapter", request.repo, receipt)
        refuse_secrets(folder)
    return read_package(out, owner, name)


def _receipt(path: Path, adapter: str) -> dict[str, Any]:
    """receipt.json of an export. Raises RequestError where it is none, or speaks of other weights than `adapter`."""
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: cannot be read: {error}", "give receipt.json of an export") from error
    if not isinstance(found, dict) or found.get("adapter_sha256") != adapter:
        raise RequestError(
            f"{path}: is no receipt of this stage's adapter",
            "give receipt.json that `luthier export` made of this stage",
        )
    return found


def read_package(folder: Path, owner: str, stage: str) -> Package:
    """Digests of a folder's files, the manifest among them."""
    paths = sorted(item for item in folder.rglob("*") if item.is_file())
    files = {
        item.relative_to(folder).as_posix(): FileDigest(item.stat().st_size, sha256_file(item), git_digest(item))
        for item in paths
    }
    return Package(folder, files, owner, stage)


def git_digest(path: Path) -> str:
    """sha1 of the blob that git would make of a file."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def owner_of(manifest: Any) -> tuple[str, str]:
    """(owner, stage) that a manifest found on a hub names; empty for what is none of ours."""
    if not isinstance(manifest, dict):
        return "", ""
    return str(manifest.get("owner", "")), str(manifest.get("stage", ""))
