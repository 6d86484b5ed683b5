"""``raypq demo``: the whole path on generated data, and a table of the scores."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from raypq import api, console
from raypq.config import (
    ClassifyJob,
    ClusterSettings,
    DemoSettings,
    EncodeJob,
    EvaluateJob,
    TrainJob,
)
from raypq.data import result_file, synthetic
from raypq.data.codes import bytes_per_code
from raypq.data.storage import local_path
from raypq.data.store import overlap
from raypq.errors import ConfigError
from raypq.text_tables import plain_table

_SPEED_T, _SPEED_D, _SPEED_M = 21_841, 400, (5, 10, 25, 50)  # as many classes as ImageNet-21K
_MARK = "_raypq-demo"  # file in a folder that a later demo may write over
_NAMES = ("features", "classes.parquet", "model", "codes", "predictions", "results", "smaller")


def run(settings: DemoSettings) -> str:
    """Generates, trains, encodes, classifies, evaluates and reports; returns the text to print."""
    overlap.refuse(settings)
    where = settings.where
    root = local_path(settings.output).absolute()
    claim(root)
    times: dict[str, float] = {}
    with _timed(times, "generate"):
        _generate(root, settings)
    pipeline = _Pipeline(root, settings, where, times)
    with api.open_executor(where):  # one Ray for all commands
        pipeline.train(settings.M, "model")
        pipeline.encode("model", "codes")
        pipeline.classify("codes", codes="codes")
        pipeline.classify("exact", model="model", features="features/test")
    with _timed(times, "smaller codes"):
        threads = ClusterSettings(cluster="none", workers=where.workers)
        local = replace(pipeline, where=threads, times={})
        for M in settings.smaller:
            local.train(M, f"smaller/model-{M}")
            local.encode(f"smaller/model-{M}", f"smaller/codes-{M}")
            local.classify(f"smaller-{M}", codes=f"smaller/codes-{M}")
    with _timed(times, "speed"):
        _measure_speed(root / "results" / "speed.json", where.workers)
    with _timed(times, "report"):
        figures = _report(root)
    return _summary(settings, root, pipeline.results, times, figures)


@dataclass(frozen=True, kw_only=False)
class _Pipeline:
    """The commands on the demo's data; their paths are relative to its folder."""

    root: Path
    settings: DemoSettings
    where: ClusterSettings
    times: dict[str, float]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    def _at(self, path: str) -> str:
        return str(self.root / path)

    def train(self, M: int, output: str) -> None:
        with _timed(self.times, "train"):
            api.train(
                TrainJob(
                    method="pqzsl",
                    features=[self._at("features/train")],
                    classes=self._at("classes.parquet"),
                    output=self._at(output),
                    settings={"M": M, "seed": self.settings.seed},
                    where=self.where,
                    overwrite=True,
                )
            )

    def encode(self, model: str, output: str) -> None:
        with _timed(self.times, "encode"):
            api.encode(
                EncodeJob(
                    model=self._at(model),
                    features=[self._at("features/test")],
                    output=self._at(output),
                    where=self.where,
                )
            )

    def classify(
        self, name: str, *, codes: str | None = None, model: str | None = None,
        features: str | None = None,
    ) -> None:  # fmt: skip
        """Makes predictions and evaluates them, under a name."""
        output, classes = self._at(f"predictions/{name}"), self._at("classes.parquet")
        with _timed(self.times, f"classify, {name}"):
            api.classify(
                ClassifyJob(
                    model=None if model is None else self._at(model),
                    codes=None if codes is None else self._at(codes),
                    features=None if features is None else [self._at(features)],
                    classes=classes,
                    output=output,
                    where=self.where,
                )
            )
            scores = api.evaluate(
                EvaluateJob(predictions=output, classes=classes, where=self.where.without_gpus())
            )
        self.results[name] = scores
        result_file.write(str(self.root / "results" / f"{name}.json"), scores)


