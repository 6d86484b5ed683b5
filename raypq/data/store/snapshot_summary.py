"""Values of a snapshot's summary, checked where they are read.

A summary is free: a later version may add keys, and people edit it. So nothing in it is taken for
what it should be.
"""

from __future__ import annotations

import math
from typing import Any

from raypq.config.explain import shown
from raypq.data.storage import join
from raypq.data.store.snapshot import Snapshot, path_of
from raypq.errors import InputError

_REMEDY = "run the command that wrote the version again, or restore an earlier one"


def section(store: str, version: Snapshot, *keys: str) -> dict[str, Any]:
    """The mapping at a path of keys; empty where there is none.

    Raises:
        InputError: it is not a mapping, naming the key.
    """
    value = _value(store, version, keys)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _error(store, version, keys, "a mapping of keys to values", value)
    return dict(value)


def number(store: str, version: Snapshot, *keys: str, least: float | None = None) -> float | None:
    """The number at a path of keys; None where there is none.

    Raises:
        InputError: it is not a finite number, or less than ``least``, naming the key.
    """
    value = _value(store, version, keys)
    if value is None:
        return None
    if _is_finite(value) and (least is None or value >= least):
        return float(value)
    expected = "a finite number" if least is None else f"a finite number of at least {least:g}"
    raise _error(store, version, keys, expected, value)


def items(store: str, version: Snapshot, *keys: str) -> list[Any] | None:
    """The list at a path of keys; None where there is none.

    Raises:
        InputError: it is not a list, naming the key.
    """
    value = _value(store, version, keys)
    if value is not None and not isinstance(value, list):
        raise _error(store, version, keys, "a list", value)
    return value


def points(
    store: str, version: Snapshot, *keys: str, least: float | None = None
) -> list[tuple[float, float]]:
    """The pairs of numbers at a path of keys; none where there is nothing.

    Args:
        least: of the second number of a pair.

    Raises:
        InputError: it is not a list of pairs of finite numbers, naming the key.
    """
    found = items(store, version, *keys) or []
    for pair in found:
        plain = isinstance(pair, list) and len(pair) == 2 and all(map(_is_finite, pair))
        if not plain or (least is not None and pair[1] < least):
            expected = "pairs of finite numbers"
            if least is not None:
                expected += f", the second at least {least:g}"
            raise _error(store, version, keys, expected, pair)
    return [(float(first), float(second)) for first, second in found]


def _is_finite(value: Any) -> bool:
    try:
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        return plain and math.isfinite(float(value))
    except OverflowError:  # a whole number beyond float's range
        return False


def _value(store: str, version: Snapshot, keys: tuple[str, ...]) -> Any:
    value: Any = version.summary
    for depth, key in enumerate(keys):
        if value is None:
            return None
        if not isinstance(value, dict):
            raise _error(store, version, keys[:depth], "a mapping of keys to values", value)
        value = value.get(key)
    return value


def _error(
    store: str, version: Snapshot, keys: tuple[str, ...], expected: str, found: Any
) -> InputError:
    return InputError(
        f"{join(store, path_of(version.version))}, key '{'.'.join(('summary', *keys))}'",
        expected=expected,
        found=f"{shown(found)}; {_REMEDY}",
    )
