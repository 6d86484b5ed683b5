"""Which file is which: a file is known by its URI, size and version tag, and by nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from raypq import api
from raypq.config import (
    ClassifyJob,
    ClusterSettings,
    EncodeJob,
    ReindexJob,
    RepackJob,
    SearchJob,
    SplitJob,
    TrainJob,
)
from raypq.data import arrays
from raypq.data.store import snapshot
from raypq.data.store.shard_writer import Source
from raypq.errors import ConfigError, InputError

WHERE = ClusterSettings(cluster="none", workers=1)
DX = 16


class Days:
    """Features in folders of days, a model, and the verbs on them."""

    def __init__(self, root: Path, model: str) -> None:
        self.root, self.model = root, model

    def __call__(self, name: str) -> str:
        return str(self.root / name)

    def write(self, name: str, seed: int, *, prefix: str = "", n: int = 60) -> str:
        """A feature file; files of one n have one size and, if asked, one time."""
        X = np.random.default_rng(seed).standard_normal((n, DX)).astype(np.float32)
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {
            "id": [f"{prefix}{i:04d}" for i in range(n)],
            "feature": arrays.fixed_list(X),
            "label": [f"c{i % 3}" for i in range(n)],
        }
        pq.write_table(api_table(columns), path, compression="none", use_dictionary=False)
        return str(path)

    def encode(self, *features: str, output: str = "codes") -> snapshot.Snapshot:
        return api.encode(EncodeJob(model=self.model, features=list(features) or [self("f")],
                                    output=self(output), where=WHERE))  # fmt: skip

    def night(self, output: str = "codes", **more: Any) -> dict[str, Any]:
        values = {"features": [self("f")], "codes": self(output), "where": WHERE} | more
        return api.reindex(ReindexJob(model=self.model, **values))

    def search(self, features: list[str], queries: str, output: str = "found") -> snapshot.Snapshot:
        job = SearchJob(
            codes=self("codes"), queries=[queries], top_k=3, rerank=20, features=features,
            output=self(output), where=WHERE,
        )  # fmt: skip
        return api.search(job)


def api_table(columns: dict[str, Any]) -> Any:
    import pyarrow as pa

    return pa.table(columns)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    days = Days(tmp_path_factory.mktemp("model"), "")
    job = TrainJob(method="pq", features=[days.write("t.parquet", 0, n=200)], output=days("m"),
                   settings={"M": 4, "K": 16, "iterations": 2}, where=WHERE)  # fmt: skip
    api.train(job)
    return days("m")


@pytest.fixture
def days(tmp_path: Path, model: str) -> Days:
    return Days(tmp_path, model)


def ids(store: str, version: snapshot.Snapshot) -> list[str]:
    return [
        name
        for item in version.shards
        for name in pq.read_table(f"{store}/{item.path}").column("id").to_pylist()
    ]


def early(store: str, stems: Callable[[str], str]) -> snapshot.Snapshot:
    """The latest version once more, under the stems that an early raypq gave."""
    latest = snapshot.read(store)
    receipts = [item.model_copy(update={"shard": stems(item.source.uri)}) for item in latest.shards]
    return snapshot.commit(
        store, kind=latest.kind, run_id="early", expected=[item.shard for item in receipts],
        receipts=receipts, summary=latest.summary,
    )  # fmt: skip


def test_a_second_folder_leaves_the_first_as_it_was(days: Days) -> None:
    """One day, then two, then one above them: what is encoded stays, and re-ranking finds it."""
    queries = days.write("q.parquet", 9, n=3)
    first = days.write("f/day=1/part-0.parquet", 1, prefix="a")
    by_hand, by_night = days.encode(output="hand"), days.night()
    assert by_night["codes"]["shards"] == 1
    days.write("f/day=2/part-0.parquet", 2, prefix="b")
    days.write("f/part-0.parquet", 3, prefix="c")
    second = days.encode(output="hand")
    assert second.summary["worked"]["shards"] == 2
    assert by_hand.shards[0] in second.shards
    told = days.night()["shards"]
    assert (told["new"], told["kept"], told["removed"]) == (2, 1, 0)
    assert days.search([days("f")], queries).rows == 3
    os.remove(first)
    assert len(days.encode(output="hand").shards) == 2


@pytest.mark.parametrize("verb", ["encode", "night"])
def test_an_early_store_keeps_its_stems(
    days: Days, verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Stems were paths below the deepest common folder; a known file keeps the one it has."""
    files = [days.write(f"f/day={day}/part-0.parquet", day, prefix=str(day)) for day in (1, 2)]
    days.encode()
    api.classify(ClassifyJob(codes=days("codes"), classes=classes(days), output=days("p"),
                             where=WHERE))  # fmt: skip
    queries = days.write("q.parquet", 9, n=3)
    days.search([days("f")], queries)
    old = early(days("codes"), lambda uri: f"{Path(uri).parent.name}--part-0")
    assert {item.shard for item in old.shards} == {"day=1--part-0", "day=2--part-0"}
    with caplog.at_level("INFO", logger="raypq"):
        if verb == "encode":
            assert days.encode() == old
        else:
            assert days.night()["nothing_to_do"]
    assert "nothing to do" in caplog.text
    days.write("f/day=3/part-0.parquet", 3, prefix="3")
    os.utime(files[0], (1, 1))
    if verb == "encode":
        assert days.encode().summary["worked"]["shards"] == 2
    else:
        told = days.night()["shards"]
        assert (told["new"], told["changed"], told["kept"]) == (1, 1, 1)
    now = {item.shard: item for item in snapshot.read(days("codes")).shards}
    assert len(now) == 3
    assert {"day=1--part-0", "day=2--part-0"} < set(now)
    assert now["day=2--part-0"] == next(item for item in old.shards if item.shard[4] == "2")
    assert days.search([days("f")], queries).rows == 3


