"""A table of results: a row is a method and its settings, scores are means over several seeds.

python jobs/tables/table.py jobs/tables/psr.yaml --data cub --output work

DATA is a folder with ``train``, ``test_seen``, ``test_unseen`` and ``classes.parquet``, as
``raypq import-xlsa17`` writes it. γ comes from classes held out of training under the first seed
and is used for all seeds; ``best H`` is that of the γ that is best on
the test images, for comparison. Existing models and stores are kept, so a run that was stopped goes
on. The table is printed as Markdown, and all scores go to OUTPUT/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from raypq import api, console
from raypq.config import (
    ClassifyJob,
    ClusterSettings,
    EncodeJob,
    EvaluateJob,
    TrainJob,
    UserSettings,
    parse_assignments,
    read_mapping,
)
from raypq.config.places import Place, Reads, Writes
from raypq.data.store import overlap
from raypq.errors import RaypqError
from raypq.text_tables import markdown_table

METRICS = ("zsl", "ts", "tr", "H", "H calibrated", "best H")
CODE_METRICS = ("zsl", "H", "H calibrated", "best H")
WHERE = ClusterSettings(cluster="none", workers=1)
Scores = dict[str, dict[str, list[float]]]  # by kind and metric, a value per seed


class Row(UserSettings):
    """A line of the table."""

    method: str
    settings: dict[str, Any] = Field(default_factory=dict)
    tune: bool = False


class Table(UserSettings):
    """A file in jobs/tables."""

    title: str
    rows: dict[str, Row]


def main(argv: list[str] | None = None) -> None:
    """Parses the command line, runs the rows and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("table", help="YAML file: title, and rows of method and settings")
    parser.add_argument("--data", required=True, help="train, test_*, classes.parquet")
    parser.add_argument("--output", required=True, help="folder for models, codes and scores")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", help="name of a row; may be repeated")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args(argv)
    console.set_up()
    try:
        table = Table.parse(read_mapping(given.table), origin=given.table)
        data = [str(Path(given.data) / part) for part in ("train", "test_seen", "test_unseen")]
        read = [Place(field="--data", uri=uri, use=Reads("parquet")) for uri in data]
        written = Place(field="--output", uri=given.output, use=Writes("shards"))
        overlap.refuse_places([*read, written])
        run(table, Path(given.table).stem, given)
    except RaypqError as error:
        console.fail(str(error))
        sys.exit(error.exit_code)


def run(table: Table, name: str, given: argparse.Namespace) -> None:
    """Runs every row with every seed, and prints the table."""
    extra = parse_assignments(given.set)
    scores: dict[str, Scores] = {}
    for number, (title, row) in enumerate(table.rows.items()):
        if given.only and title not in given.only:
            continue
        folder = Path(given.output) / f"{name}-{number}"
        scores[title] = run_row(row, extra, Path(given.data), folder, given.seeds)
    console.emit(markdown(table.title, scores, given.seeds))
    (Path(given.output) / f"{name}.json").write_text(json.dumps(scores, indent=2) + "\n")


def run_row(row: Row, extra: dict[str, Any], data: Path, folder: Path, seeds: int) -> Scores:
    """The scores of one row, ``exact`` and from ``codes``, and its ``cost``."""
    scores: Scores = {}
    gamma = None
    for seed in range(seeds):
        run_folder = folder / f"seed-{seed}"
        settings = {**row.settings, **extra, "seed": seed}
        model = train(
            row.method, settings, data, run_folder, tune=row.tune and not seed, calibrate=not seed
        )
        gamma = gamma if seed else model["calibration"]
        for kind, values in evaluate(data, run_folder, gamma).items():
            for metric, value in values.items():
                scores.setdefault(kind, {}).setdefault(metric, []).append(value)
        scores.setdefault("cost", {}).setdefault("seconds", []).append(model["seconds"])
    return scores


def train(
    method: str, settings: dict[str, Any], data: Path, folder: Path, *, tune: bool, calibrate: bool
) -> dict[str, Any]:
    """Trains a model unless it exists; returns its calibration and training time."""
    note = folder / "trained.json"
    if note.exists():
        return dict(json.loads(note.read_text()))
    start = time.monotonic()
    job = TrainJob(
        method=method,
        features=[str(data / "train")],
        classes=str(data / "classes.parquet"),
        output=str(folder / "model"),
        settings=settings,
        tune=tune,
        calibrate=calibrate,
        overwrite=True,
        where=WHERE,
    )
    summary = api.train(job).summary
    trained = {"calibration": summary["calibration"], "seconds": time.monotonic() - start}
    note.write_text(json.dumps(trained))
    return trained


def evaluate(data: Path, folder: Path, gamma: float | None) -> dict[str, dict[str, float]]:
    """Scores on the test stores, exact and from codes."""
    classes = str(data / "classes.parquet")
    test = [str(data / part) for part in ("test_seen", "test_unseen")]
    model = str(folder / "model")
    api.encode(EncodeJob(model=model, features=test, output=str(folder / "codes"), where=WHERE))
    sources: dict[str, dict[str, Any]] = {
        "exact": {"features": test},
        "codes": {"codes": str(folder / "codes")},
    }
    scores = {}
    for kind, source in sources.items():
        output = str(folder / f"predictions-{kind}")
        api.classify(
            ClassifyJob(
                model=model,
                classes=classes,
                output=output,
                no_calibration=True,
                where=WHERE,
                **source,
            )
        )
        result = api.evaluate(
            EvaluateJob(predictions=output, classes=classes, calibration=gamma, where=WHERE)
        )
        curve = result["calibrated"]
        values = {key: result[key] for key in METRICS if key in result}
        values["best H"] = curve["best_H"]
        if gamma is not None:
            values["H calibrated"] = curve["H"]
        scores[kind] = values
    return scores


def markdown(title: str, scores: dict[str, Scores], seeds: int) -> str:
    """The scores as a table: mean ± standard deviation over the seeds."""
    head = ["", *METRICS, *(f"codes: {metric}" for metric in CODE_METRICS)]
    rows = [
        [
            name,
            *(_mean_and_deviation(kinds["exact"].get(metric)) for metric in METRICS),
            *(_mean_and_deviation(kinds["codes"].get(metric)) for metric in CODE_METRICS),
        ]
        for name, kinds in scores.items()
    ]
    table = markdown_table(head, rows)
    return f"{title}; mean ± standard deviation over {seeds} seeds\n\n{table}"


def _mean_and_deviation(values: list[float] | None) -> str:
    """Mean and standard deviation (n − 1), three digits."""
    if not values:
        return ""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.3f} ± {deviation:.3f}"


if __name__ == "__main__":
    main()
