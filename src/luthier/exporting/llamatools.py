"""llama.cpp's own tools as children: the converter of a checkout, and its quantiser.

What they write is a file under the name that they are given; putting it in its place is the caller's.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from luthier.engines.llamaserver import INSTALL
from luthier.errors import DiskError, RequestError


def convert(folder: Path, place: Path, kind: str, checkout: Path) -> None:
    script = checkout / "convert_hf_to_gguf.py"
    if not script.is_file():
        raise RequestError(f"{checkout}: holds no convert_hf_to_gguf.py", "name a checkout of llama.cpp")
    run_child([sys.executable, str(script), str(folder), "--outfile", str(place), "--outtype", kind], "the converter")


def quantiser(checkout: Path | None) -> Callable[[Path, Path, str], None]:
    """llama-quantize from the path or a checkout's build, else llama-cpp-python's copy of the same code."""
    beside = os.pathsep.join(str(checkout / part) for part in ("", "build/bin", "bin")) if checkout else ""
    binary = shutil.which("llama-quantize") or (shutil.which("llama-quantize", path=beside) if beside else None)
    if binary:
        return lambda source, out, kind: run_child([binary, str(source), str(out), kind], "llama-quantize")
    if importlib.util.find_spec("llama_cpp"):
        words = [sys.executable, "-m", "luthier.engines.llamacpp_child", "quantize"]
        return lambda source, out, kind: run_child([*words, str(source), str(out), kind], "the quantiser")
    raise RequestError(
        "there is no llama-quantize here, and this kind is written by it",
        f"choose q8_0 or f16, or {INSTALL.replace('llama-server', 'llama-quantize')}",
    )


def run_child(words: list[str], what: str) -> None:
    """Run a tool of llama.cpp. Raises RequestError with its last words, DiskError where the disk was full."""
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        said = " | ".join(line.strip()[:200] for line in lines)
        if "No space left" in done.stderr + done.stdout:
            raise DiskError(f"{what}: {said}", "free some space; nothing half-written is left")
        raise RequestError(f"{what} stopped with code {done.returncode}: {said}", "choose another kind or architecture")
