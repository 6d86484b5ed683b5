"""``raypq deduplicate``: connected images as groups, with one that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq import api
from raypq.config import ClusterSettings, DeduplicateJob, DuplicatesJob, EncodeJob, SearchJob
from raypq.data import arrays
from raypq.data.id_list import IdList
from raypq.data.store import snapshot
from raypq.errors import ConfigError, InputError, JobError
from raypq.kernels import join as code_join
from raypq.kernels import native
from raypq.kernels.join import CodeJoin, JoinChoice
from raypq.methods.pq import PQModel, PQSettings
from raypq.stages.retrieval.duplicates import pair_plan

DX, M, K, N = 12, 4, 16, 400
RNG = np.random.default_rng(1)
C = RNG.standard_normal((M, K, DX // M)).astype(np.float32)
MODEL = PQModel(settings=PQSettings(M=M, K=K), tensors={"C": C}, dx=DX)
X = 2 * RNG.standard_normal((160, DX)).astype(np.float32)[RNG.integers(0, 160, N)]
X += 0.1 * RNG.standard_normal((N, DX)).astype(np.float32)
X[100:160] = X[100]  # many equal ones
WAYS = [("l2", 1.5), ("cosine", 0.97), ("cosine", 1.0), ("dot", 18.0)]


def where(workers: int = 1) -> ClusterSettings:
    return ClusterSettings(cluster="none", workers=workers)


def store(root: Path, parts: int, ids: list[Any]) -> str:
    """Codes of the rows with these ids, in several shards."""
    (root / "features").mkdir(parents=True)
    rows = pa.table({"id": ids, "feature": arrays.fixed_list(X)})
    for part, some in enumerate(np.array_split(np.arange(N), parts)):
        pq.write_table(rows.take(some), root / "features" / f"p{part:03d}.parquet")
    MODEL.save(str(root / "model"))
    job = EncodeJob(
        model=str(root / "model"), features=[str(root / "features")], output=str(root / "codes"),
        where=where(),
    )  # fmt: skip
    api.encode(job)
    return str(root / "codes")


@pytest.fixture(params=["scan", "join"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How pairs are found; by a join also in a store as small as this one."""
    if request.param == "join":
        if not native.available():
            pytest.skip("the join is a native kernel")

        def joined(sample: Any, rows: int, C: Any, *way: Any, **more: Any) -> JoinChoice:
            code_join.choose(sample, rows, C, *way, **more)
            join = CodeJoin.of(C, *way, parts=2)
            return JoinChoice(join=join, seconds=0.0, pairs=0.0)

        monkeypatch.setattr(pair_plan, "_FEW_ROWS", 0)
        monkeypatch.setattr(pair_plan, "choose", joined)
    return str(request.param)


def run(codes: str, output: Path, **settings: Any) -> pa.Table:
    workers = settings.pop("workers", 1)
    job = DeduplicateJob(codes=codes, output=str(output), where=where(workers), **settings)
    (receipt,) = api.deduplicate(job).shards
    assert not [path for path in (output / "data").iterdir() if "partial" in path.name]
    return pq.read_table(output / receipt.path)


def expected(
    codes: str, root: Path, ids: list[Any], prefer: list[Any], **settings: Any
) -> dict[Any, tuple[Any, int, bool]]:
    """Group, size and whether it is kept, by id, from the pairs of ``raypq duplicates``."""
    job = DuplicatesJob(codes=codes, output=str(root / "pairs"), where=where(), **settings)
    (receipt,) = api.duplicates(job).shards
    pairs = pq.read_table(root / "pairs" / receipt.path).to_pydict()
    group = {name: {name} for name in ids}
    for a, b in zip(pairs["id_a"], pairs["id_b"], strict=True):
        if group[a] is not group[b]:
            group[a] |= group[b]
            for name in group[b]:
                group[name] = group[a]
    found = {}
    for name, members in group.items():
        if len(members) > 1:
            kept = min([some for some in members if some in prefer] or members)
            found[name] = min(members), len(members), name == kept
    return found


@pytest.mark.parametrize("kind", ["int64", "string"])
@pytest.mark.parametrize(("metric", "threshold"), WAYS)
def test_groups(way: str, tmp_path: Path, kind: str, metric: str, threshold: float) -> None:
    numbers = RNG.permutation(N)
    ids = [int(i) for i in numbers] if kind == "int64" else [f"i{i}" for i in numbers]
    codes = store(tmp_path, 3, ids)
    prefer = ids[100:200:7]
    (tmp_path / "prefer.txt").write_text("".join(f"{name}\n" for name in prefer))
    settings: dict[str, Any] = {"metric": metric, "threshold": threshold}
    for chosen in ([], prefer):
        wanted = expected(codes, tmp_path, ids, chosen, **settings)
        given = {"prefer": str(tmp_path / "prefer.txt")} if chosen else {}
        found = run(
            codes, tmp_path / f"groups-{len(chosen)}", keep_list=str(tmp_path / "keep.txt"),
            drop_list=str(tmp_path / "drop.txt"), **given, **settings,
        )  # fmt: skip
        rows = found.to_pylist()
        assert {row["id"]: (row["group_id"], row["size"], row["kept"]) for row in rows} == wanted
        assert 10 < len(rows) < N
        order = [(row["group_id"], not row["kept"], row["id"]) for row in rows]
        assert order == sorted(order)
        kept = {row["group_id"]: row["id"] for row in rows if row["kept"]}
        code = dict(zip(ids, MODEL.decode(MODEL.encode(X)).astype(np.float64), strict=True))
        for row in rows:
            a, b = code[row["id"]], code[kept[row["group_id"]]]
            score = ((a - b) ** 2).sum() if metric == "l2" else a @ b
            if metric == "cosine":
                score /= np.sqrt((a @ a) * (b @ b))
            assert row["score"] == pytest.approx(score, rel=1e-5, abs=1e-6)
        drop = (tmp_path / "drop.txt").read_text().split()
        keep = (tmp_path / "keep.txt").read_text().split()
        assert set(drop) == {str(row["id"]) for row in rows if not row["kept"]}
        assert sorted(keep + drop) == sorted(map(str, ids))


