"""The container's recipe, as far as it can be known without Docker: what it copies, pins and starts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from support.children import ROOT, environment

DOCKERFILE = ROOT / "container" / "Dockerfile"


def instructions(name: str) -> list[str]:
    """The arguments of every instruction of a kind, continued lines joined."""
    lines = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return [line.removeprefix(name).strip() for line in lines if line.startswith(f"{name} ")]


def test_the_entry_point_is_a_module_that_is_there_started_without_a_shell() -> None:
    (words,) = map(json.loads, instructions("ENTRYPOINT"))
    assert words[:2] == ["python", "-m"]
    done = subprocess.run(
        [sys.executable, *words[1:], "--help"], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


def test_what_is_copied_is_there_and_is_let_through() -> None:
    ignore = (ROOT / "container" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    let_through = {line[1:] for line in ignore if line.startswith("!")}
    copied = {name for line in instructions("COPY") for name in line.split()[:-1]}
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)


def test_the_recipes_that_the_package_links_to_lie_where_the_link_looks() -> None:
    link = ROOT / "src" / "luthier" / "recipes"
    assert (link.parent / link.readlink()).resolve() == ROOT / "recipes"
    assert {"recipes recipes", "src src"} <= set(instructions("COPY"))


def test_everything_is_installed_from_the_lock() -> None:
    first, second = instructions("RUN")
    assert first == "pip install --require-hashes -r requirements.lock"
    assert "--no-deps" in second


def test_the_package_that_the_image_installs_has_its_recipes(tmp_path: Path) -> None:
    for line in instructions("COPY"):
        *names, target = line.split()
        for name in names:
            place = tmp_path / target / ("" if (ROOT / name).is_dir() else name)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, place, symlinks=True, ignore=shutil.ignore_patterns("*.egg-info"))
            else:
                shutil.copy(ROOT / name, place)
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "wheel", "."]
    subprocess.run(words, check=True, timeout=120, cwd=tmp_path)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    there = set(zipfile.ZipFile(wheel).namelist())
    assert {f"luthier/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")} <= there
    assert "luthier/sagemaker.py" in there
