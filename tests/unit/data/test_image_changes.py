"""Every image of both sides is counted once, whatever repeats."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raypq.data.image_changes import ImageChanges


def versions(text: str) -> pa.Array:
    return pa.array([letter.encode() * 8 for letter in text], pa.binary(8))


def test_images_by_id_and_version() -> None:
    changes = ImageChanges(pa.array(["a", "b", "c", "d", "e"]), versions("12345"))
    reused = np.array([True, False, False])
    changes.add(pa.array(["a", "b", "c"]), versions("129"), reused)
    changes.add(pa.array(["new"]), versions("1"))
    changes.add_undecodable(pa.array(["d", "unknown"]))
    assert changes.finish() == (1, 1)
    assert (changes.kept, changes.again, changes.known) == (1, 1, 1)  # e is gone


def test_ids_that_repeat() -> None:
    """Of two rows of an id that was there once, the equal one is kept, whatever their order."""
    changes = ImageChanges(pa.array(["a", "b", "b"]), versions("123"))
    changes.add(pa.array(["a", "a", "b"]), versions("913"), np.array([False, True, True]))
    assert changes.finish() == (0, 0)
    assert (changes.kept, changes.again, changes.known) == (2, 0, 1)
