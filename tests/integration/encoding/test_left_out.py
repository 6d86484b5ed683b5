"""Shards that are left out are named by every run, with since when; nothing is forgotten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from raypq import api
from raypq.cli import main
from raypq.config import ReindexJob
from raypq.data.store import snapshot
from raypq.errors import JobError, QuarantineError
from raypq.monitoring.results import version_summary
from raypq.stages.stores import quarantine, versions


def night(home: Any, **more: Any) -> dict[str, Any]:
    values = {
        "model": home("old"),
        "features": [home("features")],
        "codes": home("codes"),
        "classify": {"classes": home("classes.parquet"), "output": home("predictions")},
        "on_bad_shard": "quarantine",
        "where": home.where,
    }
    return api.reindex(ReindexJob.parse(values | more))


def spoil(home: Any, number: int) -> bytes:
    good = home.shard(number).read_bytes()
    home.shard(number).write_bytes(good[:100])
    return good


def latest(home: Any) -> snapshot.Snapshot:
    return snapshot.read(home("codes"))


def dated(home: Any, moment: str) -> None:
    """As if the latest version of the codes had been made at another time."""
    place = Path(home("codes"), snapshot.path_of(latest(home).version))
    content = json.loads(place.read_text())
    content["created"] = moment
    for name in content["summary"][quarantine.KEY]:
        content["summary"][quarantine.KEY][name] = moment
    place.write_text(json.dumps(content))


OLD = "2026-01-01T00:00:00+00:00"


def test_every_night_names_them(home: Any, caplog: pytest.LogCaptureFixture) -> None:
    good = spoil(home, 3)
    told = night(home)
    assert told["codes"]["quarantined"] == 1
    dated(home, OLD)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level("INFO", logger="raypq"):
            told = night(home)
        assert told["nothing_to_do"]
        assert "everything is up to date but 1 shard(s) that are left out" in caplog.text
        assert f"left out since {OLD}: {home.shard(3)}" in caplog.text
        assert told["codes"]["left_out"] == {
            "shards": 1, "since": OLD, "names": [str(home.shard(3))],
        }  # fmt: skip
    home.add(6)  # a new version: since when stays
    spoil(home, 1)
    caplog.clear()
    told = night(home)
    assert told["codes"]["left_out"]["shards"] == 2
    assert told["codes"]["left_out"]["since"] == OLD
    assert caplog.text.count(f"left out since {OLD}") == 1
    assert quarantine.since(latest(home))[latest(home).quarantined[0].shard] == OLD
    home.shard(3).write_bytes(good[:99])  # changed, and bad again
    assert night(home)["codes"]["left_out"]["since"] == OLD
    home.shard(3).write_bytes(good)
    assert night(home)["codes"]["left_out"]["shards"] == 1
    assert set(quarantine.since(latest(home))) == {latest(home).quarantined[0].shard}


def test_the_night_fails_on_request_after_its_commit(home: Any) -> None:
    spoil(home, 3)
    for _ in range(2):  # on the night that finds it, and on those after
        with pytest.raises(QuarantineError, match="part-00003"):
            night(home, fail_on_quarantined=True)
        assert len(latest(home).shards) == home.shards - 1
        assert snapshot.read(home("predictions")).rows == 500
    assert snapshot.versions(home("codes")) == [1]


def test_the_command_exits_with_one(home: Any) -> None:
    spoil(home, 3)
    config = {
        "model": home("old"), "features": [home("features")], "codes": home("codes"),
        "on_bad_shard": "quarantine", "where": {"cluster": "none", "workers": 1},
    }  # fmt: skip
    Path(home("nightly.yaml")).write_text(yaml.safe_dump(config))
    args = ["reindex", "--config", home("nightly.yaml")]
    assert CliRunner().invoke(main, args).exit_code == 0
    result = CliRunner().invoke(main, [*args, "--fail-on-quarantined"])
    assert result.exit_code == 1
    assert "1 shard(s) are left out (everything else is committed)" in result.stderr


def test_without_quarantine_they_are_tried_again(home: Any) -> None:
    spoil(home, 3)
    night(home)
    with pytest.raises(JobError, match="part-00003"):
        night(home, on_bad_shard="fail")


@pytest.mark.parametrize("verb", ["encode", "classify"])
def test_by_hand(home: Any, verb: str, caplog: pytest.LogCaptureFixture) -> None:
    """A rerun does not try a bad shard again that has not changed, and says so."""
    if verb == "encode":
        spoil(home, 3)
        run = lambda **more: home.encode(on_bad_shard="quarantine", **more)  # noqa: E731
    else:
        home.encode()
        bad = Path(home("codes"), latest(home).shards[3].path)
        bad.write_bytes(bad.read_bytes()[:-10])
        run = lambda **more: home.classify(on_bad_shard="quarantine", **more)  # noqa: E731
    first = run()
    assert len(first.quarantined) == 1
    caplog.clear()
    with caplog.at_level("INFO", logger="raypq"):
        assert run() == first
    assert "nothing to do" in caplog.text
    assert "1 shard(s) are left out" in caplog.text


def test_versions_show_them(home: Any) -> None:
    good = spoil(home, 3)
    night(home)
    dated(home, OLD)
    spoil(home, 1)
    night(home)
    home.shard(3).write_bytes(good)
    night(home)
    one, two, three = versions.listing(home("codes"))
    assert [line["quarantined"] for line in (one, two, three)] == [1, 2, 1]
    assert one["left_out"]["since"] == two["left_out"]["since"] == OLD
    assert three["left_out"]["since"] > OLD
    names = {item.shard for item in latest(home).quarantined}
    found = versions.diff(home("codes"), 2)["quarantined"]
    assert (found["added"], len(found["removed"]), set(found["kept"])) == ([], 1, names)
    assert set(versions.diff(home("codes"), 1)["quarantined"]["added"]) == names
    made = versions.restore(home("codes"), 1)
    assert set(quarantine.since(made).values()) == {OLD}


@pytest.mark.parametrize("noted", [None, 3, [], {"x": 1}, {"part-00003": 5}])
def test_a_summary_that_says_nothing_of_use(home: Any, noted: Any) -> None:
    """As of an early raypq: the version's own time is what is known."""
    spoil(home, 3)
    night(home)
    place = Path(home("codes"), snapshot.path_of(1))
    content = json.loads(place.read_text())
    content["summary"][quarantine.KEY] = noted
    place.write_text(json.dumps(content))
    (moment,) = quarantine.since(latest(home)).values()
    assert moment in (content["created"], "5")
    assert night(home)["nothing_to_do"]


def test_a_quarantined_shard_is_named_once_in_the_result(home: Any) -> None:
    home.shard(1).write_bytes(b"no Parquet")
    version = home.encode(on_bad_shard="quarantine")
    (line,) = version_summary(version, home("codes"))["quarantined"]
    assert line.count(str(home.shard(1))) == 1
    assert "cut off or damaged" in line
