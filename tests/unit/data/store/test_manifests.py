"""Versions of many shards: receipts come back as they were, from files that versions share."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq.data.storage import Storage, use_storage
from raypq.data.store import manifest, manifest_tree, runs, snapshot
from raypq.data.store import receipts as receipts_module
from raypq.data.store.manifest import COLUMNS
from raypq.data.store.receipts import Receipts
from raypq.data.store.shard_stats import ShardStats, Spread
from raypq.data.store.shard_writer import Receipt, Source
from raypq.errors import ConflictError, InputError
from raypq.stages.stores import garbage, versions


@pytest.fixture(autouse=True)
def _no_version_holds_receipts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MOST_INLINE", 0)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def receipt(shard: str, state: int = 0, **changes: Any) -> Receipt:
    """Of some shards all fields are there, of others the least."""
    is_full = len(shard) % 2 == 0
    spread = Spread(mean=0.1 + state, std=1e-30, q05=-1.0, q50=0.3, q95=1e30)
    fields: dict[str, Any] = {
        "shard": shard,
        "path": f"data/{shard}.{state:032x}.parquet",
        "bytes": 1000 + state,
        "rows": 5,
        "sha256": f"{state:064x}",
        "model": "model-1,model-2" if is_full else "",
        "work": f"w{state % 3}",
        "source": Source(
            uri=f"/in/{shard} ü.parquet", size=2**62, modified="",
            sha256="ab" * 32 if is_full else None,
        ),
        "ids": "int64" if is_full else None,
        "stats": ShardStats(rows=3, error=spread, norm=spread, coded=2, entropy=0.7)
        if is_full
        else None,
    }  # fmt: skip
    return Receipt(**fields | changes)


def commit(store: str, receipts: Iterable[Receipt], **more: Any) -> snapshot.Snapshot:
    receipts = list(receipts)
    return snapshot.commit(
        store, kind="codes", run_id="r", expected=[item.shard for item in receipts],
        receipts=receipts, **more,
    )  # fmt: skip


def files(store: str) -> list[str]:
    return sorted(path.name for path in Path(store, manifest.FOLDER).iterdir())


NAMES = ["möwen & co--part 0", "a", "bb", "b", "date=2026-01-01", "日本語", "Z", "a.b"]


@pytest.mark.parametrize("objects", [0, 10_000])
def test_receipts_come_back_as_they_were(
    store: str, objects: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that are too many to be kept as objects."""
    monkeypatch.setattr(receipts_module, "_OBJECTS", objects)
    monkeypatch.setattr(receipts_module, "_BATCH", 3)
    made = commit(store, [receipt(name, i) for i, name in enumerate(NAMES)])
    version = snapshot.read(store)
    wanted = tuple(sorted((receipt(name, i) for i, name in enumerate(NAMES)),
                          key=lambda item: item.shard))  # fmt: skip
    assert version.format == 2
    assert version == made
    assert version.shards == wanted
    assert tuple(version.shards) == wanted
    assert [version.shards[i] for i in range(-8, 8)] == [*wanted, *wanted]
    assert version.shards[2:5] == wanted[2:5]
    assert wanted[3] in version.shards
    assert wanted != version.shards[1:]
    with pytest.raises(IndexError):
        version.shards[8]
    assert version.rows == 40
    assert pickle.loads(pickle.dumps(version)).shards == wanted
    assert version.model_dump(mode="json") == snapshot.Snapshot(
        **{**dict(version), "shards": wanted}
    ).model_dump(mode="json")


def test_every_field_of_a_receipt_is_a_column_that_is_compared() -> None:
    fields = {*Receipt.model_fields} - {"source", "counts"}
    fields |= {f"source_{name}" for name in Source.model_fields}
    assert set(COLUMNS) == fields
    stats = COLUMNS["stats"]
    assert {field.name for field in stats} == set(ShardStats.model_fields)
    assert {field.name for field in stats.field("error").type} == set(Spread.model_fields)
    compared = [name for names in manifest_tree._TOGETHER for name in names]
    assert sorted([*compared, "shard"]) == sorted(COLUMNS)


