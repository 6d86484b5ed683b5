"""Result files: metrics as one JSON object, for people, scripts and ``raypq report``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from raypq.config.places import path_of
from raypq.data.storage import is_local, local_path, write_bytes, write_errors


def text_of(document: Mapping[str, Any]) -> str:
    """The content of the file."""
    return json.dumps(document, indent=2)


def write(uri: str, document: Mapping[str, Any]) -> None:
    """Writes a result file; makes its folder if needed."""
    uri, text = path_of(uri), f"{text_of(document)}\n"
    if is_local(uri):  # not by a rename: it may be a device
        path = local_path(uri)
        with write_errors(uri):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    else:
        write_bytes(uri, text.encode())
