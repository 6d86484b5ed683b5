"""Which groups of near-duplicates a page shows, and which of their images."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq.data.store import snapshot
from raypq.data.store.shard_writer import Receipt, Source
from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError
from raypq.reporting import group_pictures, page
from raypq.reporting.findings import Store
from raypq.reporting.samples import Context

METRICS = [("l2", -1), ("cosine", 1)]


def table(sizes: list[int], seed: int = 0, *, text: bool = False) -> pa.Table:
    """Groups of these sizes in the order of a groups file; scores differ but within ten groups."""
    rng = np.random.default_rng(seed)
    size = np.array(sizes)
    start = np.r_[0, np.cumsum(size)][:-1]
    rows = int(size.sum())
    kept = np.zeros(rows, bool)
    kept[start] = True
    score = rng.permutation(rows).astype(np.float32) / rows
    score[: int(size[:10].sum())] = 0.5  # ties
    kind = pa.string() if text else pa.int64()
    ids = pa.array(np.arange(rows)).cast(kind)
    return pa.table(
        {"group_id": ids.take(pa.array(np.repeat(start, size))), "id": ids,
         "size": np.repeat(size, size), "kept": kept, "score": score}
    )  # fmt: skip


def store(root: Path, *files: pa.Table, metric: str = "l2") -> Store:
    """A store of groups with these files."""
    (root / "data").mkdir(parents=True)
    receipts = []
    for number, groups in enumerate(files):
        path = root / "data" / f"{number}.parquet"
        pq.write_table(groups, path, row_group_size=1 << 15)
        receipts.append(
            Receipt(
                shard=f"groups-{number}", path=f"data/{number}.parquet", rows=len(groups),
                bytes=path.stat().st_size, sha256="0" * 64, model="m", work="w",
                source=Source(uri="codes", size=0, modified=""),
            )
        )  # fmt: skip
    version = Snapshot(
        kind="groups", version=1, parent=None, nonce="n", run_id="r", created="",
        shards=tuple(receipts), summary={"metric": metric, "threshold": 0.5},
    )  # fmt: skip
    return Store(place=str(root), versions=[version])


def gallery(found: Store) -> group_pictures.Gallery:
    context = Context(
        names={},
        origins=None,
        short={found.place: "groups"},
        locates=False,  # type: ignore[arg-type]
    )
    return group_pictures.gallery(found, context)


def expected(groups: pa.Table, nearer: int) -> list[tuple[str, list[str]]]:
    """Title and ids of every row, from all groups at once."""
    members: dict[str, list[tuple[float, str]]] = {}
    for row in groups.to_pylist():
        away = -np.inf if row["kept"] else -nearer * row["score"]
        members.setdefault(str(row["group_id"]), []).append((away, str(row["id"])))
    names = list(members)
    far = {name: max(away for away, _ in members[name]) for name in names}
    shown: dict[str, str] = {}
    for why, key in (
        ("one of the largest", lambda name: -len(members[name])),
        ("at the threshold", lambda name: -far[name]),
        ("one of the nearest", lambda name: far[name]),
    ):
        shown |= dict.fromkeys([name for name in sorted(names, key=key) if name not in shown][:4],
                               why)  # fmt: skip
    rows = []
    for name, why in shown.items():
        kept, *others = members[name]
        others = sorted(others, key=lambda item: -item[0])[:7]
        n = len(members[name])
        of = ", of which 8 are shown" if n > 8 else ""
        rows.append((f"{n:,} images ({why}){of}", [kept[1], *(one for _, one in others)]))
    return rows


SIZES = {
    "few": [2, 3],
    "some": [2] * 11 + [9, 3] * 4 + [2] * 11,
    "across batches": [2] * 20_000 + [100_000] + [3] * 9_000 + [65_536, 2, 70_000],
    "the first row of a batch": [65_536, 65_536, 2],
}


@pytest.mark.parametrize(("metric", "nearer"), METRICS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_groups_are_those_of_the_whole_file(tmp_path, sizes, metric, nearer):
    groups = table(sizes, text=len(sizes) == 2)
    found = gallery(store(tmp_path, groups, metric=metric))
    shown = [(row.title, [picture.want.id for picture in row.pictures]) for row in found.rows]
    assert shown == expected(groups, nearer)
    assert found.note.startswith(f"{len(shown)} of {len(sizes):,} groups (threshold 0.5)")
    score = groups.column("score").to_pylist()
    for row in found.rows:
        kept, *others = row.pictures
        assert (kept.mark, kept.note) == ("kept", "")
        assert kept.alt == f"image {kept.want.id}, kept"
        for picture in others:
            assert (picture.mark, picture.note) == ("", f"{score[int(picture.want.id)]:.3g}")
    word = "distance to" if metric == "l2" else "similarity with"
    assert f"{word} the kept one" in found.note


def test_groups_of_several_files_are_as_of_one(tmp_path):
    groups = table(SIZES["across batches"])
    ends = [0, 2 * 50, 2 * 20_000, 2 * 20_000 + 100_000, len(groups)]
    parts = [groups[a:b] for a, b in pairwise(ends)]
    first = gallery(store(tmp_path / "one", groups))
    assert gallery(store(tmp_path / "many", *parts, groups[:0])).rows == first.rows


def test_a_group_that_goes_on_takes_no_place(tmp_path):
    """Nearest of all in the first batch; not in the second one."""
    groups = table([2] * 30 + [70_000] + [2] * 5)
    score = np.full(len(groups), 0.2, np.float32)
    score[1:60:2] = np.linspace(0.1, 0.19, 30, dtype=np.float32)
    score[60:65_536] = 0.0
    groups = groups.set_column(4, groups.schema.field("score"), pa.array(score))
    found = gallery(store(tmp_path, groups))
    shown = [(row.title, [picture.want.id for picture in row.pictures]) for row in found.rows]
    assert shown == expected(groups, -1)


def test_ids_are_text(tmp_path):
    ids = pa.array(["<script>alert(1)</script>", '"><b>b</b>'])
    groups = table([2], text=True).set_column(1, "id", ids).set_column(0, "group_id", ids)
    found = store(tmp_path / "<i>groups", groups)
    path = Path(found.place) / snapshot.path_of(1)
    path.parent.mkdir()
    path.write_text(found.latest.model_dump_json())
    page.make([found.place], str(tmp_path / "page.html"))
    text = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    for tag in ("<script", "<b>b", "<i>", '""'):
        assert tag not in text


def test_nothing_to_show(tmp_path):
    found = gallery(store(tmp_path, table([2])[:0]))
    assert (found.rows, found.note) == ((), "There are no near-duplicates.")


def test_a_file_in_another_order_is_an_error(tmp_path):
    with pytest.raises(
        InputError, match=r"each with its kept image first.*raypq deduplicate again"
    ):
        gallery(store(tmp_path, table([3, 2])[1:]))
    (tmp_path / "other").mkdir()
    lacking = store(tmp_path / "other" / "s", table([3, 2]).drop_columns(["kept"]))
    with pytest.raises(InputError, match="a column 'kept'"):
        gallery(lacking)
