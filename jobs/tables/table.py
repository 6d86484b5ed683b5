"""A table of results: every row is a method and its settings, figures are over several seeds.

python jobs/tables/table.py jobs/tables/psr.yaml --data cub --output work

DATA is a folder with ``train``, ``test_seen``, ``test_unseen`` and ``classes.parquet``, as
``raypq import-xlsa17`` writes it. Where a row says ``tune``, γ comes from classes held out of
training under the first seed and serves all seeds; ``best H`` is that of the γ that suits the test
images most, for comparison. What is there already is not done again, so a run that was stopped goes
on. The table is printed as Markdown, and all figures go to OUTPUT/NAME.json.
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

FIGURES = ("zsl", "ts", "tr", "H", "H calibrated", "best H")
CODED = ("zsl", "H", "H calibrated", "best H")
WHERE = ClusterSettings(cluster="none", workers=1)


class Row(UserSettings):
    """A line of the table."""

    method: str
    settings: dict[str, Any] = Field(default_factory=dict)
    tune: bool = False


class Table(UserSettings):
    """What a table's file holds."""

    title: str
    rows: dict[str, Row]


def main(argv: list[str] | None = None) -> None:
    """Parses the command line, runs the rows and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("table", help="YAML file: title, and rows of method and settings")
    parser.add_argument("--data", required=True, help="train, test_*, classes.parquet")
    parser.add_argument("--output", required=True, help="folder for models, codes and figures")
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
    """Every row under every seed, then the table."""
    extra = parse_assignments(given.set)
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for number, (title, row) in enumerate(table.rows.items()):
        if given.only and title not in given.only:
            continue
        folder = Path(given.output) / f"{name}-{number}"
        found[title] = run_row(row, extra, Path(given.data), folder, given.seeds)
    console.emit(markdown(table.title, found, given.seeds))
    (Path(given.output) / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")


def run_row(
    row: Row, extra: dict[str, Any], data: Path, folder: Path, seeds: int
) -> dict[str, dict[str, list[float]]]:
    """The figures of one row: of exact scores and of codes, a list over the seeds for each."""
    found: dict[str, dict[str, list[float]]] = {}
    gamma = None
    for seed in range(seeds):
        at = folder / f"seed-{seed}"
        settings = {**row.settings, **extra, "seed": seed}
        model = train(row.method, settings, data, at, tune=row.tune and not seed)
        gamma = gamma if seed else model["calibration"]
        for kind, figures in judge(data, at, gamma).items():
            for figure, value in figures.items():
                found.setdefault(kind, {}).setdefault(figure, []).append(value)
        found.setdefault("cost", {}).setdefault("seconds", []).append(model["seconds"])
    return found


def train(
    method: str, settings: dict[str, Any], data: Path, at: Path, *, tune: bool
) -> dict[str, Any]:
    """Calibration and training time of a model; trained unless it is there."""
    note = at / "trained.json"
    if note.exists():
        return dict(json.loads(note.read_text()))
    start = time.monotonic()
    job = TrainJob(
        method=method,
        features=[str(data / "train")],
        classes=str(data / "classes.parquet"),
        output=str(at / "model"),
        settings=settings,
        tune=tune,
        overwrite=True,
        where=WHERE,
    )
    summary = api.train(job).summary
    kept = {"calibration": summary["calibration"], "seconds": time.monotonic() - start}
    note.write_text(json.dumps(kept))
    return kept


def judge(data: Path, at: Path, gamma: float | None) -> dict[str, dict[str, float]]:
    """Figures on the test stores, of exact scores and of codes."""
    classes = str(data / "classes.parquet")
    test = [str(data / part) for part in ("test_seen", "test_unseen")]
    model = str(at / "model")
    api.encode(EncodeJob(model=model, features=test, output=str(at / "codes"), where=WHERE))
    sources: dict[str, dict[str, Any]] = {
        "exact": {"features": test},
        "codes": {"codes": str(at / "codes")},
    }
    found = {}
    for kind, source in sources.items():
        output = str(at / f"predictions-{kind}")
        api.classify(
            ClassifyJob(model=model, classes=classes, output=output, where=WHERE, **source)
        )
        result = api.evaluate(
            EvaluateJob(predictions=output, classes=classes, calibration=gamma, where=WHERE)
        )
        curve = result["calibrated"]
        figures = {key: result[key] for key in FIGURES if key in result}
        figures["best H"] = curve["best_H"]
        if gamma is not None:
            figures["H calibrated"] = curve["H"]
        found[kind] = figures
    return found


def markdown(title: str, found: dict[str, dict[str, dict[str, list[float]]]], seeds: int) -> str:
    """The figures as a table: mean ± standard deviation over the seeds."""
    head = [*FIGURES, *(f"codes: {figure}" for figure in CODED)]
    lines = [
        f"{title}; mean ± standard deviation over {seeds} seeds",
        "",
        f"| | {' | '.join(head)} |",
        "|---" * (len(head) + 1) + "|",
    ]
    for name, kinds in found.items():
        cells = [told(kinds["exact"].get(figure)) for figure in FIGURES]
        cells += [told(kinds["codes"].get(figure)) for figure in CODED]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def told(values: list[float] | None) -> str:
    """Mean and standard deviation (n − 1), three digits."""
    if not values:
        return ""
    spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.3f} ± {spread:.3f}"


if __name__ == "__main__":
    main()
