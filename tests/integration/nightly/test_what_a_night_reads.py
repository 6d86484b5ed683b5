"""What a night reads grows with what changed; what it says is what looking at everything says."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq import api
from raypq.config import ClusterabilityJob, EncodeJob, FewShotJob, ReindexJob
from raypq.data import predictions
from raypq.data.classes import ClassTable
from raypq.data.duplicate_ids import IdFile, find_duplicate_ids
from raypq.data.storage import Storage, use_storage
from raypq.data.store import snapshot
from raypq.errors import InputError, JobError
from raypq.metrics.accuracy import ClassCounts
from raypq.stages.stores import garbage, versions

SHARDS = 20


class Watched(Storage):
    """Notes the stored files that are opened: each is asked for its size first."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self._lock = threading.Lock()

    def file_size(self, uri: str) -> int:
        with self._lock:
            self.opened.append(uri)
        return super().file_size(uri)

    def of(self, store: str) -> int:
        """Shard files of a store that were opened, each counted once."""
        return len({uri for uri in self.opened if uri.startswith(f"{store}/data/")})


class Nights:
    """A store of many small shards with one prediction store."""

    def __init__(self, home: Any) -> None:
        self.home = home
        self.features = Path(home("many"))
        self.features.mkdir()
        self.template = pq.read_table(home.shard(0))
        self.next = 0
        for _ in range(SHARDS):
            self.add()

    def shard(self, number: int) -> Path:
        return self.features / f"part-{number:05d}.parquet"

    def add(self, ids: list[str] | None = None, labels: list[str] | None = None) -> int:
        """A new shard of ten images."""
        number, self.next = self.next, self.next + 1
        self.write(number, ids=ids, labels=labels)
        return number

    def write(
        self, number: int, *, ids: list[str] | None = None, labels: list[str] | None = None
    ) -> None:
        rng = np.random.default_rng([number, self.next])
        table = self.template.take(rng.integers(0, len(self.template), 10))
        names = ids or [f"{number}-{row}" for row in range(10)]
        table = table.set_column(0, "id", pa.array(names))
        if labels:
            table = table.set_column(1, "label", pa.array(labels))
        pq.write_table(table, self.shard(number))

    def job(self, **more: Any) -> ReindexJob:
        values = {
            "model": self.home("old"),
            "features": [str(self.features)],
            "codes": self.home("codes"),
            "classify": {"classes": self.home("classes.parquet"), "output": self.home("p")},
            "where": self.home.where,
        }
        return ReindexJob.parse(values | more)

    def run(self, **more: Any) -> dict[str, Any]:
        return api.reindex(self.job(**more))

    def recount(self, classes: str | None = None) -> dict[str, Any]:
        """What the latest predictions add up to, from their files."""
        store = self.home("p")
        table = ClassTable.open(classes or self.home("classes.parquet"))
        total = ClassCounts.empty(len(table))
        for receipt in snapshot.read(store).shards:
            for batch in predictions.read(f"{store}/{receipt.path}", table):
                total.add(batch)
        return total.summary(table)

    def same_ids(self) -> dict[str, Any] | None:
        """What looking through all ids of the latest codes finds."""
        store = self.home("codes")
        files = [
            IdFile(uri=f"{store}/{item.path}", name=item.source.uri, rows=item.rows)
            for item in snapshot.read(store).shards
        ]
        found = find_duplicate_ids(files)
        return {"rows": found.rows, "examples": str(found)} if found else None

    @property
    def result(self) -> dict[str, Any]:
        """What the latest predictions say that they add up to."""
        return dict(snapshot.read(self.home("p")).summary["result"])


@pytest.fixture
def nights(home: Any) -> Nights:
    return Nights(home)


def opened(nights: Nights, action: Callable[[], Any]) -> tuple[int, int]:
    """Code files and prediction files that an action opens."""
    watched = Watched()
    with use_storage(watched):
        action()
    return watched.of(nights.home("codes")), watched.of(nights.home("p"))


def test_a_night_opens_what_changed(nights: Nights) -> None:
    nights.run()
    nights.add()
    codes, answers = opened(nights, nights.run)
    assert (codes, answers) == (1, 0), "the codes of the new shard, and nothing else"
    nights.add()
    nights.write(3)
    nights.shard(5).unlink()
    codes, answers = opened(nights, nights.run)
    assert answers == 2, "the predictions of the changed and of the removed shard are taken off"
    assert codes == 2
    assert nights.result == nights.recount()
    assert opened(nights, nights.run) == (0, 0)
    nights.add()
    assert opened(nights, lambda: nights.run(dry_run=True)) == (0, 0)
    assert opened(nights, lambda: versions.listing(nights.home("codes"))) == (0, 0)


