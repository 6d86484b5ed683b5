"""JSON that is read from files: whoever can write to a store can write anything into it."""

from __future__ import annotations

import json
from typing import Any

_DEEPEST = 64  # lists and mappings within each other; no file of raypq has half of that


def parse(content: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: no JSON, no UTF-8, or nested so deep that nothing can work on it.
    """
    deep = f"lists or mappings nested more than {_DEEPEST} deep"
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(deep) from None
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            return value
    raise ValueError(deep)


def _inside(value: Any) -> list[Any]:
    """The lists and mappings directly inside of a value."""
    if isinstance(value, dict):
        return [one for one in value.values() if isinstance(one, (dict, list))]
    if isinstance(value, list):
        return [one for one in value if isinstance(one, (dict, list))]
    return []
