"""Parsing of JSON from files, which may be malicious: a store may have other writers."""

from __future__ import annotations

import json
from typing import Any

_MAX_DEPTH = 64  # nested lists and mappings; no file of raypq has half of that


def parse(content: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: no JSON, no UTF-8, or nested too deep for recursive code.
    """
    deep = f"lists or mappings nested more than {_MAX_DEPTH} deep"
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(deep) from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"no JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from None
    except UnicodeDecodeError:
        raise ValueError("bytes that are not UTF-8") from None
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return value
    raise ValueError(deep)


def _children(value: Any) -> list[Any]:
    """The lists and mappings directly inside of a value."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in items if isinstance(item, (dict, list))]
