"""Ablations of the learned quantizers: one variant after another on the same rows and queries.

    DPQ   trained on the whole labelled store, which is also the database; a second database is
          made of the test rows that are neither queries nor training rows
    GPQ   protocol 1: some labelled rows of each class, the others are unlabelled and the database

Queries are test rows drawn with seed 0, whatever the seed of training. Without a test store a
tenth of the training rows is held out instead: settings are chosen on it, and then evaluated on the
test rows.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypq import api, console, kernels
from raypq.bench.harness import machine
from raypq.config import AblationJob, Columns, SplitJob, TrainJob
from raypq.data import result_file
from raypq.data.features import read_batches
from raypq.data.storage import join, json_text
from raypq.data.store import overlap
from raypq.data.store.sources import open_sources
from raypq.errors import InputError
from raypq.methods.base import Model
from raypq.methods.gpq import AS_PUBLISHED as GPQ_AS_PUBLISHED
from raypq.metrics.ranking import mean_average_precision
from raypq.text_tables import markdown_table

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A row of a table: settings that differ from the defaults."""

    label: str
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A table: a method and its variants."""

    method: str
    variants: Sequence[Variant]


def _each(name: str, values: Sequence[float], others: Settings) -> list[Variant]:
    return [
        Variant(label=f"{name} {value:g}", settings={**others, name: value}) for value in values
    ]


_BITS_32 = {"M": 8, "K": 16}
_BITS_48 = {"M": 12, "K": 16}
# DPQ's codes trained by labels, as in the paper.
_LABELS = {"codes": "parts", "head": 0.0, "weight_decay": 0.0, "feature_dropout": 0.0}
_PAPER_32 = {**_BITS_32, **GPQ_AS_PUBLISHED}

TABLES: Mapping[str, Ablation] = {
    "dpq-bits": Ablation(
        method="dpq",
        variants=[
            Variant(label="12 bits, M=2, K=64", settings={"M": 2, "K": 64}),
            Variant(label="32 bits, M=4, K=256"),
            Variant(label="48 bits, M=8, K=64", settings={"M": 8, "K": 64}),
        ],
    ),
    "dpq-central": Ablation(
        method="dpq", variants=_each("central", [0, 0.03, 0.1, 0.3, 1, 2], _LABELS)
    ),
    "dpq-gini": Ablation(
        method="dpq",
        variants=[
            Variant(label="all terms", settings=_LABELS),
            Variant(label="no Gini batch", settings={**_LABELS, "gini_batch": 0}),
            Variant(label="no Gini sample", settings={**_LABELS, "gini_sample": 0}),
            Variant(label="neither", settings={**_LABELS, "gini_batch": 0, "gini_sample": 0}),
        ],
    ),
    "gpq-bits": Ablation(
        method="gpq",
        variants=[
            Variant(label="32 bits, M=8, K=16", settings=_BITS_32),
            Variant(label="48 bits, M=12, K=16", settings=_BITS_48),
        ],
    ),
    "gpq-terms": Ablation(
        method="gpq",
        variants=[
            Variant(label="defaults", settings=_BITS_32),
            Variant(label="no distil", settings={**_BITS_32, "distil": 0}),
            Variant(label="GPQ", settings=_PAPER_32),
            Variant(label="no entropy term", settings={**_PAPER_32, "lambda2": 0}),
            Variant(label="GPQ-H", settings={**_PAPER_32, "lambda1": 0, "lambda2": 0}),
            Variant(label="GPQ-T", settings={**_PAPER_32, "similarity": "triplet"}),
        ],
    ),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Rows of a store in memory: X [n, dx] and their class_ids y [n]."""

    X: NDArray[np.float32]
    y: NDArray[np.str_]

    @classmethod
    def read(cls, uri: str, columns: Columns) -> Rows:
        """All rows of a labelled store."""
        X, y = [], []
        for shard in open_sources([uri], columns).shards:
            for batch in read_batches(shard, columns, width=None):
                assert batch.labels is not None, "a split store is labelled"
                X.append(batch.X)
                y.append(batch.labels.to_numpy(zero_copy_only=False).astype(str))
        # Ties go to the lower row, and files often follow the labels.
        order = np.random.default_rng(0).permutation(sum(len(part) for part in y))
        return cls(X=np.concatenate(X)[order], y=np.concatenate(y)[order])


def run(job: AblationJob) -> tuple[list[dict[str, Any]], str]:
    """Runs every variant with every seed, and makes their table; rows of the JSON file are kept.

    Raises:
        RaypqError: data or settings that do not fit.
    """
    overlap.refuse(job)
    known = _known(job.json_file)
    new_rows = []
    for row in _rows(job, known):
        new_rows.append(row)
        if job.json_file:
            document = {**machine(job.where.threads), "rows": [*known, *new_rows]}
            result_file.write(job.json_file, document)
    rows = [*known, *new_rows]
    return rows, _table(job, rows)


def _known(file: str | None) -> list[dict[str, Any]]:
    if not file or not Path(file).exists():
        return []
    try:
        rows: list[dict[str, Any]] = json_text.parse(Path(file).read_bytes())["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            file,
            expected="rows of an ablation before, to go on from (or name a new file)",
            found=f"no key {error}" if isinstance(error, KeyError) else str(error),
        ) from None
    return rows