CHANGES: dict[str, dict[str, Any]] = {
    "path": {"path": "data/other.parquet"},
    "work": {"work": "other"},
    "stats": {"stats": None},
    "less": {"stats": receipt("ab", 7).stats},
    "ids": {"ids": None},
    "sha256": {"source": receipt("ab").source.model_copy(update={"sha256": None})},
    "modified": {"source": receipt("ab").source.model_copy(update={"modified": "2"})},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_field_is_a_change(store: str, change: dict[str, Any]) -> None:
    commit(store, [receipt("ab"), *(receipt(f"x{i}") for i in range(2000))])
    changed = receipt("ab").model_copy(update=change)
    second = commit(store, [changed, *(receipt(f"x{i}") for i in range(2000))])
    assert [item.entries for item in second.shards.manifests] == [2001, 1]
    assert snapshot.read(store).shards[0] == changed


def test_a_version_writes_what_changed_and_shares_the_rest(store: str) -> None:
    many = {f"s{i:05d}": receipt(f"s{i:05d}", i) for i in range(5000)}
    first = commit(store, many.values())
    many |= {f"t{i}": receipt(f"t{i}") for i in range(3)} | {"s00007": receipt("s00007", 9)}
    del many["s00100"]
    second = commit(store, many.values())
    base, change = second.shards.manifests
    assert first.shards.manifests == (base,)
    assert (change.shards, change.removed) == (4, 1)
    assert [*snapshot.read(store).shards] == sorted(many.values(), key=lambda item: item.shard)
    third = commit(store, many.values(), summary={"other": 1})
    assert third.shards.manifests == (base, change), "nothing to write"
    assert len(files(store)) == 2
    root = json.loads(Path(store, snapshot.path_of(3)).read_text())
    assert "shards" not in root
    assert root["totals"]["shards"] == len(many)


def walk(store: str, steps: int, seed: int) -> list[dict[str, Receipt]]:
    """Commits random changes; gives the receipts of each version by shard."""
    dice, state = random.Random(seed), 0
    current: dict[str, Receipt] = {}
    made = []
    for _ in range(steps):
        for _ in range(dice.choice([1, 3, 30, 900])):
            state += 1
            name = f"s{dice.randrange(3000)}"
            if dice.random() < 0.3:
                current.pop(name, None)
            else:
                current[name] = receipt(name, state)
        current["keep"] = receipt("keep")
        commit(store, dice.sample([*current.values()], len(current)))
        made.append(dict(current))
    return made


def test_any_sequence_of_changes_is_read_as_it_was_committed(store: str) -> None:
    wanted = walk(store, 25, seed=3)
    for number, receipts in enumerate(wanted, start=1):
        version = snapshot.read(store, number)
        assert [*version.shards] == sorted(receipts.values(), key=lambda item: item.shard)
        assert version.shards.totals == Receipts.of([*version.shards]).totals
        assert len(version.shards.manifests) <= 8
        for item in version.shards.manifests:
            table = manifest.read(store, item, ["shard"])
            assert (item.first, item.last) == (
                table["shard"][0].as_py(),
                table["shard"][-1].as_py(),
            )
    for old in (1, 7, 20, 24):
        compared = versions.diff(store, old, old + 1)
        before, after = wanted[old - 1], wanted[old]
        assert compared["added"] == sorted(after.keys() - before.keys())
        assert compared["removed"] == sorted(before.keys() - after.keys())
        assert compared["changed"] == sorted(
            name for name in before.keys() & after.keys() if before[name] != after[name]
        )
        assert compared["kept"] + len(compared["added"]) + len(compared["changed"]) == len(after)


def test_there_are_few_manifests_and_a_row_is_written_few_times() -> None:
    entries, written = [1_000_000], 0
    for _ in range(2000):
        count = manifest_tree.kept_manifests(entries, 100)
        new = sum(entries[count:]) + 100
        entries = [*entries[:count], new]
        written += new
        assert len(entries) <= 8
        assert count or new >= 1_250_000, "the large one is written again after a quarter"
    assert written < 12 * 2000 * 100


def test_gc_keeps_what_versions_name_and_takes_the_rest(store: str) -> None:
    wanted = walk(store, 12, seed=5)
    kept = [8, 9, 10, 11, 12]
    Path(store, "data").mkdir()
    for receipts in wanted:
        for item in receipts.values():
            Path(store, item.path).touch()
    named = {item.path for number in kept for item in snapshot.read(store, number).shards.manifests}
    garbage.collect(store, keep=5, older_than_days=-1, remove=True)
    assert {f"{manifest.FOLDER}/{name}" for name in files(store)} == named
    assert {f"data/{path.name}" for path in Path(store, "data").iterdir()} == {
        item.path for number in kept for item in wanted[number - 1].values()
    }
    for number in kept:
        assert {item.shard for item in snapshot.read(store, number).shards} == set(
            wanted[number - 1]
        )


def test_restore_names_the_same_manifests(store: str) -> None:
    Path(store, "data").mkdir(parents=True)
    first = [receipt(f"s{i}", i, bytes=0) for i in range(600)]
    for item in first:
        Path(store, item.path).touch()
    one = commit(store, first)
    commit(store, [receipt("z", bytes=0)])
    before = files(store)
    made = versions.restore(store, 1)
    assert made.shards.manifests == one.shards.manifests
    assert made.shards == one.shards
    assert files(store) == before
    assert versions.listing(store)[2]["shards"] == 600


def test_a_store_of_the_earlier_format_moves_on(store: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(snapshot, "MOST_INLINE", 10_000)
    first = commit(store, [receipt(f"s{i}", i) for i in range(300)])
    assert first.format == 1
    assert not Path(store, manifest.FOLDER).exists()
    monkeypatch.setattr(snapshot, "MOST_INLINE", 256)
    second = commit(store, [receipt(f"s{i}", i) for i in range(301)])
    assert (second.format, len(second.shards.manifests)) == (2, 1)
    assert versions.diff(store, 1, 2)["added"] == ["s300"]
    assert snapshot.read(store, 1).shards == first.shards
    third = commit(store, [receipt(f"s{i}", i) for i in range(10)])
    assert third.format == 1, "few shards need no manifest"


def put(store: str, **columns: Any) -> None:
    """Replaces the manifest of the last version by one with other columns."""
    place = Path(store, snapshot.path_of(snapshot.versions(store)[-1]))
    document = json.loads(place.read_text())
    path = Path(store, document["manifests"][0]["path"])
    table = pq.read_table(path)
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        array = values if isinstance(values, pa.Array) else pa.array(values, table.schema.types[at])
        table = table.set_column(at, pa.field(name, array.type), array)
    pq.write_table(table, path)
    document["manifests"][0]["bytes"] = path.stat().st_size
    place.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"shard": ["../x", "z"]}, r"'shard': expected a name that stays inside"),
        ({"shard": ["b", "a"]}, r"'shard': expected each shard once, in order"),
        ({"shard": ["a", "a"]}, r"'shard': expected each shard once"),
        ({"path": ["data/../../x", "data/y"]}, r"'path': expected a name that stays inside"),
        ({"path": ["/etc/passwd", "data/y"]}, r"'path': .*/etc/passwd"),
        ({"path": ["data/deep/x", "data/y"]}, r"'path': .*data/deep/x"),
        ({"path": ["data/y", "data/y"]}, r"'path': expected each file once, found 'data/y' more"),
        ({"path": [None, "data/y"]}, r"'path': expected a value for each shard, found none"),
        ({"work": ["../x", "w"]}, r"'work': .*letters, digits"),
        ({"ids": ["float", "int64"]}, r"'ids': .*float"),
        ({"rows": [-1, 5]}, r"'rows': expected numbers from 0 on, found -1"),
        ({"rows": pa.array(["5", "5"])}, r"'rows': expected int64, found string"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_named(store: str, columns: dict[str, Any], says: str) -> None:
    commit(store, [receipt("a"), receipt("b")])
    put(store, **columns)
    with pytest.raises(InputError, match=says):
        [*snapshot.read(store).shards]


@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "other rows"])
def test_a_damaged_manifest_is_named_and_the_next_version_does_without(
    store: str, damage: str
) -> None:
    receipts = [receipt(f"s{i}", i) for i in range(1000)]
    made = commit(store, receipts)
    path = Path(store, made.shards.manifests[0].path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "flipped":
        path.write_bytes(content)
    else:
        place = Path(store, snapshot.path_of(1))
        place.write_text(place.read_text().replace('"shards": 1000', '"shards": 999'))
    with pytest.raises(InputError, match=path.name):
        snapshot.verify_content(store, snapshot.read(store))
    with pytest.raises(InputError, match="copy a manifest back from a backup"):
        versions.verify(store, sha256=True)
    if damage != "flipped":  # in a column that it does not read
        with pytest.raises(InputError, match=path.name):
            garbage.collect(store)
    assert versions.listing(store)[0]["version"] == 1, "the root says all of it"
    second = commit(store, receipts)
    assert second.shards.manifests[0].path != made.shards.manifests[0].path
    assert snapshot.read(store).shards == tuple(sorted(receipts, key=lambda item: item.shard))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"path": "../x"}, r"'manifests\.0\.path': expected a name manifests/"),
        ({"path": "data/x.parquet"}, r"'manifests\.0\.path'"),
        ({"shards": -1}, r"'manifests\.0\.shards'"),
        ({"new": 1}, r"'manifests\.0\.new', written by a newer raypq"),
        ({"first": "../a"}, r"'manifests\.0\.first'"),
    ],
)
def test_an_edited_root_names_the_key(store: str, change: dict[str, Any], says: str) -> None:
    commit(store, [receipt("a")])
    place = Path(store, snapshot.path_of(1))
    document = json.loads(place.read_text())
    document["manifests"][0] |= change
    place.write_text(json.dumps(document))
    with pytest.raises(InputError, match=says):
        snapshot.read(store)


