"""Groups of near-duplicates night after night: as from scratch, at the cost of what is new."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq import api
from raypq.config import ClusterSettings, DeduplicateJob, EncodeJob
from raypq.data import arrays
from raypq.data.store import snapshot
from raypq.errors import JobError
from raypq.kernels import native
from raypq.kernels.join import CodeJoin, JoinChoice
from raypq.methods.pq import PQModel, PQSettings
from raypq.stages.retrieval.duplicates import pair_plan
from raypq.stages.retrieval.duplicates.group_edges import EdgeWorker
from raypq.stages.retrieval.duplicates.group_worker import GroupWorker
from raypq.stages.stores import garbage

DX, M, K, N = 12, 4, 16, 600
RNG = np.random.default_rng(3)
C = RNG.standard_normal((M, K, DX // M)).astype(np.float32)
MODEL = PQModel(settings=PQSettings(M=M, K=K), tensors={"C": C}, dx=DX)
X = 2 * RNG.standard_normal((250, DX)).astype(np.float32)[RNG.integers(0, 250, N)]
X += 0.1 * RNG.standard_normal((N, DX)).astype(np.float32)
X[100:140] = X[100]  # many equal ones, in several shards
RNG.shuffle(X)
SHARDS = 10
PLAIN: dict[str, Any] = {"compression": "none", "use_dictionary": False}  # any rows, one size
Night = dict[str, np.ndarray[Any, Any]]  # the rows of each shard


def where() -> ClusterSettings:
    return ClusterSettings(cluster="none")


def encoded(root: Path, night: Night) -> str:
    """The code store, brought up to date with these shards."""
    folder = root / "features"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.stem not in night:
            path.unlink()
    for name, rows in night.items():
        ids = [f"i{row}" for row in rows]
        table = pa.table({"id": ids, "feature": arrays.fixed_list(X[rows])})
        if (
            not (folder / f"{name}.parquet").exists()
            or pq.read_table(folder / f"{name}.parquet") != table
        ):
            pq.write_table(table, folder / f"{name}.parquet", **PLAIN)
    if not (root / "model").exists():
        MODEL.save(str(root / "model"))
    job = EncodeJob(
        model=str(root / "model"), features=[str(folder)], output=str(root / "codes"),
        where=where(),
    )  # fmt: skip
    api.encode(job)
    return str(root / "codes")


def grouped(codes: str, output: Path, **settings: Any) -> list[tuple[Any, ...]]:
    """The groups of a run, and what they tell of narrower thresholds."""
    job = DeduplicateJob(
        codes=codes, output=str(output), where=where(), **{"threshold": 1.5, **settings}
    )
    version = api.deduplicate(job)
    tables = [pq.read_table(output / receipt.path) for receipt in version.shards]
    table = pa.concat_tables(tables)
    check_links(table, output, codes)
    columns = ["group_id", "id", "size", "kept", "score"]
    rows = sorted(zip(*(table[name].to_pylist() for name in columns), strict=True))
    links = sorted(table["link_score"].drop_null().to_pylist())
    summary = {name: version.summary[name] for name in ("groups", "dropped", "largest", "sizes")}
    return [*rows, links, summary, version.summary["dropped_at"]]


def check_links(table: pa.Table, output: Path, codes: str) -> None:
    """Links lead to the kept image, and name a pair with that score; rows are where they say."""
    version = snapshot.read(codes)
    paths = {receipt.shard: receipt.path for receipt in version.shards}
    ids = {name: pq.read_table(Path(codes, path))["id"].to_pylist() for name, path in paths.items()}
    rows = table.to_pylist()
    first = 0
    for at, row in enumerate(rows):
        first = at if row["kept"] else first
        assert ids[row["shard"]][row["row"]] == row["id"]
        other = rows[first + row["link"]]
        assert other["group_id"] == row["group_id"]
        assert (row["link_score"] is None) == row["kept"]
        if not row["kept"]:
            a, b = (MODEL.decode(MODEL.encode(X[int(x["id"][1:]) :][:1])) for x in (row, other))
            assert row["link_score"] == pytest.approx(((a - b) ** 2).sum(), rel=1e-5, abs=1e-6)
        steps = 0
        while not row["kept"]:
            row = rows[first + row["link"]]
            steps += 1
            assert steps < N


@pytest.fixture(params=["scan", "join"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How pairs are found; by a join also in a store as small as this one."""
    if request.param == "join":
        if not native.available():
            pytest.skip("the join is a native kernel")

        def joined(sample: Any, rows: int, C: Any, *way: Any, **more: Any) -> JoinChoice:
            return JoinChoice(join=CodeJoin.of(C, *way, parts=2), seconds=0.0, pairs=0.0)

        monkeypatch.setattr(pair_plan, "_FEW_ROWS", 0)
        monkeypatch.setattr(pair_plan, "choose", joined)
        monkeypatch.setattr(CodeJoin, "pays", lambda *_: True)
    monkeypatch.setattr(pair_plan, "_JOINED_ROWS", 150)
    monkeypatch.setattr(pair_plan, "_SCANNED_ROWS", 150)
    return str(request.param)