def test_the_same_for_any_shards_and_workers(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"i{i}" for i in range(N)]
    tables = []
    for name, parts, workers, rows in (("a", 1, 1, 1 << 24), ("b", 9, 3, 60)):
        monkeypatch.setattr(pair_plan, "_JOINED_ROWS", rows)
        monkeypatch.setattr(pair_plan, "_SCANNED_ROWS", rows)
        codes = store(tmp_path / name, parts, ids)
        tables.append(run(codes, tmp_path / f"{name}-out", threshold=1.5, workers=workers))
    same = ["group_id", "id", "size", "kept", "score"]
    assert tables[0].select(same).equals(tables[1].select(same))
    assert np.array_equal(*(np.sort(table["link_score"].drop_null()) for table in tables))


def test_lists_serve_a_search_and_are_written_again(tmp_path: Path) -> None:
    codes = store(tmp_path, 2, list(range(N)))
    keep = tmp_path / "keep.txt"
    settings: dict[str, Any] = {"threshold": 1.0, "keep_list": str(keep)}
    run(codes, tmp_path / "groups", **settings)
    first = keep.read_text()
    search = SearchJob(
        codes=codes, queries=[str(tmp_path / "features/p000.parquet")], ids=str(keep), top_k=3,
        output=str(tmp_path / "found"), where=where(),
    )  # fmt: skip
    assert api.search(search).rows == N // 2
    run(codes, tmp_path / "groups", **settings)
    assert len(snapshot.versions(str(tmp_path / "groups"))) == 1  # nothing to do
    keep.unlink()
    run(codes, tmp_path / "groups", **settings)
    assert keep.read_text() == first


def test_a_list_of_other_groups_is_written_again(tmp_path: Path) -> None:
    codes, keep = store(tmp_path, 2, list(range(N))), tmp_path / "keep.txt"
    for name, threshold in (("a", 0.5), ("b", 5.0)):
        run(codes, tmp_path / name, threshold=threshold, keep_list=str(keep))
    other = keep.read_text()
    run(codes, tmp_path / "a", threshold=0.5, keep_list=str(keep))
    assert len(keep.read_text().split()) > len(other.split())
    run(codes, tmp_path / "a", threshold=0.5)  # without a list, the groups are as they were
    assert len(snapshot.versions(str(tmp_path / "a"))) == 2


def test_ids_that_repeat_are_not_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = [i % 300 for i in range(N)]
    codes = store(tmp_path, 2, ids)
    lists = {name: str(tmp_path / name) for name in ("keep_list", "drop_list")}
    run(codes, tmp_path / "groups", threshold=1.5, **lists)
    keep, drop = (set(Path(path).read_text().split()) for path in lists.values())
    assert not keep & drop
    assert keep | drop == set(map(str, ids))
    assert len(Path(lists["drop_list"]).read_text().split()) == len(drop)
    assert "ids repeat" in caplog.text


def test_text_ids_on_lists(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = ["a,b", 'say "x"', "ünï", "a b", "#"]
    ids = [*odd, *(f"i{i}" for i in range(N - len(odd)))]
    codes, keep = store(tmp_path / "s", 2, ids), tmp_path / "keep.txt"
    (tmp_path / "prefer.txt").write_text("a,b\nnowhere\n")
    run(
        codes, tmp_path / "groups", threshold=0.0, keep_list=str(keep),
        prefer=str(tmp_path / "prefer.txt"),
    )  # fmt: skip
    assert set(odd[:1]) <= set(IdList.read(str(keep)).ids) <= set(ids)
    assert "1 of 2 ids are not in" in caplog.text
    for number, bad in enumerate(["", " a", "a\u2028b", "a\nb", "\u00a0a", "a\u3000", "\x1fz"]):
        codes = store(tmp_path / str(number), 2, [bad, *ids[1:]])
        with pytest.raises((InputError, JobError), match="without line breaks"):
            run(codes, tmp_path / f"g{number}", threshold=0.0, keep_list=str(keep))


def test_no_near_duplicates(tmp_path: Path) -> None:
    distinct = tmp_path / "s"
    codes = store(distinct, 2, list(range(N)))
    found = run(codes, tmp_path / "groups", threshold=1e6, metric="dot")
    assert not len(found)
    assert found.schema.names[:5] == ["group_id", "id", "size", "kept", "score"]


def test_bad_input(tmp_path: Path) -> None:
    codes = store(tmp_path, 1, list(range(N)))
    with pytest.raises(ConfigError, match="at least 0"):
        run(codes, tmp_path / "out", threshold=-1.0)
    (tmp_path / "prefer.txt").write_text("a\n")
    with pytest.raises(InputError, match=r"prefer\.txt"):
        run(codes, tmp_path / "out", threshold=1.0, prefer=str(tmp_path / "prefer.txt"))
    with pytest.raises(InputError, match="no such"):
        run(codes, tmp_path / "out", threshold=1.0, prefer=str(tmp_path / "absent.txt"))
