"""Errors of missing and of empty places: the key that named the place, and what it takes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from click.testing import CliRunner

from raypq.cli import main
from raypq.errors import InputError, MissingSourceError

ALONE = ("--cluster", "none", "--quiet")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "names.txt").write_text("cat\n")
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("train pq --features nope --output m", "features: nope: expected features: a file"),
        ("train pq --features empty --output m", "features: empty: expected at least one .parq"),
        ("train pq --features nope* --output m", "features: nope*: expected features: a file"),
        ("encode --model m --features nope --output c", "nope: expected features: a file"),
        (
            "encode --model m --images nope --backbone timm:x --output c",
            "images: nope: expected images: image files, .tar or Parquet files",
        ),
        ("extract --images nope --backbone n.pt --output f", "images: nope: expected images:"),
        ("extract --images empty --backbone n.pt --output f", "expected at least one image file"),
        (
            "reindex --model m --images nope --backbone timm:x --codes c",
            "or remove the path from images",
        ),
        ("reindex --model m --features nope --codes c", "or remove the path from features"),
        ("train pqzsl --features nope --classes no.parquet --output m", "classes: no.parquet:"),
        ("classify --codes nope --classes c.parquet --output p", "codes: nope: expected a store"),
        ("duplicates --codes empty --threshold 1 --output p", "codes: empty: expected a store"),
        ("repack --features nope --output o", "features: nope: expected features:"),
    ],
)
def test_errors_name_the_key_and_what_it_takes(command: str, says: str) -> None:
    result = CliRunner().invoke(main, [*command.split(), *ALONE])
    assert result.exit_code == 1
    assert says in result.stderr
    if "--images" in command:
        assert "a Parquet file" not in result.stderr


def test_the_key_is_kept_between_processes() -> None:
    error = MissingSourceError("nope", expected="images", found="none")
    error.field = "images"
    back = pickle.loads(pickle.dumps(error))
    assert isinstance(back, InputError)
    assert str(back) == "images: nope: expected images, found none"
