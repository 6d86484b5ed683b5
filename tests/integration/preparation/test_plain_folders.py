"""Plain folders as outputs: no file of an earlier run passes for one of this run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tinystore import ALONE, shard, vectors

from raypq import api
from raypq.config import InferSemanticsJob, RepackJob
from raypq.data.storage import stem_of
from raypq.data.store import snapshot
from raypq.errors import JobError

Run = Callable[..., dict[str, Any]]


class Case:
    """A command that writes a plain folder ``out``, and the input files of its shards."""

    def __init__(self, run: Run, inputs: list[Path], out: Path) -> None:
        self.run, self.inputs, self.out = run, inputs, out

    @property
    def written(self) -> set[str]:
        return {path.name for path in self.out.glob("*.parquet")}


@pytest.fixture
def repack(tmp_path: Path) -> Case:
    inputs = [tmp_path / "in" / f"{name}.parquet" for name in "ab"]
    for path in inputs:
        shard(path, vectors(4), pa.array(range(4)))

    def run(**more: Any) -> dict[str, Any]:
        job = RepackJob(
            features=[str(tmp_path / "in")], output=str(tmp_path / "out"), where=ALONE,
            overwrite=True, **more,
        )  # fmt: skip
        return api.repack(job)

    return Case(run, inputs, tmp_path / "out")


@pytest.fixture
def infer(home: Any) -> Case:
    home.encode()
    inputs = [home.root / "codes" / item.path for item in snapshot.read(home("codes")).shards]

    def run(**more: Any) -> dict[str, Any]:
        job = InferSemanticsJob(
            model=home("old"), codes=home("codes"), classes=home("classes.parquet"),
            output=home("out"), where=ALONE, **more,
        )  # fmt: skip
        return api.infer_semantics(job)

    return Case(run, inputs, home.root / "out")


@pytest.mark.parametrize("name", ["repack", "infer"])
def test_the_old_output_of_a_quarantined_shard_is_removed(
    name: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    case: Case = request.getfixturevalue(name)
    case.run()
    before = case.written
    bad = case.inputs[1]
    bad.write_bytes(b"x" * bad.stat().st_size)
    with pytest.raises(JobError):
        case.run()
    assert case.written == before, "a run that fails removes nothing"
    result = case.run(on_bad_shard="quarantine")
    assert [str(bad) in reason for reason in result["quarantined"]] == [True]
    (removed,) = before - case.written
    assert stem_of(str(bad)) in removed or bad.name.startswith(removed.partition(".")[0])
    assert f"{case.out / removed}: removed" in caplog.text


def test_groups_name_the_shards_that_they_lack(infer: Case) -> None:
    infer.inputs[0].write_bytes(b"x")
    result = infer.run(by="label", on_bad_shard="quarantine")
    assert [str(infer.inputs[0]) in reason for reason in result["quarantined"]] == [True]
