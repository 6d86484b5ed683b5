"""The journal: few files, its own files, and nothing outside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raypq.data.storage import Listed, Storage, use_storage
from raypq.data.store import journal
from raypq.data.store.journal import Journal
from raypq.data.store.shard_writer import Receipt, Source
from raypq.errors import InputError


def receipt(name: str, work: str = "w") -> Receipt:
    return Receipt(
        shard=name, path=f"data/{name}.parquet", bytes=1, rows=1, sha256="0", model="m", work=work,
        source=Source(uri="u", size=1, modified="1"),
    )  # fmt: skip


def shards(store: Path) -> list[str]:
    return sorted(item.shard for item in Journal(str(store), "w").read())


def write(store: Path, *names: str) -> Journal:
    found = Journal(str(store), "w")
    for name in names:
        found.add(receipt(name))
        found.flush()
    return found


def test_a_run_clears_its_own_files_alone(tmp_path: Path) -> None:
    one, other = write(tmp_path, "a"), write(tmp_path, "b")
    one.clear()
    assert shards(tmp_path) == ["b"]
    other.clear()
    assert shards(tmp_path) == []


def test_what_was_read_is_cleared_where_the_version_holds_it(tmp_path: Path) -> None:
    write(tmp_path, "a", "b")
    write(tmp_path, "elsewhere")  # another run under the same work, on other features
    rerun = Journal(str(tmp_path), "w")
    assert len(rerun.read()) == 3
    rerun.add(receipt("c"))
    rerun.flush()
    rerun.clear(["a", "b", "c"])
    assert shards(tmp_path) == ["elsewhere"]


@pytest.mark.parametrize("files", [63, 64, 65, 200])
def test_many_files_become_few(tmp_path: Path, files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_MERGED", 8)
    names = [f"s{number:03d}" for number in range(files)]
    mine = write(tmp_path, *names)
    assert len(list((tmp_path / "journal" / "w").iterdir())) <= 8 * 3
    assert shards(tmp_path) == names
    mine.clear(names)
    assert not list((tmp_path / "journal" / "w").iterdir())


class Joining(Storage):
    """Another run joins its files while this one has listed them and not read them yet."""

    def __init__(self, join: object) -> None:
        self._join, self._done = join, False

    def list_files(self, uri: str) -> dict[str, Listed]:
        found = super().list_files(uri)
        if not self._done and "journal" in uri:
            self._done = True
            self._join()
        return found


def test_files_that_are_joined_meanwhile_are_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_MERGED", 4)
    other = write(tmp_path, "a", "b", "c")

    def join() -> None:
        other.add(receipt("d"))
        other.flush()

    with use_storage(Joining(join)):
        assert set(shards(tmp_path)) == {"a", "b", "c", "d"}


@pytest.mark.parametrize("work", ["../../victim", "a/b", "..", ".hidden", "/etc", "a\0b", "a\\b"])
def test_a_work_that_leads_elsewhere(tmp_path: Path, work: str) -> None:
    with pytest.raises(InputError, match="the id of a work"):
        Journal(str(tmp_path), work)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "unreadable journal file"),
        (b"[1]", "unreadable journal file"),
        ([{"path": "../../x"}], "unreadable journal file"),
        ([{"shard": "../x"}], "unreadable journal file"),
        ([{"new": 1}], "key 'new', written by a newer raypq: upgrade raypq"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_left(
    tmp_path: Path, content: object, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "a")
    if isinstance(content, list) and isinstance(content[0], dict):
        content = json.dumps([receipt("b").model_dump() | content[0]]).encode()
    bad = tmp_path / "journal" / "w" / f"{7:020d}-00000000.json"
    bad.write_bytes(content)
    rerun = Journal(str(tmp_path), "w")
    assert [item.shard for item in rerun.read()] == ["a"]
    assert says in caplog.text
    assert str(bad) in caplog.text
    rerun.clear()
    assert bad.exists(), "it is not known to be done"


def test_other_files_are_not_touched(tmp_path: Path) -> None:
    mine = write(tmp_path, "a")
    note = tmp_path / "journal" / "w" / "notes.json"
    note.write_text(json.dumps([receipt("a").model_dump()]))
    mine.read()
    mine.clear()
    assert note.exists()
    assert len(list(note.parent.iterdir())) == 1
