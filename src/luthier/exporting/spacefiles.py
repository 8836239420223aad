"""requirements.txt and the front matter of a Space. Knows version floors and the hub's keys; writes no file.

Floors are those of fixed advisories: gradio 6.25 (state that grew without bound; below 6.7 paths and addresses of
others could be read: CVE-2026-28414, CVE-2026-28416), transformers 5.3 (CVE-2026-4372: code run from a config), torch
2.10 (CVE-2026-24747: the unpickler).
"""

from __future__ import annotations

from typing import Any

import yaml

SDK_VERSION = "6.31.0"
PYTHON = "3.12"
"""A host that lends GPUs takes 3.12 and 3.10 alone."""
_HEAD = (
    "# Floors are those of fixed security advisories: gradio 6.25, transformers 5.3, torch 2.10.",
    "gradio>=6.25,<7",
    "av>=14",
    "numpy>=2.0",
    "soundfile>=0.13",
    "soxr>=0.5",
    "transformers>=5.17,<6",
)
_TORCH = ("peft>=0.21,<1", "safetensors>=0.6")
_GPU_TORCH = ("torch>=2.10,<2.12", "spaces>=0.40")
"""The versions that a host of lent GPUs has."""
_WHISPER = "faster-whisper>=1.2"
_PILLOW = "pillow>=11.3"
_MORE = {"smolvlm": ("num2words>=0.5.14",)}
"""What transformers' processor of an architecture asks for."""
_GGUF = (
    "# Comes as source alone: building it takes a host of two processors some ten minutes, once.",
    "llama-cpp-python>=0.3.30",
)


def requirements(kind: str, zero_gpu: bool, eyes: str = "") -> str:
    """requirements.txt of a Space: kind is chat, gguf or verdict; `eyes` is the architecture of a base that sees."""
    lines = list(_HEAD)
    if kind == "gguf":
        lines += _GGUF
    else:
        lines += [*_TORCH, *(_GPU_TORCH if zero_gpu else ("torch>=2.10",))]
    if kind != "verdict":
        lines += [_WHISPER, _PILLOW]
    if eyes:
        lines.append("torchvision>=0.25,<0.27" if zero_gpu else "torchvision>=0.25")
        lines += _MORE.get(eyes, ())
    return "\n".join(lines) + "\n"


def front_matter(settings: dict[str, Any], kind: str) -> str:
    """The YAML head of README.md that a Space is configured by."""
    hub = [model["source"] for model in settings["models"] if not model["source"].startswith("models/")]
    base = [] if settings["base"] == "base" or "/" not in settings["base"] else [settings["base"]]
    preload = list(hub)
    if kind != "gguf" and base and not settings["revision"]:
        preload += base
    if kind != "verdict":
        preload.append(f"Systran/faster-whisper-{settings['whisper']}")
    found: dict[str, Any] = {
        "title": settings["title"],
        "emoji": "🎧" if kind == "verdict" else "💬",
        "colorFrom": "indigo",
        "colorTo": "blue",
        "sdk": "gradio",
        "sdk_version": SDK_VERSION,
        "python_version": PYTHON,
        "app_file": "app.py",
        "suggested_hardware": "zero-a10g" if settings["zero_gpu"] else "cpu-basic",
        "short_description": _SHORT[kind],
        "license": settings["license"],
        "pinned": False,
        "models": [*base, *hub],
        "preload_from_hub": preload,
        "startup_duration_timeout": "1h",
    }
    kept = {key: value for key, value in found.items() if value not in ([], "")}
    return "---\n" + yaml.safe_dump(kept, sort_keys=False, allow_unicode=True) + "---\n\n"


_SHORT = {
    "chat": "Voice and text questions, fine-tuned answers",
    "gguf": "Fine-tuned answers on a processor",
    "verdict": "Spoken answers judged, with a probability",
}
"""At most 60 characters."""
