"""A day after another into one store: what stays, what goes, and that nothing goes in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from raypq import api
from raypq.cli import main
from raypq.config import ClassifyJob, EncodeJob, ReindexJob, SearchJob
from raypq.data.storage import Storage, use_storage
from raypq.data.store import snapshot
from raypq.data.store.shard_writer import Receipt
from raypq.errors import ConflictError, InputError, JobError
from raypq.stages.stores import versions


class Days:
    """``features/day=K/part-0.parquet`` and ``part-1.parquet``, and a code store."""

    def __init__(self, home: Any) -> None:
        self.home, self.codes = home, home("codes")
        self.template = pq.read_table(home.shard(0))
        for day in (1, 2, 3):
            for part in (0, 1):
                self.write(day, part)

    def place(self, day: int, part: int = 0) -> Path:
        return Path(self.home(f"features/day={day}/part-{part}.parquet"))

    def write(self, day: int, part: int = 0, *, ids: list[Any] | None = None) -> None:
        rng = np.random.default_rng([day, part, len(ids or ())])
        table = self.template.take(rng.integers(0, len(self.template), 8))
        table = table.set_column(0, "id", pa.array(ids or [f"{day}-{part}-{n}" for n in range(8)]))
        self.place(day, part).parent.mkdir(exist_ok=True)
        pq.write_table(table, self.place(day, part))

    def encode(self, *days: int, model: str = "old", **more: Any) -> snapshot.Snapshot:
        features = [str(self.place(day).parent) for day in days]
        job = {"model": self.home(model), "features": features, "output": self.codes}
        return api.encode(EncodeJob(**job, where=self.home.where, **more))

    def append(self, *days: int, **more: Any) -> snapshot.Snapshot:
        return self.encode(*days, append=True, **more)


@pytest.fixture
def days(home: Any) -> Days:
    return Days(home)


def held(version: snapshot.Snapshot) -> dict[str, Receipt]:
    """Receipts by day and part."""
    return {"/".join(Path(item.source.uri).parts[-2:]): item for item in version.shards}


def names(*days: int) -> set[str]:
    return {f"day={day}/part-{part}.parquet" for day in days for part in (0, 1)}


def test_a_version_of_day_two_alone_says_so(days: Days, caplog: pytest.LogCaptureFixture) -> None:
    days.encode(1)
    with caplog.at_level("WARNING", "raypq"):
        found = days.encode(2)
    assert held(found).keys() == names(2)
    (line,) = caplog.messages
    assert "2 of the 2 shards of version 1 are not among these features" in line
    assert str(days.place(1, 0)) in line
    assert "--append" in line
    assert f"raypq snapshots restore {days.codes} 1" in line
    assert found.summary["dropped"]["shards"] == 2
    assert found.summary["dropped"]["of_version"] == 1
    caplog.clear()
    assert "dropped" not in days.encode(2, 3).summary, "more is no loss"
    assert "dropped" not in days.append(1).summary
    assert not caplog.messages


def test_the_other_shards_stay_as_they_are(days: Days) -> None:
    first = held(days.encode(1))
    found = held(days.append(2))
    assert found.keys() == names(1, 2)
    assert {name: found[name] for name in first} == first, "by reference, receipts and all"
    fresh = EncodeJob(
        model=days.home("old"),
        features=[str(days.place(day).parent) for day in (1, 2)],
        output=days.home("fresh"),
        where=days.home.where,
    )
    assert [a.sha256 for a in api.encode(fresh).shards] == [
        a.sha256 for a in snapshot.read(days.codes).shards
    ], "it is what encoding both at once gives"


def test_appended_twice_there_is_nothing_to_do(days: Days) -> None:
    days.encode(1)
    second = days.append(2)
    assert days.append(2) == second
    assert days.append(1) == second
    assert days.encode(1, 2) == second
    assert days.append(1, 2) == second
    assert snapshot.versions(days.codes) == [1, 2]


def test_into_an_empty_store(days: Days) -> None:
    assert held(days.append(1)).keys() == names(1)


def test_a_file_that_changed_takes_the_place_of_its_codes(days: Days) -> None:
    days.encode(1)
    before = held(days.append(2))
    days.write(2, 1, ids=[f"new-{n}" for n in range(8)])
    after = held(days.append(2))
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name].path != before[name].path}
    assert changed == {"day=2/part-1.parquet"}


def test_shards_of_another_model_stay_under_it(days: Days) -> None:
    first = held(days.encode(1))
    found = held(days.append(2, model="new"))
    assert {name: found[name] for name in first} == first
    assert len({item.model for item in found.values()}) == 2
    assert days.append(2, model="new").version == 2
    again = held(days.append(1, model="new"))
    assert len({item.model for item in again.values()}) == 1, "what is asked for is encoded"
    assert len({item.work for item in days.append(3, model="new", precision="bf16").shards}) == 2


def test_what_was_left_out_stays_left_out(days: Days) -> None:
    days.place(1, 1).write_bytes(b"not a Parquet file")
    first = days.encode(1, on_bad_shard="quarantine")
    found = days.append(2)
    assert [item.uri for item in found.quarantined] == [str(days.place(1, 1))]
    assert found.quarantined == first.quarantined
    assert found.rows == 24
    assert days.append(2) == found
    days.write(1, 1)
    mended = days.append(1)
    assert not mended.quarantined
    assert held(mended).keys() == names(1, 2)


def test_a_bad_shard_among_the_new_ones(days: Days) -> None:
    days.encode(1)
    days.place(2, 0).write_bytes(b"not a Parquet file")
    with pytest.raises(JobError):
        days.append(2)
    assert snapshot.versions(days.codes) == [1]
    found = days.append(2, on_bad_shard="quarantine")
    assert held(found).keys() == names(1) | {"day=2/part-1.parquet"}
    assert [item.uri for item in found.quarantined] == [str(days.place(2, 0))]


def test_ids_that_are_in_the_store_already_are_told_or_refused(days: Days) -> None:
    days.encode(1)
    days.write(2, 0, ids=["1-0-3", *(f"x{n}" for n in range(7))])
    with pytest.raises(InputError, match=r"every id once.*'1-0-3'"):
        days.append(2, duplicate_ids="refuse")
    assert days.append(2).summary["duplicate_ids"]["rows"] == 1
    assert days.append(3).summary["duplicate_ids"]["rows"] == 1


def test_ids_of_another_type_are_refused(days: Days) -> None:
    days.encode(1)
    days.write(2, 0, ids=list(range(8)))
    with pytest.raises((InputError, JobError), match="one type"):
        days.append(2)


def test_a_file_that_is_to_be_kept_and_gone_is_named(days: Days) -> None:
    gone = held(days.encode(1))["day=1/part-0.parquet"]
    Path(days.codes, gone.path).unlink()
    with pytest.raises(InputError, match=rf"{gone.path}.*day=1/part-0.parquet again"):
        days.append(2)
    assert held(days.append(1, 2)).keys() == names(1, 2)


def test_the_features_of_old_shards_need_not_be_there(days: Days) -> None:
    days.encode(1)
    for part in (0, 1):
        days.place(1, part).unlink()
    assert held(days.append(2)).keys() == names(1, 2)


class Meanwhile(Storage):
    """Does something else once, while the first code file is written."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action: Callable[[], object] | None = action

    @contextmanager
    def atomic_write(self, uri: str) -> Iterator[IO[bytes]]:
        if "/data/" in uri and self.action is not None:
            action, self.action = self.action, None
            with use_storage(Storage()):
                action()
        with super().atomic_write(uri) as file:
            yield file


