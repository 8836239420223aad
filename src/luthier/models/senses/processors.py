"""The processors of a base that sees: read from where its weights are, and as JSON for the key of stored features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.errors import SourceError
from luthier.models.chat import first_line


def read_processor(kind: Any, base: str, revision: str = "") -> Any:
    """One processor of a local folder or hub model, without remote code; `kind` is an auto class of transformers.

    Raises SourceError where it cannot be reached or read.
    """
    where = None if Path(base).is_dir() else revision or None
    try:
        return kind.from_pretrained(base, revision=where, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise SourceError(
            f"model.base: the {kind.__name__} of {base} cannot be loaded: {first_line(error)}",
            "check the name, model.revision and the network, or put preprocessor_config.json into the folder",
        ) from error


def processor_settings(processor: Any) -> dict[str, Any]:
    """All that a processor was configured with, its class among it."""
    found: dict[str, Any] = json.loads(processor.to_json_string())
    return found