def test_verbs_by_hand_open_what_changed(nights: Nights) -> None:
    where = {"where": nights.home.where}
    encode = {"model": nights.home("old"), "features": [str(nights.features)]}

    def both() -> None:
        api.encode(EncodeJob(**encode, output=nights.home("codes"), **where))
        nights.home.classify(output="p")

    both()
    nights.add()
    assert opened(nights, both) == (1, 0)
    assert nights.result == nights.recount()
    assert opened(nights, both) == (0, 0)


def test_a_roll_out_opens_what_it_moves(nights: Nights) -> None:
    nights.run()
    codes, answers = opened(nights, lambda: nights.run(model=nights.home("new"), rollout=0.2))
    assert (codes, answers) == (4, 4)
    assert nights.result == nights.recount()
    codes, answers = opened(nights, lambda: nights.run(model=nights.home("new")))
    assert codes == 16
    assert answers <= 4, "counting those that stay is less work than taking off those that go"
    assert nights.result == nights.recount()


def test_duplicate_ids_are_told_by_every_night_that_makes_a_version(nights: Nights) -> None:
    first = nights.run()
    assert "duplicate_ids" not in first
    nights.add(ids=["7-3", "x"] * 5)
    told = nights.run()["duplicate_ids"]
    assert told == nights.same_ids()
    assert told["rows"] == 9
    nights.add()
    watched = Watched()
    with use_storage(watched):
        assert nights.run()["duplicate_ids"] == told
    assert watched.of(nights.home("codes")) == 1, "ids that are there twice are not read again"
    for choice, more in (("ignore", None), ("report", told)):
        nights.add()
        assert nights.run(duplicate_ids=choice).get("duplicate_ids") == more
    nights.add()
    with pytest.raises(InputError, match="every id once"):
        nights.run(duplicate_ids="refuse")


def test_on_an_object_store(nights: Nights, bucket: str) -> None:
    places = {
        "codes": f"{bucket}/codes",
        "classify": {"classes": nights.home("classes.parquet"), "output": f"{bucket}/p"},
    }
    nights.run(**places)
    number = nights.add(ids=["7-3", "x"] * 5, labels=["odd"] * 10)
    watched = Watched()
    with use_storage(watched):
        told = nights.run(**places)
    assert (watched.of(f"{bucket}/codes"), watched.of(f"{bucket}/p")) == (2, 0)
    assert told["duplicate_ids"]["rows"] == 9
    assert told["predictions"][0]["unknown_labels"]["rows"] == 10
    nights.shard(number).unlink()
    with use_storage(watched):
        told = nights.run(**places)
    assert watched.of(f"{bucket}/p") == 1
    assert "duplicate_ids" not in told
    for store in ("codes", "p"):
        versions.verify(f"{bucket}/{store}", sha256=True)
    assert not garbage.collect(f"{bucket}/codes", keep=1).files, "all of it is young"


def test_labels_that_the_class_table_lacks_are_counted_from_night_to_night(
    nights: Nights, caplog: pytest.LogCaptureFixture
) -> None:
    nights.run()
    assert "unknown_labels" not in nights.result
    odd = nights.add(labels=["retired", "gone"] * 5)
    with caplog.at_level("WARNING", "raypq"):
        told = nights.run()
    assert told["predictions"][0]["unknown_labels"]["rows"] == 10
    warned = [line for line in caplog.messages if "class_ids" in line]
    assert len(warned) == 1
    assert "10 row(s) with a label" in warned[0]
    assert "'gone' (5), 'retired' (5)" in warned[0]
    nights.add()
    assert opened(nights, nights.run) == (1, 0)
    assert nights.result["unknown_labels"] == {"rows": 10, "names": {"gone": 5, "retired": 5}}
    assert nights.result == nights.recount()
    nights.shard(odd).unlink()
    nights.run()
    assert "unknown_labels" not in nights.result


@pytest.mark.parametrize("damage", ["gone", "flipped", "old store", "another file gone"])
def test_without_its_sidecar_a_version_is_counted_again(nights: Nights, damage: str) -> None:
    nights.run()
    store = nights.home("p")
    latest = snapshot.read(store)
    (sidecar,) = latest.sidecars(store)["counts"]
    path = Path(store, sidecar.path)
    if damage == "gone":
        path.unlink()
    elif damage == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    elif damage == "another file gone":  # whose counts are to be taken off
        Path(store, latest.shards[5].path).unlink()
        nights.write(5)
    else:
        place = Path(store, "snapshots", f"{latest.version:020d}.json")
        plain = latest.model_dump(mode="json")
        del plain["summary"]["sidecars"]
        place.write_text(snapshot.Snapshot(**plain).model_dump_json())
    nights.add()
    _, answers = opened(nights, nights.run)
    assert answers == SHARDS if damage != "another file gone" else answers >= SHARDS - 1
    assert nights.result == nights.recount()
    nights.add()
    assert opened(nights, nights.run) == (1, 0), "and the next night has it again"


