"""`luthier publish`, and the page that explains it, in a process of its own against a hub on loopback."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.errors import RequestError
from luthier.shipverbs import PublishOptions, publish
from support.children import ROOT, Luthier, environment
from support.hub import TOKEN, Fault, Hub


def settings(hub: Hub, home: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_HOME": str(home / "hf")}


def test_the_blocks_of_the_page_run_in_order(finished: Path, hub: Hub, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "runs" / "speaking", ignore=shutil.ignore_patterns("checkpoints", "media"))
    page = (ROOT / "docs" / "publish.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    words = f'luthier() {{ "{sys.executable}" -m luthier.cli "$@"; }}'
    done = subprocess.run(
        ["bash", "-c", "\n".join(["set -euo pipefail", words, *blocks])],
        cwd=tmp_path,
        env=environment(**settings(hub, tmp_path)),
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert set(hub.main("group/judge-1764")) > {"README.md", "MANIFEST.json", "adapter_model.safetensors"}
    assert hub.requests["put"] == 2


def test_a_refusal_is_a_sentence_and_an_exit_code(finished: Path, hub: Hub, luthier: Luthier, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "media"))
    words = ("publish", tmp_path / "run", "--stage", "1964", "--repo", "group/judge", "--json")
    hub.faults = [Fault("create", 403)]
    env = settings(hub, tmp_path)
    refused = luthier(*words, env=env)
    assert refused.returncode == 1
    assert "403" in refused.stderr
    assert "mend: the token may not write there" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert TOKEN not in refused.stderr + refused.stdout
    done = luthier(*words, env=env)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout.splitlines()[-1])["published"].values()
    assert (record["repo"], record["state"]) == ("group/judge", "published")
    with pytest.raises(RequestError, match=r"publish\.repo"):
        publish(PublishOptions(tmp_path / "run"))


def test_a_password_in_the_hubs_address_is_refused_and_shown_nowhere(
    finished: Path, hub: Hub, luthier: Luthier, tmp_path: Path
) -> None:
    env = settings(hub, tmp_path) | {"HF_ENDPOINT": hub.url.replace("://", "://me:drawn-by-lot@")}
    refused = luthier("publish", finished, "--stage", "1964", "--repo", "group/judge", env=env)
    assert refused.returncode == 2
    assert "HF_ENDPOINT" in refused.stderr
    assert "drawn-by-lot" not in refused.stderr + refused.stdout
    assert not hub.requests