def nights() -> list[Night]:
    """Shards that are new, gone, shorter, in another order, or with other rows."""
    rows = np.array_split(np.arange(N), SHARDS)
    whole = {f"s{number}": part for number, part in enumerate(rows)}
    first = {name: whole[name] for name in ("s1", "s2", "s3", "s4", "s5", "s6")}
    more = first | {"s0": whole["s0"], "s9": whole["s9"]}
    less = {name: part for name, part in more.items() if name != "s3"}
    changed = less | {"s1": whole["s1"][5:], "s7": whole["s3"]}
    return [first, more, less, changed, changed, first]


def test_nights_are_as_from_scratch(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    connect = EdgeWorker.connect

    def counted(self: EdgeWorker, task: Any, groups: Any, starts: Any) -> Any:
        first, second = self.read_sides(task, groups, ids=False)
        compared.append(len(first.B) * len(second.B))
        return connect(self, task, groups, starts)

    monkeypatch.setattr(EdgeWorker, "connect", counted)
    for number, night in enumerate(nights()):
        codes = encoded(tmp_path, night)
        compared.clear()
        found = grouped(codes, tmp_path / "groups")
        steps = sum(compared)
        compared.clear()
        assert found == grouped(codes, tmp_path / f"fresh{number}")
        assert len(found) > 100
        if number in (1, 3):
            assert 0 < steps < 0.7 * sum(compared)
        if number in (2, 4):  # nothing is new
            assert not steps
    assert len(snapshot.versions(str(tmp_path / "groups"))) == 5  # one night changed nothing


def test_other_settings_start_anew(tmp_path: Path) -> None:
    first, more, *_ = nights()
    codes = encoded(tmp_path, first)
    grouped(codes, tmp_path / "groups")
    codes = encoded(tmp_path, more)
    (tmp_path / "prefer.txt").write_text("i7\ni100\n")
    for settings in ({"threshold": 2.5}, {"prefer": str(tmp_path / "prefer.txt")}):
        assert grouped(codes, tmp_path / "groups", **settings) == grouped(
            codes, tmp_path / f"fresh{len(settings)}{[*settings]}", **settings
        )


def test_the_last_version_of_the_codes_is_not_needed(tmp_path: Path) -> None:
    first, more, *_ = nights()
    grouped(encoded(tmp_path, first), tmp_path / "groups")
    codes = encoded(tmp_path, more)
    garbage.collect(codes, keep=1, older_than_days=0, remove=True)
    assert grouped(codes, tmp_path / "groups") == grouped(codes, tmp_path / "fresh")


def test_codes_that_were_deleted_and_made_again(tmp_path: Path) -> None:
    """Other images under the names, and the version, that the groups were made of."""
    first, _, _, changed, *_ = nights()
    names = [*first]
    grouped(encoded(tmp_path, first), tmp_path / "groups")
    for other in (
        {name: first[names[-1 - at]] for at, name in enumerate(names)},
        {name: changed["s9"][at::6] for at, name in enumerate(names)},
    ):
        shutil.rmtree(tmp_path / "codes")
        codes = encoded(tmp_path, other)
        assert grouped(codes, tmp_path / "groups") == grouped(codes, tmp_path / f"f{len(other)}")
        shutil.rmtree(tmp_path / f"f{len(other)}")


def test_a_killed_night_is_of_its_own_files(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it found serves a rerun, and not another night with as many new files."""
    first, *_ = nights()
    whole = first | {"s0": np.arange(60), "s9": np.arange(540, 600)}
    without = {name: rows for name, rows in whole.items() if name != "s0"}
    encoded(tmp_path, first)
    grouped(encoded(tmp_path, first), tmp_path / "groups")
    encoded(tmp_path, without)
    codes = encoded(tmp_path, {name: rows for name, rows in whole.items() if name != "s9"})
    monkeypatch.setattr(GroupWorker, "grow", killed)
    with pytest.raises(JobError):
        grouped(codes, tmp_path / "groups")
    monkeypatch.undo()
    codes = encoded(tmp_path, without)
    assert grouped(codes, tmp_path / "groups") == grouped(codes, tmp_path / "fresh")
    codes = encoded(tmp_path, whole)
    assert grouped(codes, tmp_path / "groups") == grouped(codes, tmp_path / "fresh2")


def killed(*_: Any) -> None:
    raise RuntimeError("killed")


def test_shards_under_other_names(tmp_path: Path) -> None:
    first, *_ = nights()
    grouped(encoded(tmp_path, first), tmp_path / "groups")
    codes = encoded(tmp_path, {f"new-{name}": rows for name, rows in first.items()})
    assert grouped(codes, tmp_path / "groups") == grouped(codes, tmp_path / "fresh")


@pytest.mark.parametrize("part", ["data", "sidecars"])
@pytest.mark.parametrize("damage", ["gone", "short"])
def test_groups_that_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, part: str, damage: str
) -> None:
    first, more, *_ = nights()
    grouped(encoded(tmp_path, first), tmp_path / "groups")
    (path,) = (tmp_path / "groups" / part).iterdir()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    codes = encoded(tmp_path, more)
    assert grouped(codes, tmp_path / "groups") == grouped(codes, tmp_path / "fresh")
    assert "all codes are compared again" in caplog.text


def test_originals_that_changed(tmp_path: Path) -> None:
    first, *_ = nights()
    codes = encoded(tmp_path, first)
    features = tmp_path / "features"
    settings: dict[str, Any] = {"rerank": True, "features": [str(features)]}
    job = DeduplicateJob(
        codes=codes, output=str(tmp_path / "groups"), threshold=1.5, where=where(), **settings
    )
    before = api.deduplicate(job)
    table = pq.read_table(features / "s1.parquet")
    far = np.arange(1, len(table) + 1, dtype=np.float32)[:, None] * X[first["s1"]]
    table = table.set_column(1, "feature", arrays.fixed_list(far))
    pq.write_table(table, features / "s1.parquet", **PLAIN)
    night = api.deduplicate(job)
    fresh = api.deduplicate(job.model_copy(update={"output": str(tmp_path / "fresh")}))
    for name in ("groups", "dropped", "dropped_at"):
        assert night.summary[name] == fresh.summary[name]
    assert night.summary["dropped"] < before.summary["dropped"]


def test_a_store_that_grows_is_joined_at_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native.available():
        pytest.skip("the join is a native kernel")
    first, more, *_ = nights()
    grouped(encoded(tmp_path, first), tmp_path / "groups")
    assert snapshot.read(str(tmp_path / "groups")).summary["parts"] is None
    chosen = CodeJoin.of(C, "l2", 1.5, parts=2)
    monkeypatch.setattr(pair_plan, "_FEW_ROWS", 400)
    monkeypatch.setattr(
        pair_plan, "choose", lambda *_, **__: JoinChoice(join=chosen, seconds=0.0, pairs=0.0)
    )
    codes = encoded(tmp_path, more)
    assert grouped(codes, tmp_path / "groups") == grouped(codes, tmp_path / "fresh")
    assert snapshot.read(str(tmp_path / "groups")).summary["parts"] == [0, 2, 4]


def test_lists_of_a_night(tmp_path: Path) -> None:
    first, more, less, *_ = nights()
    lists = {name: str(tmp_path / name) for name in ("keep_list", "drop_list")}
    for night in (first, more, less):
        codes = encoded(tmp_path, night)
        grouped(codes, tmp_path / "groups", **lists)
        keep, drop = (set(Path(path).read_text().split()) for path in lists.values())
        assert not keep & drop
        assert keep | drop == {f"i{row}" for rows in night.values() for row in rows}
    Path(lists["keep_list"]).unlink()
    grouped(codes, tmp_path / "groups", **lists)
    assert set(Path(lists["keep_list"]).read_text().split()) == keep