def test_a_store_that_was_copied_elsewhere(nights: Nights) -> None:
    nights.run()
    for name in ("codes", "p"):
        shutil.copytree(nights.home(name), nights.home(f"copies/{name}"))
        shutil.rmtree(nights.home(name))
    copies = {
        "codes": nights.home("copies/codes"),
        "classify": {"classes": nights.home("classes.parquet"), "output": nights.home("copies/p")},
    }
    nights.add(ids=["7-3"] * 10)
    watched = Watched()
    with use_storage(watched):
        told = nights.run(**copies)
    assert watched.of(copies["codes"]) == 2, "of the new shard, and of the one with an equal id"
    assert watched.of(nights.home("copies/p")) == 0
    assert told["duplicate_ids"]["rows"] == 10


def test_another_writer_in_between(nights: Nights) -> None:
    """Versions by hand that begin from the same one, and versions of a raypq without sidecars."""
    nights.run()
    kept = snapshot.read(nights.home("codes"))
    nights.add(ids=["7-3", "x"] * 5)
    nights.run()
    for store in ("codes", "p"):
        old = snapshot.read(nights.home(store), 1)
        summary = {key: value for key, value in old.summary.items() if key != "sidecars"}
        snapshot.commit(
            nights.home(store), kind=old.kind, run_id="old", receipts=old.shards, summary=summary,
            expected=[receipt.shard for receipt in old.shards],
        )  # fmt: skip
    assert nights.run()["duplicate_ids"] == nights.same_ids()
    assert nights.result == nights.recount()
    # The same index as before, though two versions have gone on from it since.
    snapshot.commit(
        nights.home("codes"), kind="codes", run_id="late", receipts=kept.shards,
        summary=kept.summary, expected=[receipt.shard for receipt in kept.shards],
    )  # fmt: skip
    nights.add(ids=["8-3"] * 10)
    assert nights.run()["duplicate_ids"] == nights.same_ids()
    assert nights.result == nights.recount()


def test_gc_leaves_what_the_next_night_needs(nights: Nights) -> None:
    nights.run()
    for number in range(4):
        nights.add()
        nights.write(number)
        nights.run()
    stores = [nights.home("codes"), nights.home("p")]
    for store in stores:
        for folder in ("data", "sidecars"):
            for path in Path(store, folder).iterdir():
                os.utime(path, (1, 1))
        found = garbage.collect(store, keep=1, remove=True)
        assert any(path.startswith("sidecars/") for path in found.files)
        versions.verify(store, sha256=True)
    nights.add()
    assert opened(nights, nights.run) == (1, 0)
    assert nights.result == nights.recount()


def test_shards_that_cannot_be_classified_count_nothing(nights: Nights) -> None:
    nights.run()
    nights.add()
    encode = EncodeJob(
        model=nights.home("old"), features=[str(nights.features)], output=nights.home("codes"),
        where=nights.home.where,
    )  # fmt: skip
    new = {item.path for item in api.encode(encode).shards}
    new -= {item.path for item in snapshot.read(nights.home("codes"), 1).shards}
    path = Path(nights.home("codes"), new.pop())
    content = path.read_bytes()
    path.write_bytes(content[:50] + bytes(100) + content[150:])
    nights.run(on_bad_shard="quarantine")
    assert len(snapshot.read(nights.home("p")).quarantined) == 1
    assert nights.result == nights.recount()
    path.write_bytes(content)
    nights.add()
    nights.run(on_bad_shard="fail")
    assert len(snapshot.read(nights.home("p")).shards) == SHARDS + 2
    assert nights.result == nights.recount()


@pytest.mark.parametrize("store", ["codes", "p"])
def test_a_sidecar_that_cannot_be_written_is_named(nights: Nights, store: str) -> None:
    nights.run()

    class Full(Storage):
        @contextmanager
        def atomic_write(self, uri: str) -> Iterator[IO[bytes]]:
            if f"/{store}/sidecars/" in uri:
                raise OSError(errno.ENOSPC, "No space left on device")
            with super().atomic_write(uri) as file:
                yield file

    nights.add()
    with use_storage(Full()), pytest.raises(OSError, match=rf"{store}/sidecars/.*No space left"):
        nights.run()
    nights.run()
    assert nights.result == nights.recount()
    versions.verify(nights.home(store), sha256=True)


@pytest.mark.parametrize("store", ["codes", "p"])
def test_a_storage_that_answers_errors_is_not_one_without_the_file(
    nights: Nights, store: str
) -> None:
    nights.run()

    class Broken(Storage):
        def file_size(self, uri: str) -> int:
            self.refuse(uri)
            return super().file_size(uri)

        def read_bytes(self, uri: str) -> bytes:
            self.refuse(uri)
            return super().read_bytes(uri)

        @staticmethod
        def refuse(uri: str) -> None:
            if f"/{store}/sidecars/" in uri:
                raise PermissionError(errno.EACCES, "Permission denied", uri)

    nights.add()
    with use_storage(Broken()), pytest.raises(PermissionError):
        nights.run()
    assert opened(nights, nights.run)[1] == 0


