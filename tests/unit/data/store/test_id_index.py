"""The index of ids says what looking through all files says, and reads what changed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq.data import duplicate_ids
from raypq.data.duplicate_ids import DuplicateIds, IdFile, find_duplicate_ids
from raypq.data.storage import Storage, use_storage
from raypq.data.store import id_index
from raypq.data.store.sidecars import Sidecars
from raypq.errors import InputError

SMALL = {"in_memory": 16, "row_group": 8}


class Codes:
    """Files of ids, and the versions that are made of them."""

    def __init__(self, root: Path) -> None:
        self.store, self.made = str(root), 0
        self.files: dict[str, IdFile] = {}
        self.ids: dict[str, list[Any]] = {}
        self.sidecars: Sidecars = {}

    def write(self, name: str, ids: Sequence[Any], kind: pa.DataType | None = None) -> IdFile:
        """A new file of a shard, which has a path of its own."""
        self.made += 1
        path = f"data/{name}.{self.made:032x}.parquet"
        place = Path(self.store, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": pa.array(ids, kind or pa.string())}), place)
        file = IdFile(uri=str(place), name=name, rows=len(ids), path=path)
        self.files[name], self.ids[path] = file, list(ids)
        return file

    @property
    def ordered(self) -> list[IdFile]:
        return [self.files[name] for name in sorted(self.files)]

    def step(self, **more: Any) -> DuplicateIds | None:
        """The next version."""
        found, self.sidecars = id_index.update(
            self.store, self.ordered, self.sidecars, **{**SMALL, **more}
        )
        return found

    def version(self, **more: Any) -> DuplicateIds | None:
        """The next version; what it says is what all files say."""
        found = self.step(**more)
        assert found == find_duplicate_ids(self.ordered)
        times = Counter(value for file in self.ordered for value in self.ids[file.path])
        assert (found.rows if found else 0) == sum(count - 1 for count in times.values())
        return found

    @property
    def runs(self) -> list[int]:
        return [sidecar.about["entries"] for sidecar in self.sidecars["ids"]]

    def opened(self, **more: Any) -> set[str]:
        """Names of the shards whose files the next version opens."""
        watched = Watched()
        with use_storage(watched):
            self.step(**more)
        return {Path(uri).name.split(".")[0] for uri in watched.opened if "/data/" in uri}


class Watched(Storage):
    """Notes the files that are opened."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    def file_size(self, uri: str) -> int:
        self.opened.append(uri)
        return super().file_size(uri)


@pytest.fixture
def codes(tmp_path: Path) -> Codes:
    return Codes(tmp_path)


def test_new_changed_and_removed_files(codes: Codes) -> None:
    for number in range(5):
        codes.write(f"s{number}", [f"{number}-{row}" for row in range(20)])
    assert codes.version() is None
    codes.write("s5", ["new", "3-7", "new"])
    found = codes.version()
    assert str(found) == (
        "2 row(s) that repeat an earlier id: '3-7' in s3, row 7 and in s5, row 1; "
        "'new' in s5, row 0 and in s5, row 2"
    )
    codes.write("s3", ["3-7"])
    assert codes.version().examples[0].rows == ["s3, row 0", "s5, row 1"]
    del codes.files["s3"]
    assert codes.version().rows == 1
    del codes.files["s5"]
    assert codes.version() is None


def test_only_files_that_matter_are_opened(codes: Codes) -> None:
    for number in range(25):
        codes.write(f"s{number:02d}", [f"{number}-{row}" for row in range(20)])
    assert len(codes.opened()) == 25
    codes.write("s25", ["a", "b"])
    assert codes.opened() == {"s25"}
    codes.write("s26", ["7-3", "c"])
    assert codes.opened() == {"s26", "s07"}, "and the one that may hold an equal id"
    codes.write("s27", ["d"])
    assert codes.opened() == {"s27"}, "ids that are known to be there twice are not read again"
    codes.write("s07", [f"7-{row}" for row in range(20)])
    assert codes.opened() == {"s07"}
    del codes.files["s20"]
    assert codes.opened() == set()
    codes.write("empty", [])
    assert codes.opened() == set()
    assert codes.version().rows == 1


def test_many_duplicates_are_not_read_again(codes: Codes) -> None:
    for number in range(25):
        codes.write(f"s{number:02d}", [f"{row}" for row in range(20)])
    assert codes.version().rows == 24 * 20
    codes.write("s25", ["3", "new"])
    assert codes.opened() == {"s25"}
    assert codes.version().rows == 24 * 20 + 1


@pytest.mark.parametrize("in_memory", [3, 16, 1 << 20])
def test_one_id_very_many_times(codes: Codes, in_memory: int) -> None:
    for number in range(6):
        codes.write(f"s{number}", ["unknown"] * 40 + [f"{number}"])
    assert codes.version(in_memory=in_memory).rows == 239
    codes.write("s6", ["unknown"] * 40 + ["x", "x"])
    found = codes.version(in_memory=in_memory)
    assert found.rows == 280
    assert found.examples[0].rows == [f"s0, row {row}" for row in range(5)]


def test_integers_and_strings_are_not_equal(codes: Codes) -> None:
    codes.write("a", [1, 2, -(2**63), 2**63 - 1], pa.int64())
    codes.write("b", ["1", "2", "é", ""])
    assert codes.version() is None
    codes.write("c", [2, 3, -(2**63)], pa.int64())
    codes.write("d", ["é", ""])
    assert codes.version().rows == 4
    codes.write("e", ["z"])
    assert codes.version().rows == 4


