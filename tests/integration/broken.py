"""What the tests of bad input share: a copy of the tiny world to break, and the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from raypq.cli import main
from raypq.data import arrays

ALONE = ["--cluster", "none", "--workers", "2"]
SMALL = ["--set", "M=4", "--set", "K=16", "--set", "iterations=2"]


def raypq(*words: str) -> Result:
    """Runs a command; an exception that is not an exit is a bug."""
    result = CliRunner().invoke(
        main, [*words, *([] if {"--help", "snapshots"} & {*words} else ALONE)]
    )
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "raypq: unexpected" not in result.output, result.output
    return result


@dataclass
class Place:
    """A copy of the tiny world that a case may break."""

    root: Path
    model: str
    patch: pytest.MonkeyPatch

    train: Path = field(init=False)
    test: Path = field(init=False)
    classes: Path = field(init=False)

    def __post_init__(self) -> None:
        self.train, self.test = self.root / "train", self.root / "test"
        self.classes = self.root / "classes.parquet"

    def __call__(self, name: str) -> str:
        return str(self.root / name)

    def change(self, file: str, edit: Callable[[pa.Table], pa.Table]) -> None:
        """Rewrites one Parquet file."""
        path = self.root / file
        pq.write_table(edit(pq.read_table(path)), path)

    def set(self, file: str, column: str, values: Any) -> None:
        """Replaces one column of a file."""

        def edit(table: pa.Table) -> pa.Table:
            return table.set_column(table.column_names.index(column), column, values)

        self.change(file, edit)

    def vectors(self, file: str) -> np.ndarray:
        column = pq.read_table(self.root / file).column("feature").combine_chunks()
        return arrays.matrix(column, width=None, where=file).copy()

    def put(self, file: str, row: int, value: float) -> None:
        """Sets one value of a feature row."""
        X = self.vectors(file)
        X[row, 3] = value
        self.set(file, "feature", arrays.fixed_list(X))

    def widen(self, file: str, width: int) -> None:
        """Gives a file's features another width."""
        X = self.vectors(file)
        self.set(file, "feature", arrays.fixed_list(np.resize(X, (len(X), width))))

    def drop(self, file: str, column: str) -> None:
        self.change(file, lambda table: table.drop_columns([column]))

    def fit(self, method: str = "pqzsl", *more: str) -> list[str]:
        classes = ["--classes", str(self.classes)] if method == "pqzsl" else []
        return [
            "train", method, "--features", str(self.train), *classes, "--output", self("new"),
            *SMALL, *more,
        ]  # fmt: skip

    def encode(self, *more: str) -> list[str]:
        return [
            "encode", "--model", self.model, "--features", str(self.test),
            "--output", self("codes"), *more,
        ]  # fmt: skip

    def classify(self, *more: str) -> list[str]:
        return [
            "classify", "--model", self.model, "--codes", self("codes"),
            "--classes", str(self.classes), "--output", self("predictions"), *more,
        ]  # fmt: skip

    def evaluate(self, *more: str) -> list[str]:
        return [
            "evaluate", "classification", "--predictions", self("predictions"),
            "--classes", str(self.classes), *more,
        ]  # fmt: skip

    def run(self, *words: str) -> Result:
        """Runs a step that must succeed."""
        result = raypq(*words)
        assert result.exit_code == 0, result.output
        return result


Break = Callable[[Place], list[str]]


class Table:
    """Rows of bad input: what is broken, the exit code, and what the user must be told."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def case(self, exit_code: int, *says: str) -> Callable[[Break], Break]:
        """Adds a row: the function breaks something and gives the command that must fail."""

        def add(function: Break) -> Break:
            self.rows.append(pytest.param(function, exit_code, says, id=function.__name__))
            return function

        return add


def check(place: Place, broken: Break, exit_code: int, says: tuple[str, ...]) -> None:
    """Runs the command of a row and compares what it says."""
    result = raypq(*broken(place))
    assert result.exit_code == exit_code, result.output
    for part in says:
        assert part in result.stderr, result.stderr
    assert "Traceback" not in result.output
    assert "Error: " not in result.stderr or exit_code == 2, "an unforeseen error has no such name"
    assert result.stdout == "", "a result is printed only when there is one"
