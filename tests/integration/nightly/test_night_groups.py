"""Groups of near-duplicates as a section of a night."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from raypq import api
from raypq.cli import main
from raypq.config import DeduplicateJob, ReindexJob
from raypq.data.store import lease, snapshot
from raypq.errors import ConfigError, ConflictError

THRESHOLD = 0.03


def job(home: Any, **more: Any) -> ReindexJob:
    section = {"threshold": THRESHOLD, "metric": "l2", "output": home("groups")}
    values = {
        "model": home("old"),
        "features": [home("features")],
        "codes": home("codes"),
        "deduplicate": section | more.pop("section", {}),
        "where": home.where,
        "lease_seconds": 2,
    }
    return ReindexJob.parse(values | more)


def rows_of(store: str) -> list[tuple[Any, ...]]:
    version = snapshot.read(store)
    found = []
    for receipt in version.shards:
        table = pq.read_table(Path(store, receipt.path))
        names = ["group_id", "id", "size", "kept", "score"]
        found += zip(*(table[name].to_pylist() for name in names), strict=True)
    return sorted(found)


def fresh(home: Any, name: str) -> list[tuple[Any, ...]]:
    whole = DeduplicateJob(
        codes=home("codes"), threshold=THRESHOLD, metric="l2", output=home(name), where=home.where
    )
    api.deduplicate(whole)
    return rows_of(home(name))


def test_groups_follow_the_codes(home: Any, caplog: pytest.LogCaptureFixture) -> None:
    drop = Path(home("drop.txt"))
    section = {"drop_list": str(drop)}
    told = api.reindex(job(home, section=section))
    (groups,) = told["groups"]
    assert groups["new"]
    assert 10 < groups["dropped"] < 500
    home.add(6)
    home.rewrite(1)
    home.shard(4).unlink()
    plan = api.reindex(job(home, section=section, dry_run=True))
    assert plan["deduplicate"] == [{"store": home("groups")}]
    assert plan["seconds"][home("groups")] > 0
    caplog.set_level("INFO")
    told = api.reindex(job(home, section=section))
    assert "200 of 600 images, in 2 of 6 code files, are new since version 1" in caplog.text
    found = rows_of(home("groups"))
    assert found == fresh(home, "fresh")
    dropped = {str(name) for _, name, _, kept, _ in found if not kept}
    assert {*drop.read_text().split()} == dropped
    assert told["groups"][0]["dropped"] == len(dropped)
    version = snapshot.read(home("groups"))
    assert version.summary["codes_version"] == told["codes"]["version"]
    again = api.reindex(job(home, section=section))
    assert again["nothing_to_do"]
    assert not again["groups"][0]["new"]
    drop.unlink()  # a list that is gone is written again, even if nothing is new
    again = api.reindex(job(home, section=section))
    assert not again["nothing_to_do"]
    assert {*drop.read_text().split()} == dropped


def test_groups_wait_for_a_roll_out(home: Any, caplog: pytest.LogCaptureFixture) -> None:
    api.reindex(job(home))
    before = snapshot.read(home("groups"))
    told = api.reindex(job(home, model=home("new"), rollout=0.5))
    assert told["groups"] == [{"store": home("groups"), "skipped": True}]
    assert "while a roll-out is not complete" in caplog.text
    assert snapshot.read(home("groups")) == before
    told = api.reindex(job(home, model=home("new")))
    assert told["groups"][0]["new"]
    assert rows_of(home("groups")) == fresh(home, "fresh")


def test_a_night_that_stops_before_the_groups(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from raypq.stages.nightly import night_groups

    update = night_groups.update

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(night_groups, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        api.reindex(job(home))
    assert not snapshot.versions(home("groups"))
    monkeypatch.setattr(night_groups, "update", update)
    told = api.reindex(job(home))
    assert told["shards"]["kept"] == home.shards
    assert rows_of(home("groups")) == fresh(home, "fresh")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"threshold": -1.0}, "at least 0"),
        ({"keep": "largest"}, "keep_by"),
        ({"rerank": True, "linkage": "complete"}, "linkage"),
    ],
)
def test_settings_are_checked_before_codes(
    home: Any, section: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        api.reindex(job(home, section=section))
    assert not snapshot.versions(home("codes"))


def test_stores_need_paths_of_their_own(home: Any) -> None:
    with pytest.raises(ConfigError, match="share files"):
        api.reindex(job(home, section={"output": home("codes")}))


def test_one_night_at_a_time(home: Any) -> None:
    with lease.held(home("groups"), seconds=30), pytest.raises(ConflictError):
        api.reindex(job(home))


def test_the_command(home: Any, tmp_path: Path) -> None:
    values = job(home, section={"rerank": True}).model_dump(mode="json")
    chosen = ("model", "features", "codes", "deduplicate")
    config = tmp_path / "night.yaml"
    config.write_text(yaml.safe_dump({name: values[name] for name in chosen}))
    done = CliRunner().invoke(main, ["reindex", "--config", str(config), "--cluster", "none"])
    assert done.exit_code == 0, done.output
    assert '"dropped"' in done.stdout