def classes(days: Days) -> str:
    path = days("classes.parquet")
    E = np.random.default_rng(5).standard_normal((3, DX)).astype(np.float32)
    columns = {"class_id": ["c0", "c1", "c2"], "embedding": arrays.fixed_list(E)}
    pq.write_table(api_table(columns), path)
    return path


def test_equal_name_size_and_time_elsewhere_is_another_file(days: Days) -> None:
    """As tar, rsync and image layers leave copies: nothing but the folder differs."""
    for seed, day in enumerate("ab"):
        os.utime(days.write(f"{day}/part-0.parquet", seed, prefix=day), (1.7e9, 1.7e9))
        os.utime(days.write(f"q{day}/q.parquet", seed, prefix=day, n=3), (1.7e9, 1.7e9))
    for day in "ab":
        version = days.encode(days(day))
        assert ids(days("codes"), version) == [f"{day}{i:04d}" for i in range(60)]
    days.encode(days("a"), days("b"))
    for day in "ab":
        found = days.search([days("a"), days("b")], days(f"q{day}"))
        table = pq.read_table(f"{days('found')}/{found.shards[0].path}")
        assert table.column("query_id").to_pylist() == [f"{day}{i:04d}" for i in range(3)]


def test_a_linked_file_whose_target_changes_is_done_again(days: Days) -> None:
    blob = days.write("blobs/1.parquet", 1, prefix="a")
    Path(days("f")).mkdir()
    Path(days("f/part-0.parquet")).symlink_to(blob)
    days.encode()
    days.night("night")
    before = os.stat(blob)
    days.write("blobs/1.parquet", 2, prefix="b")
    assert os.stat(blob).st_size == before.st_size
    os.utime(blob, (1, 1))
    assert ids(days("codes"), days.encode())[0] == "b0000"
    assert days.night("night")["shards"]["changed"] == 1