def _measure_speed(path: Path, threads: int) -> None:
    """Measures codes against the dense product on this machine, for a few M."""
    from raypq.bench import ratio, runner

    sizes = ratio.cases(T=_SPEED_T, D=_SPEED_D, sub_codebooks=_SPEED_M, images=8192)
    runner.write(str(path), list(sizes), threads=threads)


def _report(root: Path) -> int | None:
    """Writes the report; returns the number of its figures, None without matplotlib or jinja2."""
    try:
        return api.report([str(root)], str(root / "report.html"), title="raypq demo")
    except ConfigError as error:
        console.warn(str(error))
        return None


def claim(root: Path) -> None:
    """Marks a folder as one that a later demo may write over.

    Raises:
        ConfigError: it holds files of the demo's names that no demo made.
    """
    taken = [name for name in _NAMES if (root / name).exists()]
    if taken and not (root / _MARK).exists() and not (root / "results" / "speed.json").exists():
        raise ConfigError(
            f"output: {root} holds {', '.join(taken)}, which the demo would write over; "
            "name another folder"
        )
    root.mkdir(parents=True, exist_ok=True)
    (root / _MARK).write_text("raypq demo writes over this folder\n", encoding="utf-8")


class _timed:  # noqa: N801 - reads as a verb
    """Adds the seconds of a ``with`` block to ``times``."""

    def __init__(self, times: dict[str, float], name: str) -> None:
        self._times, self._name = times, name

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._times[self._name] = time.monotonic() - self._start


def _generate(root: Path, settings: DemoSettings) -> None:
    console.say(f"generating {settings.images:,} images of {settings.n_classes} classes in {root}")
    rng = np.random.default_rng(settings.seed)
    data = synthetic.SyntheticClasses.create(
        classes=settings.n_classes, dx=settings.dims, da=min(128, settings.dims), rng=rng
    )
    synthetic.write_classes(root / "classes.parquet", data)
    for name, classes, share in (
        ("train", np.flatnonzero(data.seen), 0.6),
        ("test", np.arange(settings.n_classes), 0.4),
    ):
        synthetic.write_features(
            root / "features" / name,
            data,
            classes=classes,
            images=int(share * settings.images),
            shards=8,
            name=name,
            rng=rng,
        )


def _summary(
    settings: DemoSettings,
    root: Path,
    results: dict[str, dict[str, Any]],
    times: dict[str, float],
    figures: int | None,
) -> str:
    images, ratio = results["codes"]["images"], 4 * settings.dims / settings.M
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in times.items())
    files = [
        ("features/", "the generated feature store"),
        ("classes.parquet", "its classes"),
        ("model/", "model.safetensors and model.json"),
        ("codes/", "the code store: data/ and snapshots/"),
        ("predictions/", "top-10 classes of every image, from the codes and from the features"),
        ("results/", "all scores, as JSON"),
    ]
    if figures:
        files.append(("report.html", f"tables and {figures} figures: open it in a browser"))
    return "\n".join(
        [
            _scores(settings, results),
            "",
            f"{images:,} images encoded, {ratio:.0f}× smaller than float32. {seconds}.",
            "",
            *(f"  {root / name}  {content}" for name, content in files),
        ]
    )


def _scores(settings: DemoSettings, results: dict[str, dict[str, Any]]) -> str:
    """A row for the exact features, and for codes of each size."""
    sizes = {"exact": settings.dims, "codes": settings.M}
    sizes |= {f"smaller-{M}": M for M in sorted(settings.smaller, reverse=True)}
    rows = []
    for name, M in sizes.items():
        scores = results[name]
        size = 4 * M if name == "exact" else bytes_per_code(M, 256)
        values = [scores["zsl"], scores["ts"], scores["tr"], scores["H"]]
        values += [scores["calibrated"]["best_H"], scores["top1"].get("hit@10", float("nan"))]
        label = "exact features" if name == "exact" else f"codes, M = {M}"
        rows.append([label, f"{size:,}", *(f"{value:.3f}" for value in values)])
    return plain_table(
        ["PQZSL, cosine", "bytes an image", "ZSL", "ts", "tr", "H", "H at the best γ", "hit@10"],
        rows,
        title="Generated data: the scores show that it works, not how good it is.",
    )