def test_a_collision_is_no_duplicate(codes: Codes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        duplicate_ids, "hashes", lambda ids: np.array([len(x) for x in ids.to_pylist()], np.uint64)
    )
    codes.write("a", ["x", "yy", "zzz"])
    assert codes.version() is None
    codes.write("b", ["u", "vv"])
    assert codes.version() is None
    codes.write("c", ["u", "zz"])
    assert codes.version().examples[0].rows == ["b, row 0", "c, row 0"]
    codes.write("d", ["ww"])
    assert codes.opened() == {"d"}, "what collides is known by now"
    assert codes.version().rows == 1


def test_more_duplicates_than_are_compared(codes: Codes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicate_ids, "COMPARED", 30)
    for number in range(4):
        codes.write(f"s{number}", [f"{row}" for row in range(100)])
    assert codes.version().rows == 300
    for number in range(4, 8):
        codes.write(f"s{number}", [f"{row}" for row in range(number, 100)])
        del codes.files[f"s{number - 4}"]
        found = codes.version()
        assert len(found.examples) == 5


def test_there_are_few_runs_and_little_is_stale(codes: Codes) -> None:
    rng = random.Random(1)
    for number in range(25):
        codes.write(f"s{number}", [f"{number}-{row}" for row in range(rng.randint(1, 30))])
        codes.step()
        assert len(codes.runs) <= 12
        assert all(a >= 2 * b for a, b in zip(codes.runs, codes.runs[1:], strict=False))
    for number in range(25):  # a roll-out: the same ids in new files
        path = codes.files[f"s{number}"].path
        codes.write(f"s{number}", codes.ids[path])
        assert codes.step() is None
        alive = sum(file.rows for file in codes.ordered)
        assert sum(codes.runs) <= 2 * alive + SMALL["row_group"]
    for number in range(24):
        del codes.files[f"s{number}"]
        codes.step()
    assert sum(codes.runs) <= 2 * 30 + SMALL["row_group"]


@pytest.mark.parametrize("kind", ["ids", "repeated"])
@pytest.mark.parametrize("damage", ["gone", "short", "flipped", "empty", "another", "other table"])
def test_a_damaged_index_is_made_anew(
    codes: Codes, kind: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    codes.write("a", [f"a{row}" for row in range(200)])
    codes.write("b", ["a7", "b", "b"])
    codes.version()
    path = Path(codes.store, codes.sidecars[kind][0].path)
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "short":
        path.write_bytes(content[:-10])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flipped":
        footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        for at in range(40, footer, 16):  # somewhere in every page
            content[at] ^= 1
        path.write_bytes(content)
    elif damage == "another":
        other = codes.sidecars["repeated" if kind == "ids" else "ids"][0]
        path.write_bytes(Path(codes.store, other.path).read_bytes())
    else:
        pq.write_table(pa.table({"hash": [1]}), path)
        path.write_bytes(path.read_bytes().ljust(len(content), b"\0"))
    codes.write("c", ["a9"])
    with caplog.at_level("WARNING", "raypq"):
        assert codes.version().rows == 3
    assert "all ids are read again" in caplog.text
    codes.write("d", ["d"])
    assert codes.opened() == {"d"}


def test_what_is_refused_leaves_nothing(codes: Codes) -> None:
    codes.write("a", ["a", "b"])
    codes.version()
    before = sorted(Path(codes.store, "sidecars").iterdir())
    codes.write("b", ["b"])

    def refuse(found: DuplicateIds | None) -> None:
        if found:
            raise InputError("codes", expected="every id once", found=str(found))

    with pytest.raises(InputError, match="'b' in a, row 1 and in b, row 0"):
        codes.version(check_duplicates=refuse)
    assert sorted(Path(codes.store, "sidecars").iterdir()) == before
    codes.write("b", ["c"])
    assert codes.version(check_duplicates=refuse) is None


@pytest.mark.parametrize("seed", range(10))
def test_any_history(codes: Codes, seed: int) -> None:
    """Files come, change, go, and come back; versions that nobody looked at lie between."""
    rng = random.Random(seed)
    pool = rng.choice([5, 50, 5000])
    sizes = {"in_memory": rng.choice([2, 16, 1000]), "row_group": rng.choice([1, 8, 1000])}
    aside: list[tuple[str, IdFile]] = []
    for step in range(15):
        for _ in range(rng.randint(0, 3)):
            name = f"s{rng.randint(0, 7):02d}"
            move = rng.random()
            if move < 0.55 or name not in codes.files:
                if name in codes.files:
                    aside.append((name, codes.files[name]))
                length = rng.randint(0, 30)
                codes.write(name, [f"{rng.randrange(pool)}" for _ in range(length)])
            elif move < 0.7:  # the same ids in a new file
                aside.append((name, codes.files[name]))
                codes.write(name, codes.ids[codes.files[name].path])
            elif move < 0.85:
                aside.append((name, codes.files.pop(name)))
            elif aside:
                name, file = rng.choice(aside)
                codes.files[name] = file
        if rng.random() < 0.8:
            codes.version(**sizes)
        if step == 7 and seed % 4 == 0:
            codes.sidecars = {}