def test_a_link_does_not_lead_out_of_the_store(store: str, tmp_path: Path) -> None:
    commit(store, [receipt("a")])
    Path(store, manifest.FOLDER).rename(tmp_path / "elsewhere")
    Path(store, manifest.FOLDER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="expected paths inside the store"):
        snapshot.read(store)


def test_a_manifest_that_a_gc_will_remove_is_not_named(store: str) -> None:
    receipts = [receipt(f"s{i}", i) for i in range(2000)]
    first = commit(store, receipts)
    gc = runs.OwnMark(store, "gc")
    gc.write()
    gc.announce([item.path for item in first.shards.manifests])
    second = commit(store, [*receipts, receipt("x")])
    assert not {*second.shards.manifests} & {*first.shards.manifests}
    gc.remove()
    third = commit(store, receipts)
    assert third.shards.manifests[0] == second.shards.manifests[0]


class Vanishing(Storage):
    """Removes every manifest just before a version is created, as a gc that slept might."""

    def __init__(self, store: str) -> None:
        self._store = store

    def sync_folder(self, uri: str) -> None:
        super().sync_folder(uri)
        if uri.endswith(manifest.FOLDER):
            for path in Path(self._store, manifest.FOLDER).iterdir():
                path.unlink()


def test_no_version_names_a_manifest_that_is_gone(store: str) -> None:
    with use_storage(Vanishing(store)), pytest.raises(ConflictError, match="no such file"):
        commit(store, [receipt("a")])
    assert snapshot.versions(store) == []


