"""What `raypq doctor --config` finds in folders and on an S3 server; it leaves nothing there."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from s3server import S3Server

from raypq.checks import Finding, check_job
from raypq.cli import main
from raypq.config import ClusterSettings, NeighborsJob, ReindexJob
from raypq.data.storage import write_bytes

Night = Callable[..., dict[str, Any]]


@pytest.fixture
def night(home: Any) -> Night:
    """The config of a night over the home's features."""

    def night(**more: Any) -> dict[str, Any]:
        values = {
            "model": home("old"),
            "features": [home("features")],
            "codes": home("codes"),
            "classify": [{"classes": home("classes.parquet"), "output": home("predictions")}],
            "deduplicate": [
                {"threshold": 0.1, "output": home("groups"), "drop_list": home("lists/drop.txt")}
            ],
            "where": {"cluster": "none", "workers": 1},
        }
        return values | more

    return night


def findings(values: dict[str, Any]) -> list[Finding]:
    return check_job(ReindexJob.parse(values))


def levels(values: dict[str, Any], level: str = "fail") -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings(values) if finding.level == level}


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_a_night_that_can_run_has_no_fail_and_leaves_no_file(home: Any, night: Night) -> None:
    before = tree(home.root)
    found = findings(night())
    assert {finding.level for finding in found} == {"ok"}
    assert tree(home.root) == before
    said = {finding.subject: finding.found for finding in found}
    assert said[f"features: {home('features')}"].startswith("6 shards, 600 images")
    assert said[f"model: {home('old')}"].startswith("pqzsl, M = ")
    assert "no version yet" in said[f"codes: {home('codes')}"]
    assert "classes" in said[f"classify.0.classes: {home('classes.parquet')}"]
    home.encode()
    (codes,) = [f for f in findings(night()) if f.subject == f"codes: {home('codes')}"]
    assert codes.found.endswith("version 1, 600 rows")


def test_every_missing_input_is_named_with_a_remedy(home: Any, night: Night) -> None:
    values = night(model=home("none"), features=[home("feature")])
    values["classify"][0]["classes"] = home("tables")
    failed = levels(values)
    assert failed.keys() == {
        f"model: {home('none')}",
        f"features: {home('feature')}",
        f"classify.0.classes: {home('tables')}",
    }
    assert all(finding.found and finding.remedy for finding in failed.values())
    values = night()
    values["classify"][0]["candidates"] = "some"
    (wrong,) = levels(values).values()
    assert "unknown split 'some'" in wrong.found


def test_features_of_another_width_and_bad_shards_are_found(home: Any, night: Night) -> None:
    path: Path = home.shard(0)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    (bad,) = levels(night()).values()
    assert "of 6 tried 1 cannot be used" in bad.found
    assert str(path) in bad.found
    (bad,) = levels(night(on_bad_shard="quarantine"), "warn").values()
    assert "they are left out" in bad.remedy


def test_features_that_the_model_does_not_take(
    home: Any, night: Night, world: Any, tmp_path: Path
) -> None:
    (wrong,) = levels(night(features=[world.test])).values()
    assert wrong.subject == "model"
    assert "16" in wrong.found


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do anything")
def test_a_folder_without_the_right_to_write(home: Any, night: Night, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0o500)
    (wrong,) = levels(night(codes=str(tmp_path / "closed" / "codes"))).values()
    assert wrong.found.startswith("cannot create")
    assert "right to write" in wrong.remedy


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no sysfs")
def test_a_file_system_that_takes_no_files(home: Any, night: Night) -> None:
    failed = levels(night(codes="/sys/kernel/codes"))
    assert failed["codes: /sys/kernel/codes"].found.startswith("cannot create")


def test_a_file_in_the_way_of_a_store(home: Any, night: Night) -> None:
    values = night(codes=home("classes.parquet") + "/codes")
    failed = levels(values)
    assert [*failed] == [f"codes: {values['codes']}"]


def test_outputs_among_the_inputs(home: Any, night: Night) -> None:
    values = night(codes=home("features/codes"))
    assert "places" in levels(values)


@pytest.fixture
def remote(home: Any, bucket: str, night: Night) -> dict[str, Any]:
    """The night with its features and stores in a bucket."""
    for path in (home.root / "features").iterdir():
        write_bytes(f"{bucket}/features/{path.name}", path.read_bytes())
    classify = [{"classes": home("classes.parquet"), "output": f"{bucket}/predictions"}]
    return night(
        features=[f"{bucket}/features"], codes=f"{bucket}/codes", classify=classify, deduplicate=[]
    )


def test_a_bucket_with_every_right(remote: dict[str, Any], bucket: str) -> None:
    import fsspec

    assert {finding.level for finding in findings(remote)} == {"ok"}
    names = fsspec.filesystem("s3").find(bucket)
    assert all("/features/" in name for name in names)