def test_a_store_that_moved_is_the_same_store(
    days: Days, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Codes are told by their content: relative, absolute, or in another place."""
    days.write("f/part-0.parquet", 1)
    days.encode()
    table = classes(days)
    monkeypatch.chdir(days.root)
    made = api.classify(ClassifyJob(codes="codes", classes=table, output="p", where=WHERE))
    shutil.copytree(days("codes"), days("moved/codes"))
    with caplog.at_level("INFO", logger="raypq"):
        for place in (days("codes"), "./codes/", days("moved/codes")):
            job = ClassifyJob(codes=place, classes=table, output=days("p"), where=WHERE)
            assert api.classify(job) == made
    assert caplog.text.count("nothing to do") == 3


def test_features_that_moved_are_found_by_the_end_of_their_path(days: Days) -> None:
    for day in (1, 2):
        days.write(f"f/day={day}/part-0.parquet", day, prefix=str(day))
    queries = days.write("q.parquet", 9, n=3)
    days.encode()
    before = days.search([days("f")], queries, "one")
    shutil.move(days("f"), days("other"))
    after = days.search([days("other")], queries, "two")
    assert [item.sha256 for item in before.shards] == [item.sha256 for item in after.shards]
    with pytest.raises(InputError, match=r"day=1/part-0\.parquet that was encoded"):
        days.search([days("other/day=2")], queries, "three")


def test_what_no_tag_is_known_of_is_done_again(days: Days) -> None:
    """Early raypq read no tag of Azure: "None" does not equal "None"."""
    days.write("f/part-0.parquet", 1)
    first = days.encode()
    source = Source.model_validate({**first.shards[0].source.model_dump(), "modified": "None"})
    receipt = first.shards[0].model_copy(update={"source": source})
    snapshot.commit(days("codes"), kind="codes", run_id="x", expected=[receipt.shard],
                    receipts=[receipt])  # fmt: skip
    assert days.encode().summary["worked"]["shards"] == 1


def test_repacking_over_other_files_is_refused(days: Days) -> None:
    """Files of another source, or under the names of an early raypq, would be read with ours."""
    days.write("f/part-0.parquet", 1)
    days.write("g/part-0.parquet", 2)

    def repack(source: str, output: str = "fast", **more: Any) -> Any:
        job = RepackJob(features=[days(source)], output=days(output), where=WHERE, **more)
        return api.repack(job)

    repack("f")
    with pytest.raises(ConfigError, match="holds 1 Parquet file"):
        repack("f")
    assert repack("f", overwrite=True)["images"] == 60
    with pytest.raises(ConfigError, match=r"that this run does not write, such as .*--part-0-"):
        repack("g", overwrite=True)
    (made,) = Path(days("fast")).glob("*.parquet")
    made.rename(made.with_name("part-0.parquet"))
    with pytest.raises(ConfigError, match=r"does not write, such as .*/part-0\.parquet"):
        repack("f", overwrite=True)
    Path(days("deep")).mkdir()
    repack("f", "deep/er")
    with pytest.raises(ConfigError, match="Parquet file"):
        repack("f", "deep", overwrite=True)


def test_splitting_over_other_files_is_refused(days: Days) -> None:
    days.write("f/part-0.parquet", 1)
    days.write("g/part-0.parquet", 2)

    def split(source: str, **more: Any) -> Any:
        values = {"protocol": 1, "labelled": 2, "queries": 6, **more}
        return api.split(SplitJob(features=[days(source)], output=days("s"), where=WHERE, **values))

    told = split("f")
    assert split("f") == told, "over its own files"
    for changed in ({"source": "g"}, {"source": "f", "protocol": 2}):
        source = changed.pop("source")
        if changed:
            Path(days("s/other")).mkdir(exist_ok=True)
            shutil.copy(days("f/part-0.parquet"), days("s/other/part-0.parquet"))
        with pytest.raises(ConfigError, match="that this run does not write"):
            split(str(source), **changed)


@pytest.mark.parametrize("times", [(0, 1), (7, 7)], ids=["times differ", "times are the same"])
def test_a_release_that_is_switched_by_a_link_is_done_again(
    days: Days, times: tuple[int, int]
) -> None:
    """``current`` leads to another folder: the URIs stay, and sizes and times may stay, too."""
    for seed, (release, time) in enumerate(zip("ab", times, strict=True)):
        os.utime(days.write(f"{release}/part-0.parquet", seed, prefix=release), (time, time))
    current = Path(days("f"))
    current.symlink_to("a")
    days.encode()
    days.night("night")
    current.unlink()
    current.symlink_to("b")
    assert ids(days("codes"), days.encode())[0] == "b0000"
    assert days.night("night")["shards"]["changed"] == 1


def test_a_source_that_can_no_longer_be_listed_removes_nothing(
    days: Days, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where a night may let every shard go."""
    for day in (1, 2):
        days.write(f"f/day={day}/part-0.parquet", day, prefix=str(day))
    days.night()
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("day=2"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"day=2.*Permission denied"):
        days.night(max_removed=1)
    assert len(snapshot.read(days("codes")).shards) == 2
