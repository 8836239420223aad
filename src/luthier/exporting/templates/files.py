"""Where this Space's models are: in its own folder, or in repositories of the hub. What space.json says."""

import json
import os
from pathlib import Path

HERE = Path(__file__).resolve().parent
SETTINGS = json.loads((HERE / "space.json").read_text(encoding="utf-8"))
WANTED = ["adapter_config.json", "adapter_model.safetensors", "verdict_head.safetensors", "tokenizer*", "*.jinja"]
"""Nothing else is fetched: no code, no pickle."""


def place(source: str, revision: str = "", wanted: list[str] = WANTED) -> str:
    """A folder of this Space as its path; a repository as the path of what was fetched of it."""
    if (HERE / source).exists():
        return str(HERE / source)
    from huggingface_hub import snapshot_download

    return snapshot_download(source, revision=revision or None, allow_patterns=wanted)


def base() -> dict:
    """The base's name, or its folder here, as `from_pretrained` takes it."""
    name = SETTINGS["base"]
    if (HERE / name).is_dir():
        return {"pretrained_model_name_or_path": str(HERE / name), "trust_remote_code": False}
    more = {"revision": SETTINGS["revision"]} if SETTINGS["revision"] else {}
    return {"pretrained_model_name_or_path": name, "trust_remote_code": False, **more}


def threads() -> int:
    """Processors that a Space was given; more threads than that wait for one another."""
    return max(1, int(float(os.environ.get("CPU_CORES", os.cpu_count() or 1))))