def _rows(job: AblationJob, known: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    ablation = TABLES[job.name]
    done = {(row["name"], row["label"], row["seed"]) for row in known}
    for seed in range(job.seeds):
        missing = [v for v in ablation.variants if (job.name, v.label, seed) not in done]
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as folder:
            parts = _parts(job, ablation.method, seed, folder)
            for variant in missing:
                yield _one(job, variant, seed, parts, f"{folder}/{variant.label}")


def _parts(job: AblationJob, method: str, seed: int, folder: str) -> dict[str, list[str]]:
    """The stores of one seed by their role."""

    def cut(name: str, **changes: Any) -> str:
        place = f"{folder}/{name}"
        api.split(
            SplitJob(
                protocol=1,
                output=place,
                columns=job.columns,
                where=job.where.without_gpus(),
                **changes,
            )
        )
        return place

    if job.test:
        test_parts = cut("test", features=job.train, test=job.test, queries=job.queries)
        train = [join(test_parts, "labelled")]
    else:
        rows = sum(len(Rows.read(uri, job.columns).y) for uri in job.train) // 10
        first = cut("held-out", features=job.train, queries=rows)
        train, held_out = [join(first, "labelled")], [join(first, "queries")]
        test_parts = cut("test", features=train, test=held_out, queries=job.queries)
    parts = {"queries": [join(test_parts, "queries")], "other": [join(test_parts, "other")]}
    if method == "dpq":
        return {**parts, "train": train, "database": train, "unlabelled": []}
    few = cut("protocol-1", features=train, queries=0, labelled=job.labelled, seed=seed)
    rest = [join(few, "unlabelled")]
    return {**parts, "train": [join(few, "labelled")], "database": rest, "unlabelled": rest}


def _one(
    job: AblationJob, variant: Variant, seed: int, parts: Mapping[str, list[str]], output: str
) -> dict[str, Any]:
    ablation = TABLES[job.name]
    settings = {"seed": seed, **variant.settings, **job.settings}
    start = time.monotonic()
    trained = api.train(
        TrainJob(
            method=ablation.method,
            features=parts["train"],
            unlabelled=parts["unlabelled"],
            classes=job.classes,
            output=output,
            settings=settings,
            columns=job.columns,
            where=job.where,
        )
    )
    seconds = time.monotonic() - start
    queries = Rows.read(parts["queries"][0], job.columns)
    figures: dict[str, float] = {}
    for name in ("database", "other"):
        stored = Rows.read(parts[name][0], job.columns)
        figures |= {f"{name}_{key}": value for key, value in ranked(trained.model, queries, stored)}
    row = {
        "name": job.name,
        "label": variant.label,
        "seed": seed,
        **figures,
        **classified(trained.model, queries, Rows.read(parts["other"][0], job.columns)),
        "train_seconds": seconds,
        "settings": trained.model.settings.model_dump(mode="json"),
    }
    plain = {key: round(value, 4) for key, value in row.items() if isinstance(value, float)}
    console.say(f"{job.name}: {variant.label}, seed {seed}: {plain}")
    return row


def ranked(model: Model, queries: Rows, stored: Rows) -> Iterator[tuple[str, float]]:
    """mAP over the full ranking, asymmetric and symmetric; ties go to the lower row."""
    B, which = np.unique(model.encode(stored.X), axis=0, return_inverse=True)
    names, row_label = np.unique(stored.y, return_inverse=True)
    place = np.searchsorted(names, queries.y).clip(max=len(names) - 1)
    query_label = np.where(names[place] == queries.y, place, -1)
    vectors = {"adc": model.queries(queries.X), "sdc": model.code_queries(model.encode(queries.X))}
    for name, V in vectors.items():
        score = partial(_scores, model.tables(V), model.decode(B), which)
        yield name, mean_average_precision(score, query_label, row_label)
    yield "codes", float(len(B))


def _scores(
    tables: kernels.Tables, q: NDArray[np.float32], which: NDArray[np.int64], part: slice
) -> NDArray[np.float64]:
    """Scores [t, N] of some queries, computed once for each code, so that equal ones tie."""
    scale, offset = tables.row_terms(kernels.tables.squared_norms(q))
    dot = tables.W[part].astype(np.float64) @ q.T.astype(np.float64)
    scores: NDArray[np.float64] = (dot * scale + offset) + tables.bias[part, None]
    return scores[:, which]


def classified(model: Model, *several: Rows) -> dict[str, float]:
    """Top-1 of the class layer over all test rows, from codes and from embedded features."""
    if model.classes is None:
        return {}
    V, bias = model.class_prototypes(model.classes)
    X, y = (np.concatenate([getattr(rows, name) for rows in several]) for name in "Xy")
    names = np.asarray(model.classes)

    def top1(U: NDArray[np.float32]) -> float:
        return float(np.mean(names[(U @ V.T + bias).argmax(axis=1)] == y))

    return {"top1_codes": top1(model.decode(model.encode(X))), "top1_float": top1(model.embed(X))}


_SHOWN = {
    "database_adc": "mAP ADC",
    "database_sdc": "mAP SDC",
    "other_adc": "unseen ADC",
    "other_sdc": "unseen SDC",
    "top1_codes": "top-1 codes",
    "top1_float": "top-1 float",
    "database_codes": "distinct codes",
}


def _table(job: AblationJob, rows: Sequence[Mapping[str, Any]]) -> str:
    """The scores in Markdown: mean ± standard deviation over the seeds."""
    lines = []
    for variant in TABLES[job.name].variants:
        mine = [r for r in rows if (r["name"], r["label"]) == (job.name, variant.label)]
        cells = [_cell([r[key] for r in mine if key in r]) for key in _SHOWN]
        lines.append([variant.label, *cells])
    return markdown_table(["", *_SHOWN.values()], lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    form = ".0f" if max(values) > 1 else ".4f"
    mean = format(float(np.mean(values)), form)
    return mean if len(values) == 1 else f"{mean} ± {format(float(np.std(values, ddof=1)), form)}"