def test_a_sha256_that_is_none_is_refused(store: str) -> None:
    with pytest.raises(ValueError, match="64 hex digits, found '0'"):
        commit(store, [receipt("a", sha256="0")])


def test_a_selection_has_the_rows_that_were_chosen(store: str) -> None:
    commit(store, [receipt(name, i) for i, name in enumerate(NAMES)])
    shards = snapshot.read(store).shards
    rows = shards.find(pa.array(["bb", "none", "Z"], COLUMNS["shard"]))
    assert rows[1] == -1
    chosen: Sequence[Receipt] = shards.select(rows[rows >= 0])
    assert [item.shard for item in chosen] == ["bb", "Z"]


def test_a_search_for_shards_reads_the_row_groups_that_may_hold_them(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(manifest._OPTIONS, "row_group_size", 50)
    made = commit(store, [receipt(f"s{i:04d}", i) for i in range(1000)])
    (item,) = made.shards.manifests
    read: list[int] = []
    whole = manifest.CheckedFile.iter_batches

    def counted(self: Any, rows: int, groups: Any, columns: Any) -> Any:
        read.extend(groups)
        return whole(self, rows, groups, columns)

    monkeypatch.setattr(manifest.CheckedFile, "iter_batches", counted)
    wanted = pa.array(["s0049", "s0050", "s0060x", "t", "s0720"], COLUMNS["shard"])
    found = manifest.find(store, item, wanted, ["path"])
    assert found.column("shard").to_pylist() == ["s0049", "s0050", "s0720"]
    assert sorted(set(read)) == [0, 1, 14]


@pytest.mark.parametrize("rows", [7, 1000])
def test_a_manifest_of_another_tool_is_searched(
    store: str, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Its columns are in another order, and a row group may be larger than ours, or empty."""
    made = commit(store, [receipt(f"s{i:04d}", i) for i in range(1000)])
    path = Path(store, made.shards.manifests[0].path)
    table = pq.read_table(path)
    table = table.select(["stats", *(name for name in table.column_names[::-1] if name != "stats")])
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table[:0])
        for start in range(0, len(table), rows):
            writer.write_table(table[start : start + rows], row_group_size=rows)
    monkeypatch.setattr(manifest, "ROW_GROUP", 50)
    item = made.shards.manifests[0].model_copy(update={"bytes": path.stat().st_size})
    wanted = pa.array(["s0049", "s0050", "s0060x", "t", "s0720"], COLUMNS["shard"])
    found = manifest.find(store, item, wanted, ["path"])
    assert found.column("shard").to_pylist() == ["s0049", "s0050", "s0720"]


def test_a_file_that_two_manifests_name_is_named_by_verify(store: str) -> None:
    receipts = [receipt(f"s{i:04d}", i) for i in range(1100)]
    commit(store, receipts)
    twice = receipt("t", path=receipts[3].path)
    assert len(commit(store, [*receipts, twice]).shards.manifests) == 2
    with pytest.raises(InputError, match=f"each file once, found '{twice.path}' more than once"):
        versions.verify(store)
