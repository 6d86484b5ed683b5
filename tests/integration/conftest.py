"""Fixtures of the tests of bad input."""

from __future__ import annotations

import shutil

import pytest
from broken import SMALL, Place, raypq


@pytest.fixture(scope="module")
def model(world, tmp_path_factory) -> str:
    """A pqzsl model of the tiny world."""
    folder = tmp_path_factory.mktemp("models")
    result = raypq(
        "train", "pqzsl", "--features", world.train, "--classes", world.classes,
        "--output", str(folder / "m"), *SMALL, "--set", "polish=1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return str(folder / "m")


@pytest.fixture
def place(world, model, tmp_path, monkeypatch) -> Place:
    shutil.copytree(world.root, tmp_path / "w")
    return Place(tmp_path / "w", model, monkeypatch)
