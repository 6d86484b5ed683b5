"""A damaged file of a store: every reader says what to do, and doing that mends the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raypq import api
from raypq.config import EvaluateJob, ReindexJob, SearchJob
from raypq.errors import RaypqError
from raypq.stages.stores import versions


def flipped(content: bytes) -> bytes:
    """A bit here and there, so that every column that a reader may want has one."""
    changed = bytearray(content)
    for tenth in range(1, 8):
        changed[len(content) * tenth // 10] ^= 4
    return bytes(changed)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "some bits": flipped,
    "the footer": lambda content: content[:-12] + b"\xff" * 4 + content[-8:],
    "cut off": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "no Parquet": lambda content: b"x" * len(content),
}


def reindex(home: Any) -> None:
    section = {"classes": home("classes.parquet"), "output": home("predictions")}
    api.reindex(
        ReindexJob(
            model=home("old"), features=[home("features")], codes=home("codes"),
            classify=[section], where=home.where,
        )
    )  # fmt: skip


def search(home: Any) -> Any:
    return api.search(
        SearchJob(
            codes=home("codes"), queries=[home("features")], output=home("found"), where=home.where
        )
    )


def evaluate(home: Any) -> Any:
    return api.evaluate(
        EvaluateJob(
            predictions=home("predictions"), classes=home("classes.parquet"), where=home.where
        )
    )


def damage(home: Any, store: str, kind: str) -> Path:
    file = min(Path(home(store), "data").iterdir())
    file.write_bytes(DAMAGES[kind](file.read_bytes()))
    return file


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize(
    ("store", "read", "again"),
    [
        ("codes", lambda home: home.classify(output="other"), "raypq encode or raypq reindex"),
        ("codes", search, "raypq encode or raypq reindex"),
        ("predictions", evaluate, "raypq classify or raypq reindex"),
    ],
)
def test_a_reader_says_what_to_do(
    home: Any, store: str, read: Callable[[Any], Any], again: str, kind: str
) -> None:
    home.encode()
    home.classify()
    file = damage(home, store, kind)
    with pytest.raises(RaypqError) as caught:
        read(home)
    assert str(file) in str(caught.value)
    advice = f"delete the file, or move it away, then run {again} again: its shard is done anew"
    assert str(caught.value).count(advice) == 1


@pytest.mark.parametrize("kind", ["some bits", "cut off"])
@pytest.mark.parametrize("by_night", [False, True])
def test_what_it_says_mends_the_store(home: Any, kind: str, by_night: bool) -> None:
    home.encode()
    home.classify()
    for store in ("codes", "predictions"):
        file = damage(home, store, kind)
        with pytest.raises(RaypqError, match="delete the file, or move it away"):
            versions.verify(home(store), sha256=True)
        file.unlink()
    if by_night:
        reindex(home)
    else:
        home.encode()
        home.classify()
    for store in ("codes", "predictions"):
        assert versions.verify(home(store), sha256=True)["files"] == home.shards
