"""``raypq demo``: the whole path on generated data, told as a table."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.table import Table

from raypq import api, console
from raypq.config import (
    ClassifyJob,
    ClusterSettings,
    EncodeJob,
    EvaluateJob,
    Positive,
    Settings,
    TrainJob,
)
from raypq.data import generate
from raypq.data.codes import bytes_per_code


class DemoSettings(Settings):
    """How large the generated world is, and where it goes."""

    output: str = "demo-output"
    images: Annotated[int, Field(ge=1000)] = 40_000
    n_classes: Annotated[int, Field(ge=40)] = 400
    dims: Annotated[int, Field(ge=16)] = 512
    M: Positive = 50
    seed: Annotated[int, Field(ge=0)] = 0


def run(settings: DemoSettings, where: ClusterSettings) -> str:
    """Generates, trains, encodes, classifies and evaluates; returns the story to print."""
    root = Path(settings.output).absolute()
    times: dict[str, float] = {}
    with _timed(times, "generate"):
        _generate(root, settings)
    with api.open_crew(where):  # one Ray for all the verbs
        with _timed(times, "train"):
            trained = api.train(
                TrainJob(
                    method="pqzsl",
                    features=[str(root / "features" / "train")],
                    classes=str(root / "classes.parquet"),
                    output=str(root / "model"),
                    settings={"M": settings.M, "seed": settings.seed},
                    where=where,
                )
            )
        with _timed(times, "encode"):
            codes = api.encode(
                EncodeJob(
                    model=str(root / "model"),
                    features=[str(root / "features" / "test")],
                    output=str(root / "codes"),
                    where=where,
                )
            )
        results = {}
        for name in ("codes", "exact"):
            source: dict[str, Any] = (
                {"codes": str(root / "codes")}
                if name == "codes"
                else {"features": [str(root / "features" / "test")]}
            )
            output = str(root / f"predictions-{name}")
            with _timed(times, f"classify, {name}"):
                api.classify(
                    ClassifyJob(
                        model=str(root / "model"),
                        classes=str(root / "classes.parquet"),
                        output=output,
                        where=where,
                        **source,
                    )
                )
            results[name] = api.evaluate(
                EvaluateJob(predictions=output, classes=str(root / "classes.parquet"), where=where)
            )
    model = trained.model
    width = bytes_per_code(model.M, model.K)
    (root / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return _story(settings, root, results, times, width, codes.rows)


class _timed:  # noqa: N801 - reads as a verb
    def __init__(self, times: dict[str, float], name: str) -> None:
        self._times, self._name = times, name

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._times[self._name] = time.monotonic() - self._start


def _generate(root: Path, settings: DemoSettings) -> None:
    console.say(f"generating {settings.images:,} images of {settings.n_classes} classes in {root}")
    rng = np.random.default_rng(settings.seed)
    world = generate.World.create(
        classes=settings.n_classes, dx=settings.dims, da=min(128, settings.dims), rng=rng
    )
    generate.write_classes(root / "classes.parquet", world)
    for name, classes, share in (
        ("train", np.flatnonzero(world.seen), 0.6),
        ("test", np.arange(settings.n_classes), 0.4),
    ):
        generate.write_features(
            root / "features" / name,
            world,
            classes=classes,
            images=int(share * settings.images),
            shards=8,
            name=name,
            rng=rng,
        )


def _story(
    settings: DemoSettings,
    root: Path,
    results: dict[str, dict[str, Any]],
    times: dict[str, float],
    width: int,
    encoded: int,
) -> str:
    table = Table(title="generated data: the figures show that it works, not how good it is")
    table.add_column("PQZSL, cosine")
    for name in ("bytes an image", "ZSL", "ts", "tr", "H", "H at the best γ", "hit@10"):
        table.add_column(name, justify="right")
    for name, size in (("exact", 4 * settings.dims), ("codes", width)):
        found = results[name]
        figures = [found["zsl"], found["ts"], found["tr"], found["H"]]
        figures += [found["calibrated"]["best_H"], found["top1"].get("hit@10", float("nan"))]
        label = "exact features" if name == "exact" else f"codes, M = {settings.M}"
        table.add_row(label, f"{size:,}", *(f"{value:.3f}" for value in figures))
    text = io.StringIO()
    printer = Console(file=text, width=100)
    printer.print(table)
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items())
    printer.print(
        f"\n{encoded:,} images encoded, {4 * settings.dims / width:.0f}× smaller than float32. "
        f"{spent}.\n"
    )
    for name, what in (
        ("features/", "the generated feature store"),
        ("classes.parquet", "its classes"),
        ("model/", "model.safetensors and model.json"),
        ("codes/", "the code store: data/ and snapshots/"),
        ("predictions-codes/", "top-10 classes of every image, from the codes"),
        ("results.json", "all figures"),
    ):
        printer.print(f"  {root / name}  [dim]{what}[/dim]", soft_wrap=True)
    return text.getvalue()