@pytest.mark.parametrize("of", ["codes", "features"])
def test_unknown_labels_may_be_refused(nights: Nights, of: str) -> None:
    number = nights.add(labels=["x" * 500] * 10)
    classes = nights.home("classes.parquet")
    source = {"codes": None, "features": [str(nights.features)], "model": nights.home("old")}
    if of == "codes":
        nights.run(classify=[])
        source = {}
    refusing = {"unknown_labels": "refuse", **source}
    with pytest.raises(JobError, match=r"(?s)1 shard.*class_ids of .*unknown_labels: report"):
        nights.home.classify(output="p", **refusing)
    found = nights.home.classify(output="p", on_bad_shard="quarantine", **refusing)
    assert [Path(item.uri).name.split(".")[0] for item in found.quarantined] or of == "codes"
    assert len(found.shards) == SHARDS
    found = nights.home.classify(output="p", **source)
    assert found.rows == (SHARDS + 1) * 10
    assert found.summary["result"]["unknown_labels"]["rows"] == 10
    assert found.summary["result"] == nights.recount(classes)
    # What is there already is refused as well, and nothing is classified again for it.
    watched = Watched()
    with (
        use_storage(watched),
        pytest.raises(InputError, match=r"10 row\(s\) with a label.*add the classes"),
    ):
        nights.home.classify(output="p", **refusing)
    assert watched.of(nights.home("p")) == 0
    nights.shard(number).unlink()
    if of == "codes":
        nights.run(classify=[])
    assert nights.home.classify(output="p", **refusing).rows == SHARDS * 10


@pytest.mark.parametrize("verb", ["fewshot", "clusterability"])
def test_figures_of_a_space_say_which_rows_they_leave_out(
    nights: Nights, verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    nights.add(labels=["retired"] * 10)
    job = {
        "features": [str(nights.features)],
        "classes": nights.home("classes.parquet"),
        "space": "raw",
        "split": "all",
    }
    with caplog.at_level("WARNING", "raypq"):
        if verb == "fewshot":
            api.fewshot(FewShotJob(**job, shots=(1,), episodes=2))
        else:
            api.clusterability(ClusterabilityJob(**job, restarts=1))
    (line,) = [line for line in caplog.messages if "class_ids" in line]
    assert "10 row(s) with a label" in line
    assert "'retired' (10); they are left out" in line


@pytest.mark.parametrize("seed", range(2))
def test_any_history_says_what_looking_at_everything_says(
    nights: Nights, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    model, there = "old", set(range(SHARDS))
    other = pq.read_table(nights.home("classes.parquet"))
    pq.write_table(other.slice(1), nights.home("fewer.parquet"))
    classes = nights.home("classes.parquet")
    nights.run()
    for _ in range(10):
        move = rng.choice(["add", "add", "change", "remove", "roll", "classes", "restore", "crash"])
        more: dict[str, Any] = {}
        if move == "add":
            ids = [f"{rng.randrange(60)}-{rng.randrange(10)}" for _ in range(10)]
            odd = ["odd"] * 10
            there.add(nights.add(ids=rng.choice([None, ids]), labels=rng.choice([None, odd])))
        elif move == "change":
            nights.write(rng.choice(sorted(there)))
        elif move == "remove":
            there.remove(gone := rng.choice(sorted(there)))
            nights.shard(gone).unlink()
        elif move == "roll":
            model = "new" if model == "old" else "old"
            more = {"rollout": rng.choice([0.2, 1.0])}
        elif move == "classes":
            classes = nights.home(rng.choice(["classes.parquet", "fewer.parquet"]))
        elif move == "restore":
            versions.restore(nights.home("p"), rng.choice(snapshot.versions(nights.home("p"))))
            versions.restore(
                nights.home("codes"), rng.choice(snapshot.versions(nights.home("codes")))
            )
        elif move == "crash":
            there.update(nights.add() for _ in range(3))
            bad = nights.add()
            nights.shard(bad).write_bytes(b"not a Parquet file")
            with pytest.raises(JobError):
                nights.run(model=nights.home(model))
            nights.shard(bad).unlink()
        more["classify"] = {"classes": classes, "output": nights.home("p")}
        if rng.random() < 0.2:
            nights.run(model=nights.home(model), duplicate_ids="ignore", **more)
        elif nights.run(model=nights.home(model), **more)["codes"]["new"]:
            told = snapshot.read(nights.home("codes")).summary.get("duplicate_ids")
            assert told == nights.same_ids(), move
        assert nights.result == nights.recount(classes), move