@contextmanager
def refusing(s3: S3Server, part: str, status: int = 403, code: str = "AccessDenied") -> Iterator:
    s3.refused = {part: (status, code)}
    try:
        yield
    finally:
        s3.refused = {}


@pytest.mark.parametrize(
    ("part", "said", "remedy"),
    [
        ("PUT /{bucket}/codes/", "cannot create", "s3:PutObject"),
        ("GET /{bucket}/codes/.raypq", "cannot read", "s3:GetObject"),
        ("DELETE /{bucket}/codes/.raypq", "cannot delete", "s3:DeleteObject"),
        ("prefix=codes/", "cannot list", "s3:ListBucket"),
    ],
)
def test_each_right_that_is_missing_in_a_bucket_is_named(
    remote: dict[str, Any], bucket: str, s3: S3Server, part: str, said: str, remedy: str
) -> None:
    findings(remote)  # the trial of the bucket's create is made once in a process
    with refusing(s3, part.format(bucket=bucket.removeprefix("s3://"))):
        failed = [f for f in findings(remote) if f.level == "fail"]
    assert {finding.subject for finding in failed} == {f"codes: {bucket}/codes"}
    assert any(finding.found.startswith(said) and remedy in finding.remedy for finding in failed)


def test_a_bucket_that_does_not_exist_and_keys_that_have_expired(
    remote: dict[str, Any], bucket: str, s3: S3Server
) -> None:
    failed = levels({**remote, "features": [f"{bucket}-2/features"], "codes": f"{bucket}-2/codes"})
    assert len(failed) == 2
    with refusing(s3, bucket.removeprefix("s3://"), 400, "ExpiredToken"):
        failed = levels(remote)
    assert len(failed) >= 3
    assert all(bucket in finding.subject for finding in failed.values()), failed


def test_codes_that_do_not_fit_into_the_memory_of_a_worker(home: Any) -> None:
    home.encode()
    where = ClusterSettings(cluster="none", workers=1, memory_per_worker=0.25)
    job = NeighborsJob(codes=home("codes"), output=home("graph"), where=where)
    (failed,) = [finding for finding in check_job(job) if finding.level == "fail"]
    assert failed.subject == "memory of a worker"
    assert "codes of 600 images" in failed.found


def doctor(path: Path, values: dict[str, Any], *more: str) -> Any:
    path.write_text(yaml.safe_dump(values))
    return CliRunner().invoke(main, ["doctor", "--config", str(path), *more])


def test_the_command_prints_lines_or_one_object(home: Any, night: Night, tmp_path: Path) -> None:
    config = tmp_path / "nightly.yaml"
    done = doctor(config, night())
    assert done.exit_code == 0, done.output
    first, *lines = done.stdout.splitlines()
    assert first == f"{config}: raypq reindex"
    assert all(line.startswith("ok   ") for line in lines)
    done = doctor(config, night(model=home("none")))
    assert done.exit_code == 1
    assert "\n     -> name a path that exists" in done.stdout
    assert "1 of" in done.stderr
    done = doctor(config, night(model=home("none")), "--log-json")
    assert done.exit_code == 1
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert (result["job"], result["fail"]) == ("reindex", 1)
    assert {"level", "subject", "found", "remedy"} == {*result["checks"][0]}
    (error,) = done.stderr.splitlines()
    assert json.loads(error)["kind"] == "CheckFailed"


def test_the_command_of_a_config_follows_from_its_keys(
    home: Any, night: Night, tmp_path: Path
) -> None:
    config = tmp_path / "job.yaml"
    done = doctor(config, {**night(), "modle": "x"})
    assert done.exit_code == 2
    assert "modle" in done.stderr
    assert "codes" not in doctor(config, night(), "--job", "reindex").stderr
    assert doctor(config, night(), "--job", "nightly").exit_code == 2
    store = {"store": home("codes")}
    done = doctor(config, store)
    assert done.exit_code == 2
    assert "several commands" in done.stderr
    home.encode()
    assert doctor(config, store, "--job", "snapshots list").exit_code == 0
    done = CliRunner().invoke(main, ["doctor", "--job", "reindex"])
    assert done.exit_code == 2


@pytest.mark.parametrize("name", ["train", "encode", "classify", "search", "reindex"])
def test_every_example_config_has_one_command(name: str) -> None:
    from raypq.cli import doctor as module

    config = Path(__file__).parents[3] / "jobs" / "configs" / f"{name}.yaml"
    commands = dict(module._commands(main))
    assert [*module._fitting(commands, str(config))] == [name]


def test_a_network_without_its_package(
    home: Any, night: Night, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    values = night(images=[home("features")], backbone="timm:resnet18")
    del values["features"]
    failed = levels(values)
    assert "pip install 'raypq[backbones]'" in failed["backbone: timm:resnet18"].found