def test_two_that_append_at_once_lose_nothing(days: Days) -> None:
    """The one that comes second is told, and its rerun takes over what it finished."""
    days.encode(1)
    with (
        use_storage(Meanwhile(lambda: days.append(3))),
        pytest.raises(ConflictError, match="run it again"),
    ):
        days.append(2)
    assert held(snapshot.read(days.codes)).keys() == names(1, 3)
    found = days.append(2)
    assert held(found).keys() == names(1, 2, 3)
    assert found.summary["worked"]["shards"] == 0, "both shards were finished"


@pytest.mark.parametrize("how", ["python", "yaml", "command line"])
def test_it_is_asked_for_everywhere(days: Days, how: str, tmp_path: Path) -> None:
    days.encode(1)
    values = {
        "model": days.home("old"),
        "features": [str(days.place(2).parent)],
        "output": days.codes,
        "append": True,
        "where": {"cluster": "none", "workers": 1},
    }
    if how == "python":
        api.encode(EncodeJob(**values))
    elif how == "yaml":
        (tmp_path / "encode.yaml").write_text(yaml.safe_dump(values))
        api.run_job(EncodeJob, api.encode, ["--config", str(tmp_path / "encode.yaml")])
    else:
        line = [
            "encode", "--model", values["model"], "--features", values["features"][0],
            "--output", days.codes, "--append", "--cluster", "none", "--workers", "1",
        ]  # fmt: skip
        result = CliRunner().invoke(main, line)
        assert result.exit_code == 0, result.output
    assert held(snapshot.read(days.codes)).keys() == names(1, 2)


def test_the_command_line_tells_what_a_version_lacks(days: Days) -> None:
    days.encode(1)
    line = [
        "encode", "--model", days.home("old"), "--features", str(days.place(2).parent),
        "--output", days.codes, "--cluster", "none", "--workers", "1",
    ]  # fmt: skip
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 0, result.output
    assert '"dropped": {' in result.output
    versions.restore(days.codes, 1)
    assert held(snapshot.read(days.codes)).keys() == names(1)


def test_a_night_goes_on_from_what_was_appended(days: Days) -> None:
    days.encode(1)
    days.append(2)
    job = ReindexJob.parse(
        {
            "model": days.home("old"),
            "features": [days.home("features/day=1"), days.home("features/day=2")],
            "codes": days.codes,
            "where": days.home.where,
        }
    )
    assert api.reindex(job)["nothing_to_do"]


def test_features_that_are_classified_day_by_day(
    days: Days, caplog: pytest.LogCaptureFixture
) -> None:
    def classify(day: int, **more: Any) -> None:
        job = {
            "model": days.home("old"),
            "features": [str(days.place(day).parent)],
            "classes": days.home("classes.parquet"),
            "output": days.home("p"),
            "where": days.home.where,
        }
        api.classify(ClassifyJob(**job | more))

    classify(1)
    with caplog.at_level("WARNING", "raypq"):
        classify(2)
    assert "2 shards of version 1 are not among these features" in caplog.text
    caplog.clear()
    days.encode(1, 2)
    classify(1, codes=days.codes, features=None, output=days.home("q"), model=None)
    days.encode(2)
    caplog.clear()
    classify(2, codes=days.codes, features=None, output=days.home("q"), model=None)
    assert not caplog.messages, "predictions of codes follow the codes"


def test_results_of_other_queries_are_told_of(days: Days, caplog: pytest.LogCaptureFixture) -> None:
    days.encode(1)
    find: Callable[[int], snapshot.Snapshot] = lambda day: api.search(  # noqa: E731
        SearchJob(
            codes=days.codes,
            queries=[str(days.place(day, 0))],
            top_k=2,
            output=days.home("found"),
            where=days.home.where,
        )
    )
    find(2)
    with caplog.at_level("INFO", "raypq"):
        find(3)
    assert "version 1 has those of 1 other file(s)" in caplog.text
