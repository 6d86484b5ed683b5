"""A night does what changed and nothing else, and is refused where it could do harm."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

import raypq
from raypq import api
from raypq.cli import main
from raypq.config import ReindexJob
from raypq.data import arrays, features, synthetic
from raypq.data.storage import stem_of
from raypq.data.store import snapshot
from raypq.data.store.lease import Lease
from raypq.errors import (
    ConfigError,
    ConflictError,
    DriftError,
    InputError,
    JobError,
    MissingSourceError,
)
from raypq.methods import registry

Reindex = Callable[..., dict[str, Any]]


def job(home: Any, **more: Any) -> ReindexJob:
    values = {
        "model": home("old"),
        "features": [home("features")],
        "codes": home("codes"),
        "classify": {"classes": home("classes.parquet"), "output": home("predictions")},
        "where": home.where,
        "lease_seconds": 2,
    }
    return ReindexJob.parse(values | more)


@pytest.fixture
def night(home: Any) -> Reindex:
    return lambda **more: api.reindex(job(home, **more))


def latest(home: Any, store: str = "codes") -> snapshot.Snapshot:
    return snapshot.read(home(store))


def moved(before: snapshot.Snapshot, after: snapshot.Snapshot) -> set[str]:
    """Stems of shards whose file is not the one that it was."""
    was = {receipt.shard: receipt.path for receipt in before.shards}
    return {item.shard for item in after.shards if was.get(item.shard) != item.path}


def test_the_first_night_does_everything(home: Any, night: Reindex) -> None:
    told = night()
    assert (told["codes"]["images"], told["codes"]["version"]) == (600, 1)
    assert told["predictions"][0]["images"] == 600
    assert told["shards"]["new"] == home.shards
    assert latest(home).summary["worked"]["images"] == 600


def test_a_night_with_nothing_new_makes_no_version(
    home: Any, night: Reindex, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    night()
    before = latest(home), latest(home, "predictions")
    monkeypatch.setattr(api, "open_executor", None)  # no worker is asked for
    with caplog.at_level("INFO", logger="raypq"):
        told = night()
    assert told["nothing_to_do"]
    assert told["images"] == IMAGES | {"kept": 600}
    assert "nothing to do" in caplog.text
    assert (latest(home), latest(home, "predictions")) == before


IMAGES = dict.fromkeys(("new", "changed", "removed", "kept", "encoded_again", "left_out"), 0)


def test_new_changed_and_removed_shards(
    home: Any, night: Reindex, caplog: pytest.LogCaptureFixture
) -> None:
    night()
    before, told_before = latest(home), latest(home, "predictions")
    home.add(6)
    home.rewrite(1)
    home.shard(4).unlink()
    plan = night(dry_run=True)
    assert (plan["removed_images"], plan["kept_images"]) == (100, 400)
    with caplog.at_level("INFO", logger="raypq"):
        told = night()
    counts = {name: told["shards"][name] for name in ("new", "changed", "removed", "kept")}
    assert counts == {"new": 1, "changed": 1, "removed": 1, "kept": 4}
    assert told["images"] == IMAGES | {"new": 100, "changed": 100, "removed": 100, "kept": 400}
    assert "images: 100 new, 100 changed, 100 removed, 400 kept, 0 left out" in caplog.text
    assert latest(home).summary["night_images"] == told["images"]
    stems = {home.stem(number) for number in (1, 6)}
    assert moved(before, latest(home)) == stems
    assert moved(told_before, latest(home, "predictions")) == stems
    assert home.stem(4) not in {item.shard for item in latest(home, "predictions").shards}
    assert latest(home).version == 2
    # What came of it is what a run from nothing gives.
    home.encode(output="fresh")
    fresh = snapshot.read(home("fresh"))
    assert [item.sha256 for item in fresh.shards] == [item.sha256 for item in latest(home).shards]


def test_it_goes_on_from_what_was_encoded_by_hand(home: Any, night: Reindex) -> None:
    home.encode()
    told = night(classify=[])
    assert told["nothing_to_do"]
    assert snapshot.versions(home("codes")) == [1]
    night()
    assert home.encode() == latest(home)


def test_other_classes_never_touch_the_features(
    home: Any, night: Reindex, monkeypatch: pytest.MonkeyPatch
) -> None:
    night()
    before, codes = latest(home, "predictions"), latest(home)
    world = synthetic.SyntheticClasses.create(
        classes=20, dx=24, da=12, rng=np.random.default_rng(4)
    )
    synthetic.write_classes(Path(home("classes.parquet")), world)

    def unread(*_: Any, **__: Any) -> Any:
        raise AssertionError("features were read")

    monkeypatch.setattr(features, "open_shard", unread)
    told = night()
    assert (told["codes"]["new"], told["predictions"][0]["new"]) == (False, True)
    assert latest(home) == codes
    assert len(moved(before, latest(home, "predictions"))) == home.shards


def test_a_retired_candidate_stops_no_night(
    home: Any, night: Reindex, caplog: pytest.LogCaptureFixture
) -> None:
    """Its list outlives it; a list of classes that all exist is the work that it was."""
    table = pq.read_table(home("classes.parquet"))
    ids = table["class_id"].to_pylist()
    Path(home("cands.txt")).write_text("\n".join(ids[:4]) + "\n")
    section = {
        "classes": home("classes.parquet"),
        "candidates": home("cands.txt"),
        "output": home("predictions"),
    }
    assert "left_out_candidates" not in night(classify=section)["predictions"][0]
    pq.write_table(table.filter(pc.field("class_id") != ids[2]), home("classes.parquet"))
    said = f"line 3: class_id '{ids[2]}' is not in {home('classes.parquet')}"
    with pytest.raises(InputError, match=r"cands.txt, line 3.*unknown_labels: refuse"):
        night(classify=section | {"unknown_labels": "refuse"})
    with caplog.at_level("WARNING", logger="raypq"):
        told = night(classify=section)["predictions"][0]
    assert caplog.text.count(said) == 1
    noted = {"classes": 1, "names": [ids[2]]}
    assert told["new"]
    assert told["left_out_candidates"] == noted
    assert latest(home, "predictions").summary["left_out_candidates"] == noted
    caplog.clear()
    assert night(classify=section)["nothing_to_do"]
    assert said in caplog.text, "every night names it"
    Path(home("cands.txt")).write_text(f"{ids[2]}\n")
    with pytest.raises(InputError, match="at least one class_id of"):
        night(classify=section)


def test_what_a_night_replaces_is_named(
    home: Any, night: Reindex, caplog: pytest.LogCaptureFixture
) -> None:
    night()
    home.rewrite(1)
    home.shard(4).unlink()
    lost = next(item for item in latest(home).shards if item.shard == home.stem(2))
    Path(home("codes"), lost.path).unlink()
    with caplog.at_level("INFO", logger="raypq"):
        assert night()["shards"]["output_missing"] == 1
    for head, number in (("changed", 1), ("code file missing", 2), ("removed", 4)):
        assert f"{head}: {home.shard(number)}" in caplog.text


def test_shards_that_were_kept_are_not_counted_as_finished(home: Any, night: Reindex) -> None:
    night()
    home.shard(1).write_bytes(b"no Parquet")
    home.rewrite(2)
    counted = rf"1 shard\(s\) failed, 1 finished, {home.shards - 2} kept as they were"
    with pytest.raises(JobError, match=counted):
        night(on_bad_shard="fail")
    with pytest.raises(JobError, match=rf"failed, 0 finished, {home.shards - 1} kept"):
        night(on_bad_shard="fail")


def test_with_json_lines_every_line_of_stdout_is_an_object(home: Any, night: Reindex) -> None:
    night()
    for words in (
        ["snapshots", "list", home("codes")],
        ["snapshots", "show", home("codes")],
        ["snapshots", "verify", home("codes"), "--sha256"],
        ["evaluate", "classification", "--predictions", home("predictions"), "--classes",
         home("classes.parquet"), "--cluster", "none"],
    ):  # fmt: skip
        told = CliRunner().invoke(main, [*words, "--log-json"])
        assert told.exit_code == 0, told.output
        lines = told.stdout.splitlines()
        assert lines
        assert all(isinstance(json.loads(line), dict) for line in lines)
    for words in ([], ["--json", "-"]):
        told = CliRunner().invoke(main, ["evaluate", "classification", "--predictions",
            home("predictions"), "--classes", home("classes.parquet"), "--cluster", "none",
            "--log-json", *words])  # fmt: skip
        assert len(told.stdout.splitlines()) == 1


def test_a_folder_more_does_not_rename_the_rest(home: Any, night: Reindex) -> None:
    """Stems are paths below the deepest common folder, and that may move."""
    night()
    before = latest(home)
    (home.root / "more").mkdir()
    shutil.copy(home.shard(2), home.root / "more" / home.shard(2).name)
    told = night(features=[home("features"), home("more")])
    assert (told["shards"]["new"], told["shards"]["kept"]) == (1, home.shards)
    assert len(moved(before, latest(home))) == 1
    night()
    assert moved(before, latest(home)) == set(), "and back"


def test_by_listing_a_touched_shard_is_encoded_again(home: Any, night: Reindex) -> None:
    night()
    home.touch(3)
    assert night()["shards"]["changed"] == 1


def test_by_content_a_touched_shard_stays(home: Any, night: Reindex) -> None:
    night(compare="content")
    before = latest(home), latest(home, "predictions")
    home.touch(3)
    told = night(compare="content")
    assert (told["shards"]["mtime_changed"], told["shards"]["changed"]) == (1, 0)
    assert moved(before[0], latest(home)) == set()
    assert latest(home).summary["worked"]["images"] == 0
    assert latest(home, "predictions") == before[1]
    assert night(compare="content")["nothing_to_do"], "the new time was noted"


def test_by_content_the_same_size_is_not_the_same_shard(home: Any, night: Reindex) -> None:
    night(compare="content")
    before, size = latest(home), home.shard(3).stat().st_size
    table = pq.read_table(home.shard(3))
    ids = pc.replace_substring(table["id"], "features/", "FEATURES/")
    pq.write_table(
        table.set_column(0, "id", ids),
        home.shard(3),
        compression="none",
        use_dictionary=["label"],
        write_page_checksum=True,
    )
    assert home.shard(3).stat().st_size == size
    assert night(compare="content")["shards"]["mtime_changed"] == 1
    assert moved(before, latest(home)) == {home.stem(3)}


def test_a_lost_code_file_is_made_again(home: Any, night: Reindex) -> None:
    night()
    before = latest(home)
    Path(home("codes"), before.shards[2].path).unlink()
    assert night()["shards"]["output_missing"] == 1
    assert moved(before, latest(home)) == {home.stem(2)}


# ---- refusals ------------------------------------------------------------------------------


def empty(home: Any) -> None:
    for path in Path(home("features")).iterdir():
        path.unlink()


def test_an_empty_source_never_empties_the_store(home: Any, night: Reindex) -> None:
    night()
    before = latest(home)
    empty(home)
    with pytest.raises(InputError, match=r"version 1 of .*codes holds 6; max_removed: 1 lets"):
        night()
    assert latest(home) == before


@pytest.mark.parametrize("max_removed", [0, 0.5, 1])
@pytest.mark.parametrize("lost", ["folder", "one of two", "file", "glob", "base of a glob"])
def test_a_path_that_is_missing_is_refused_whatever_may_go(
    home: Any, night: Reindex, lost: str, max_removed: float
) -> None:
    """A typo, or a disk that is not mounted: it says nothing about the shards."""
    night()
    before = latest(home)
    shutil.copytree(home("features"), home("other"))
    sources = {
        "folder": [home("featurs")],
        "one of two": [home("other"), home("featurs")],
        "file": [home("features"), home("features/nosuch.parquet")],
        "glob": [home("features"), home("features/day=*")],
        "base of a glob": [home("featurs/*.parquet")],
    }
    with pytest.raises(MissingSourceError) as caught:
        night(features=sources[lost], max_removed=max_removed)
    assert caught.value.location == sources[lost][-1]
    assert "max_removed" not in str(caught.value)
    assert "version 1 of" in str(caught.value)
    assert "nothing was changed" in str(caught.value)
    with pytest.raises(MissingSourceError):
        night(features=sources[lost], max_removed=max_removed, dry_run=True)
    assert latest(home) == before


def test_an_empty_folder_does_not_hide_a_missing_one(home: Any, night: Reindex) -> None:
    night()
    empty(home)
    with pytest.raises(MissingSourceError, match="featurs"):
        night(features=[home("features"), home("featurs")], max_removed=1)


def test_a_source_that_lost_most_of_its_shards_is_refused(home: Any, night: Reindex) -> None:
    night()
    before = latest(home)
    for number in range(4):
        home.shard(number).unlink()
    with pytest.raises(InputError, match=r"at least 3 of the 6 shards.*found 4 of them gone"):
        night()
    assert latest(home) == before
    assert night(max_removed=0.7)["shards"]["removed"] == 4


def test_an_empty_source_on_purpose(home: Any, night: Reindex) -> None:
    night()
    empty(home)
    told = night(max_removed=1)
    assert (told["codes"]["images"], told["predictions"][0]["images"]) == (0, 0)
    assert night(max_removed=1)["nothing_to_do"]


def test_an_empty_source_on_the_first_night(home: Any, night: Reindex) -> None:
    empty(home)
    with pytest.raises(InputError, match=r"at least one \.parquet.* file"):
        night(max_removed=1)


def test_a_bad_class_table_stops_it_before_the_codes(home: Any, night: Reindex) -> None:
    Path(home("classes.parquet")).write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"classes\.parquet"):
        night()
    assert snapshot.versions(home("codes")) == []


def test_two_stores_in_one_place(home: Any, night: Reindex) -> None:
    section = {"classes": home("classes.parquet"), "output": home("codes")}
    with pytest.raises(ConfigError, match="a place of its own"):
        night(classify=section)


# ---- bad shards ----------------------------------------------------------------------------


def test_after_a_failed_night_only_the_bad_shard_is_done(home: Any, night: Reindex) -> None:
    good = home.shard(3).read_bytes()
    home.shard(3).write_bytes(good[:100])
    with pytest.raises(JobError, match="part-00003"):
        night()
    done = {path.name for path in Path(home("codes"), "data").iterdir()}
    home.shard(3).write_bytes(good)
    night()
    assert len({Path(item.path).name for item in latest(home).shards} & done) == home.shards - 1


def test_a_quarantined_shard_waits_until_it_changes(home: Any, night: Reindex) -> None:
    good = home.shard(3).read_bytes()
    home.shard(3).write_bytes(good[:100])
    told = night(on_bad_shard="quarantine")
    assert told["codes"]["quarantined"] == 1
    assert night(on_bad_shard="quarantine")["nothing_to_do"]
    home.add(6)
    assert night(on_bad_shard="quarantine")["codes"]["quarantined"] == 1, "carried over"
    home.shard(3).write_bytes(good)
    told = night(on_bad_shard="quarantine")
    assert (told["codes"]["quarantined"], told["codes"]["shards"]) == (0, 7)


# ---- leases and writers by hand --------------------------------------------------------------


def test_a_running_night_is_not_disturbed(home: Any, night: Reindex) -> None:
    other = Lease(store=home("codes"), seconds=2.0)
    other.take()
    stop = threading.Event()

    def live() -> None:
        while not stop.wait(0.2):
            other.beat()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(ConflictError, match=r"codes: process \d+ on .* is at work"):
            night()
    finally:
        stop.set()
        thread.join()
    assert snapshot.versions(home("codes")) == []
    night()  # the other one has crashed since: its time passes, then it is taken over
    assert snapshot.versions(home("codes")) == [1]


def test_a_night_that_was_replaced_commits_nothing(
    home: Any, night: Reindex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It slept through its lease; awake, it finds that another has it."""
    from raypq.stages.encoding.encode import EncodeWorker

    work = EncodeWorker.encode

    def sleepy(self: Any, task: Any) -> Any:
        folder = Path(home("codes"), "lease")
        (folder / "000000000009-00000000.json").write_text("{}")
        return work(self, task)

    monkeypatch.setattr(EncodeWorker, "encode", sleepy)
    with pytest.raises(ConflictError, match="took the lease over"):
        night()
    assert snapshot.versions(home("codes")) == []


