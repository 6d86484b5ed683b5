"""A model that is there is not replaced by accident: its codes would lose their codebooks."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from raypq.cli import main

ALONE = ["--cluster", "none", "--workers", "1", "--set", "M=4", "--set", "K=4"]


def test_a_model_is_replaced_on_request_only(world, tmp_path: Path) -> None:
    train = ["train", "pq", "--features", world.train, "--output", str(tmp_path / "m"), *ALONE]
    assert CliRunner().invoke(main, train).exit_code == 0
    before = (tmp_path / "m" / "model.json").read_bytes()

    again = CliRunner().invoke(main, [*train, "--set", "seed=1"])
    assert again.exit_code == 2
    assert f"{tmp_path / 'm'} holds a model already" in again.output
    assert "--overwrite" in again.output
    assert (tmp_path / "m" / "model.json").read_bytes() == before

    assert CliRunner().invoke(main, [*train, "--set", "seed=1", "--overwrite"]).exit_code == 0
    assert (tmp_path / "m" / "model.json").read_bytes() != before


def test_repacked_shards_are_written_over_on_request_only(world, tmp_path: Path) -> None:
    alone = ["--cluster", "none", "--workers", "1"]
    repack = ["repack", "--features", world.test, "--output", str(tmp_path / "fast"), *alone]
    assert CliRunner().invoke(main, repack).exit_code == 0
    again = CliRunner().invoke(main, repack)
    assert again.exit_code == 2
    assert "2 Parquet file(s) already" in again.output
    assert "--overwrite" in again.output
    assert CliRunner().invoke(main, [*repack, "--overwrite"]).exit_code == 0
