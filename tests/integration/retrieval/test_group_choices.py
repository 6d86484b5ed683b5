"""What of a group is kept, what a group is, and what its version says of other thresholds."""

from __future__ import annotations

import re
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq import api
from raypq.config import ClusterSettings, DeduplicateJob, EncodeJob
from raypq.data import arrays
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, InputError, JobError
from raypq.methods.pq import PQModel, PQSettings
from raypq.stages.retrieval.duplicates import group_forest

DX, M, K, N = 12, 4, 16, 300
RNG = np.random.default_rng(5)
C = RNG.standard_normal((M, K, DX // M)).astype(np.float32)
MODEL = PQModel(settings=PQSettings(M=M, K=K), tensors={"C": C}, dx=DX)
X = 2 * RNG.standard_normal((90, DX)).astype(np.float32)[RNG.integers(0, 90, N)]
X += 0.1 * RNG.standard_normal((N, DX)).astype(np.float32)
IDS = [f"i{i}" for i in RNG.permutation(N)]
WIDTH = RNG.integers(1, 20, N)
CODE = dict(zip(IDS, MODEL.decode(MODEL.encode(X)).astype(np.float64), strict=True))


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("store")
    (root / "features").mkdir()
    holes = [None if i == 70 else float(i) for i in range(N)]
    nan = [float("nan") if i == 70 else float(i) for i in range(N)]
    rows = pa.table(
        {"id": IDS, "feature": arrays.fixed_list(X), "width": WIDTH, "holes": holes, "nan": nan,
         "name": IDS, "long": [2**53 + i for i in range(N)], "same": np.zeros(N, np.float32)}
    )  # fmt: skip
    for part, some in enumerate(np.array_split(np.arange(N), 3)):
        pq.write_table(rows.take(some), root / "features" / f"p{part}.parquet")
    MODEL.save(str(root / "model"))
    job = EncodeJob(
        model=str(root / "model"), features=[str(root / "features")], output=str(root / "codes"),
        where=ClusterSettings(cluster="none"),
    )  # fmt: skip
    api.encode(job)
    return str(root / "codes")


def run(codes: str, output: Path, **settings: Any) -> tuple[list[dict[str, Any]], Snapshot]:
    where = ClusterSettings(cluster="none")
    job = DeduplicateJob(codes=codes, output=str(output), where=where, **settings)
    version = api.deduplicate(job)
    tables = [pq.read_table(output / receipt.path) for receipt in version.shards]
    return pa.concat_tables(tables).to_pylist(), version


def by_group(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group_id"], []).append(row)
    return groups


def distance(a: str, b: str) -> float:
    return float(((CODE[a] - CODE[b]) ** 2).sum())


@pytest.mark.parametrize("way", ["largest", "smallest"])
@pytest.mark.parametrize("linkage", ["single", "complete"])
def test_keep_by_a_column(codes: str, tmp_path: Path, way: str, linkage: str) -> None:
    features = [str(Path(codes).parent / "features")]
    rows, _ = run(
        codes, tmp_path / "out", threshold=2.0, keep=way, keep_by="width", features=features,
        linkage=linkage, drop_list=str(tmp_path / "drop.txt"),
    )  # fmt: skip
    width = dict(zip(IDS, WIDTH.tolist(), strict=True))
    best = max if way == "largest" else min
    assert len(by_group(rows)) > 10
    for group in by_group(rows).values():
        (kept,) = [row["id"] for row in group if row["kept"]]
        wanted = best(width[row["id"]] for row in group)
        assert kept == min(row["id"] for row in group if width[row["id"]] == wanted)
    same, _ = run(
        codes, tmp_path / "same", threshold=2.0, keep=way, keep_by="same", features=features
    )
    first, _ = run(codes, tmp_path / "first", threshold=2.0)
    assert same == first  # equal values are decided by ids


def test_complete_linkage(codes: str, tmp_path: Path) -> None:
    t = 4.0
    single, _ = run(codes, tmp_path / "single", threshold=t)
    rows, version = run(codes, tmp_path / "complete", threshold=t, linkage="complete")
    assert any(
        distance(a["id"], b["id"]) > t
        for group in by_group(single).values()
        for a, b in combinations(group, 2)
    )
    connected = {row["id"]: row["group_id"] for row in single}
    groups = by_group(rows)
    kept = {
        name for group in groups.values() for name in [row["id"] for row in group if row["kept"]]
    }
    alone = {*connected} - {row["id"] for row in rows}
    for group in groups.values():
        names = [row["id"] for row in group]
        assert len(names) == group[0]["size"] > 1
        assert len({connected[name] for name in names}) == 1
        assert all(distance(a, b) <= t * (1 + 1e-6) for a, b in combinations(names, 2))
        assert names == [min(names), *sorted({*names} - {min(names)})]
    # Nobody is alone who is near to all of some group that its best member started before.
    for name in alone:
        for group in groups.values():
            if connected[group[0]["id"]] != connected[name] or group[0]["id"] > name:
                continue
            assert any(distance(name, row["id"]) > t * (1 - 1e-6) for row in group)
    assert len(kept) == len(groups)
    assert "dropped_at" not in version.summary
    assert version.summary["linkage"] == "complete"
    assert all(row["link"] == 0 for row in rows)
    assert all(row["kept"] or row["link_score"] == row["score"] for row in rows)


def test_what_other_thresholds_would_drop(codes: str, tmp_path: Path) -> None:
    rows, version = run(codes, tmp_path / "out", threshold=3.0)
    steps = version.summary["dropped_at"]
    assert [step for step, _ in steps] == pytest.approx([0.3 * i for i in range(1, 11)])
    for step, dropped in (steps[2], steps[6], steps[9]):
        _, other = run(codes, tmp_path / f"at{step}", threshold=step)
        assert other.summary["dropped"] == dropped
    sizes = [len(group) for group in by_group(rows).values()]
    counted = dict(version.summary["sizes"])
    assert sum(counted.values()) == len(sizes)
    assert {size: sizes.count(size) for size in range(2, 8) if sizes.count(size)} == {
        size: groups for size, groups in counted.items() if size < 8
    }
    if any(size >= 8 for size in sizes):
        assert counted[8] == sum(8 <= size < 16 for size in sizes)


def test_similarities_at_other_thresholds(codes: str, tmp_path: Path) -> None:
    _, version = run(codes, tmp_path / "out", threshold=0.9, metric="cosine")
    steps = version.summary["dropped_at"]
    assert [step for step, _ in steps] == pytest.approx([1 - 0.01 * i for i in range(1, 11)])
    _, other = run(codes, tmp_path / "at", threshold=steps[4][0], metric="cosine")
    assert other.summary["dropped"] == steps[4][1]


def test_parts_of_whole_groups(codes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, one = run(codes, tmp_path / "one", threshold=2.0)
    monkeypatch.setattr(group_forest, "PART_ROWS", 40)
    rows, many = run(codes, tmp_path / "many", threshold=2.0, keep_list=str(tmp_path / "keep"))
    assert len(many.shards) > 3
    assert sorted(rows, key=lambda row: row["id"]) == sorted(whole, key=lambda row: row["id"])
    assert all(row["kept"] for row in [rows[0]])
    groups = [row["group_id"] for row in rows]
    assert sum(a != b for a, b in pairwise(groups)) == len({*groups}) - 1
    for name in ("groups", "dropped", "largest", "sizes", "dropped_at"):
        assert many.summary[name] == one.summary[name]
    again, same = run(codes, tmp_path / "many", threshold=2.0)
    assert same.version == many.version
    assert again == rows


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": "largest", "keep_by": "long"}, "float64 holds exactly"),
        ({"keep": "largest", "keep_by": "nothing"}, "nothing"),
        ({"keep": "largest", "keep_by": "name"}, "expected numbers"),
        (
            {"keep": "smallest", "keep_by": "holes"},
            r"p0\.parquet, column 'holes', row 70: expected a number",
        ),
        (
            {"keep": "smallest", "keep_by": "nan"},
            r"column 'nan', row 70: expected a number.*found nan",
        ),
    ],
)
def test_columns_that_decide_nothing(
    codes: str, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    features = [str(Path(codes).parent / "features")]
    with pytest.raises((InputError, JobError)) as raised:
        run(codes, tmp_path / "out", threshold=3.0, features=features, **settings)
    assert re.search(message, str(raised.value), re.DOTALL)


def test_settings_that_do_not_go_together(codes: str, tmp_path: Path) -> None:
    for settings, message in (
        ({"keep": "largest", "keep_by": "width"}, "features"),
        ({"keep_by": "width", "features": ["x"]}, "keep_by"),
        ({"keep": "largest", "features": ["x"]}, "keep_by"),
        ({"features": ["x"]}, "found neither"),
        ({"keep": "biggest"}, "keep"),
        ({"metric": "cosine", "threshold": 1.5}, "at most 1"),
        ({"threshold": 1e39}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"rerank": True}, "features"),
        ({"rerank": True, "linkage": "complete", "features": ["x"]}, "linkage"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(codes, tmp_path / "out", **{"threshold": 1.0, **settings})


def test_features_of_other_codes(codes: str, tmp_path: Path) -> None:
    other = tmp_path / "features"
    other.mkdir()
    for path in sorted((Path(codes).parent / "features").iterdir()):
        table = pq.read_table(path)
        pq.write_table(table.take(np.arange(len(table))[::-1]), other / path.name)
    with pytest.raises((InputError, JobError)):
        run(
            codes,
            tmp_path / "out",
            threshold=3.0,
            keep="largest",
            keep_by="width",
            features=[str(other)],
        )