def test_encoding_by_hand_in_the_middle_is_noticed(
    home: Any, night: Reindex, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raypq.stages.encoding.encode import EncodeWorker

    work = EncodeWorker.encode

    def meanwhile(self: Any, task: Any) -> Any:
        monkeypatch.setattr(EncodeWorker, "encode", work)
        home.encode("new")
        return work(self, task)

    monkeypatch.setattr(EncodeWorker, "encode", meanwhile)
    with pytest.raises(ConflictError, match=r"version 1 was committed by another.*run it again"):
        night()
    made = {path.name for path in Path(home("codes"), "data").iterdir()}
    night()
    assert latest(home).version == 2
    assert {Path(item.path).name for item in latest(home).shards} <= made, "finished shards kept"


# ---- roll-out ------------------------------------------------------------------------------


def test_a_new_model_rolls_out_by_nights(home: Any, night: Reindex) -> None:
    night()
    new = registry.load(home("new")).fingerprint
    under, seen = 0, []
    for _ in range(5):
        before, told_before = latest(home), latest(home, "predictions")
        told = night(model=home("new"), rollout=0.2)
        now = {item.shard for item in latest(home).shards if item.model == new}
        assert moved(before, latest(home)) <= now
        assert moved(told_before, latest(home, "predictions")) == moved(before, latest(home))
        assert all(item.model == {r.shard: r.model for r in latest(home).shards}[item.shard]
                   for item in latest(home, "predictions").shards)  # fmt: skip
        seen.append(len(now) - under)
        under = len(now)
        assert told["rollout"]["done"] == under
    assert seen == [2, 2, 2, 0, 0], "a fifth of six, rounded up"
    assert told["nothing_to_do"]


def test_new_shards_are_always_under_the_new_model(home: Any, night: Reindex) -> None:
    night()
    home.add(6)
    home.rewrite(0)
    told = night(model=home("new"), rollout=0.01)
    new = registry.load(home("new")).fingerprint
    under = {item.shard for item in latest(home).shards if item.model == new}
    assert {home.stem(0), home.stem(6)} < under
    assert told["shards"]["migrating"] == 1
    assert told["rollout"] == {"done": 3, "of": 7, "share": round(3 / 7, 4)}


def test_without_a_share_everything_moves_at_once(home: Any, night: Reindex) -> None:
    night()
    assert night(model=home("new"))["shards"]["migrating"] == home.shards


def test_a_roll_out_killed_on_the_way_chooses_the_same_again(home: Any, night: Reindex) -> None:
    night()
    plan = night(model=home("new"), rollout=0.3, dry_run=True)["migrating"]
    assert plan == night(model=home("new"), rollout=0.3, dry_run=True)["migrating"]
    before = latest(home)
    night(model=home("new"), rollout=0.3)
    names = {stem_of(name) for name in plan["names"]}
    assert moved(before, latest(home)) == names


def relabelled(home: Any) -> None:
    for number in range(home.shards):
        table = pq.read_table(home.shard(number))
        pq.write_table(table.append_column("label2", table["label"]), home.shard(number))


@pytest.mark.parametrize("change", ["model", "precision", "columns"])
def test_touched_shards_of_another_work_are_encoded_again(
    home: Any, night: Reindex, change: str
) -> None:
    relabelled(home)
    night(compare="content")
    before = latest(home)
    for number in range(home.shards):
        home.touch(number)
    value = {"model": home("new"), "precision": "bf16", "columns": {"label": "label2"}}[change]
    told = night(compare="content", **{change: value})
    assert moved(before, latest(home)) == {item.shard for item in before.shards}
    assert not {item.work for item in before.shards} & {item.work for item in latest(home).shards}
    assert told["shards"]["migrating"] == told["rollout"]["done"] == home.shards
    assert told["shards"]["mtime_changed"] == 0


def test_touched_shards_wait_in_a_rollout(home: Any, night: Reindex) -> None:
    """Those whose bytes are the same keep their codes; the result counts them as not yet done."""
    night(compare="content")
    before = latest(home)
    for number in range(home.shards):
        home.touch(number)
    new = registry.load(home("new")).fingerprint
    for expected in (2, 4, 6):
        told = night(compare="content", model=home("new"), rollout=0.2)
        under = [item.shard for item in latest(home).shards if item.model == new]
        assert len(under) == told["rollout"]["done"] == expected
        assert latest(home).summary["rollout"] == told["rollout"]
        assert moved(before, latest(home)) == {*under}, "the others have the file that they had"
    assert told["shards"]["migrating"] == 2
    assert told["shards"]["mtime_changed"] == 0, "their times were noted in the first night"


# ---- drift ---------------------------------------------------------------------------------


def shifted(home: Any, number: int) -> None:
    table = pq.read_table(home.shard(number))
    X = np.stack(table["feature"].to_numpy()) * 2
    column = arrays.fixed_list(X.astype(np.float32))
    pq.write_table(table.set_column(table.column_names.index("feature"), "feature", column),
                   home.shard(number))  # fmt: skip


def test_equal_shards_do_not_drift(home: Any, night: Reindex) -> None:
    assert night()["drift"] == {"judged": home.shards, "shards": []}


def test_a_shifted_shard_is_named(
    home: Any, night: Reindex, caplog: pytest.LogCaptureFixture
) -> None:
    night()
    shifted(home, 4)
    with caplog.at_level("WARNING", logger="raypq"):
        told = night()
    assert [item["shard"] for item in told["drift"]["shards"]] == [home.stem(4)]
    assert f"drift: {home.stem(4)}: feature norm" in caplog.text
    assert "1 of 1 shards encoded since the last version" in caplog.text
    assert "train again" in caplog.text
    assert latest(home).summary["drift"]["shards"][0]["shard"] == home.stem(4)
    home.add(6)
    assert night()["drift"]["shards"] == [], "told once, on the night that brought it"


def test_drift_can_fail_the_night_after_the_commit(home: Any, night: Reindex) -> None:
    shifted(home, 4)
    with pytest.raises(DriftError, match=r"1 shard\(s\) drifted \(everything is committed\)"):
        night(fail_on_drift=True)
    assert latest(home).rows == 600
    assert latest(home, "predictions").rows == 600
    assert night(fail_on_drift=True)["nothing_to_do"]


def test_limits_of_drift_are_settings(home: Any, night: Reindex) -> None:
    shifted(home, 4)
    assert night(drift={"norm": 5.0, "error": 9.0})["drift"]["shards"] == []


# ---- the plan, and the ways in ---------------------------------------------------------------


def test_the_plan_is_what_happens(home: Any, night: Reindex) -> None:
    first = night(dry_run=True)
    assert (first["new"]["shards"], first["images"]) == (6, 600)
    assert first["estimated_seconds"] is None, "there is no rate yet"
    assert not Path(home("codes")).exists()
    night()
    home.add(6)
    home.rewrite(1)
    home.shard(4).unlink()
    plan = night(dry_run=True)
    assert plan["new"]["names"] == [str(home.shard(6))]
    assert plan["changed"]["names"] == [str(home.shard(1))]
    assert plan["removed"]["names"] == [str(home.shard(4))]
    assert plan["kept"] == 4
    assert plan["images"] == pytest.approx(200, rel=0.3)
    assert plan["classify"][0]["images"] == plan["images"]
    assert plan["bytes"] == home.shard(6).stat().st_size + home.shard(1).stat().st_size
    assert plan["estimated_seconds"] > 0
    assert latest(home).version == 1, "nothing was done"
    assert night(dry_run=True) == plan
    night()
    idle = night(dry_run=True)
    assert (idle["images"], idle["estimated_seconds"]) == (0, 0.0)


def test_a_plan_with_other_classes_counts_all_images(home: Any, night: Reindex) -> None:
    night()
    section = {
        "classes": home("classes.parquet"), "output": home("predictions"), "candidates": "seen",
    }  # fmt: skip
    plan = night(dry_run=True, classify=[section])
    assert (plan["images"], plan["classify"][0]["images"]) == (0, 600)


def test_duplicate_ids_are_told_or_refused(home: Any, night: Reindex) -> None:
    night()
    shutil.copy(home.shard(0), home.shard(8))
    with pytest.raises(InputError, match="every id once"):
        night(duplicate_ids="refuse")
    assert latest(home).version == 1
    told = night()
    assert told["duplicate_ids"]["rows"] == 100
    assert "duplicate_ids" not in night()  # told once, by the night that brought them


def test_the_command_line(home: Any) -> None:
    config = home.root / "nightly.yaml"
    values = job(home).model_dump(mode="json")
    values["where"] = {"cluster": "local", "workers": 1}
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    options = ["reindex", "--config", str(config), "--cluster", "none", "--quiet"]
    plan = CliRunner().invoke(main, [*options, "--dry-run"])
    assert plan.exit_code == 0, plan.output
    assert json.loads(plan.stdout)["new"]["shards"] == 6
    done = CliRunner().invoke(main, options)
    assert json.loads(done.stdout)["codes"]["images"] == 600
    shifted(home, 2)
    rolled = CliRunner().invoke(main, [*options, "--rollout", "0.5", "--fail-on-drift"])
    assert rolled.exit_code == 1
    assert "drifted" in rolled.stderr
    assert CliRunner().invoke(main, ["reindex"]).exit_code == 2


def test_a_bad_key_is_named(home: Any) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'classify\.0\.topk'"):
        job(home, classify={"classes": "c", "output": "o", "topk": 3})
    with pytest.raises(ConfigError, match="key 'rollout'"):
        job(home, rollout=0)


def test_python(home: Any) -> None:
    assert raypq.reindex(raypq.ReindexJob(**job(home).model_dump()))["codes"]["version"] == 1


@pytest.mark.ray
def test_through_ray(home: Any, night: Reindex) -> None:
    where = {"cluster": "local", "workers": 2}
    mixed = night(where=where)
    assert mixed["codes"]["images"] == 600
    home.rewrite(2)
    night(where=where, model=home("new"), rollout=0.2)
    models = {item.model for item in latest(home, "predictions").shards}
    assert len(models) == 2
    on_ray = latest(home, "predictions").summary["result"]
    assert on_ray == home.classify("alone").summary["result"]
