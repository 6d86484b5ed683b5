"""The chapters of the page: which findings go into which table and figure.

A chapter without findings is left out, and named at the end with the command that would fill it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from raypq.data.codes import bytes_per_code
from raypq.reporting import accuracy, cards, health, nights, picture_chapters, retrieval, runs
from raypq.reporting.charts import Chart
from raypq.reporting.findings import Findings, shorten
from raypq.reporting.picture_chapters import Parts, PictureSource
from raypq.reporting.pictures import Gallery
from raypq.reporting.tables import Table, count, moment, share, size


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """A heading, an introduction, and tables, charts or pictures.

    Attributes:
        note: about the pictures.
    """

    id: str
    title: str
    lead: str = ""
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    galleries: Sequence[Gallery] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Content of the page.

    Attributes:
        headline: key scores: value, name. absent: chapters without inputs, and the command that
            makes them. sources: kind and path of every input.
    """

    headline: Sequence[tuple[str, str]]
    chapters: Sequence[Chapter]
    absent: Sequence[tuple[str, str]]
    sources: Sequence[tuple[str, str]]
    unused: Sequence[tuple[str, str]] = field(default_factory=list)


_ACCURACY = (
    "Means over classes. ZSL: images of unseen classes among unseen classes. ts and tr: unseen and "
    "seen images among all classes, H their harmonic mean. Calibrated: a constant γ is subtracted "
    "from the scores of seen classes."
)
_SPEED = (
    "How many times faster classifying codes is than the dense product of uncompressed vectors and "
    "a top-k, after figure 4b of the PQZSL paper."
)

_CHAPTERS: Sequence[tuple[str, str, str, Callable[[Findings], Parts], str]] = (
    (
        "settings",
        "Settings and data",
        "Trained models and stored data.",
        lambda findings: ([*_models(findings), *_stores(findings)], ()),
        "raypq train, raypq encode",
    ),
    (
        "health",
        "Health of the latest runs",
        "Whether anything needs a look.",
        health.chapter,
        "a store",
    ),
    (
        "nights",
        "Nights over time",
        "What each night added, changed, removed and left out, and the roll-out of a new model.",
        nights.chapter,
        "raypq reindex",
    ),
    (
        "accuracy",
        "Accuracy",
        _ACCURACY,
        accuracy.overview,
        "raypq evaluate classification --json FILE",
    ),
    (
        "quantization",
        "Accuracy against quantization",
        "Accuracy lost by compressing, after figure 4a of the PQZSL paper.",
        accuracy.quantization,
        "evaluations of code stores with several M, and the stores",
    ),
    (
        "speed",
        "Speed against a dense search",
        _SPEED,
        runs.ratio,
        "raypq bench ratio --json FILE",
    ),
    (
        "classes",
        "Classes",
        "Accuracy by class, and the most frequent confusions.",
        accuracy.classes,
        "raypq evaluate classification --json FILE",
    ),
    (
        "codewords",
        "Codeword usage",
        "Codewords that are never used are bytes wasted.",
        runs.codewords,
        "a code store",
    ),
    (
        "retrieval",
        "Retrieval",
        "How well rankings of the whole store agree with labels and with exact search.",
        retrieval.chapter,
        "raypq evaluate retrieval --json FILE",
    ),
    (
        "training",
        "Training",
        "Objective and quantization error by pass over the data.",
        runs.training,
        "a model that was trained by reduction",
    ),
    (
        "drift",
        "Drift",
        "Whether encoded shards still look to the model as its training data did.",
        runs.drift,
        "a code store with figures of its shards",
    ),
    (
        "throughput",
        "Throughput",
        "Rates of each store's latest run, without the start of its workers.",
        runs.throughput,
        "a store",
    ),
)


def write(findings: Findings, pictures: PictureSource | None = None) -> Report:
    """Everything that can be said of the findings, and shown of their images.

    Raises:
        InputError: see ``picture_chapters.make``.
    """
    chapters, absent = [], []
    for name, title, lead, make, filled_by in _CHAPTERS:
        tables, charts = make(findings)
        if tables or charts:
            chapters.append(Chapter(id=name, title=title, lead=lead, tables=tables, charts=charts))
        else:
            absent.append((title, filled_by))
    for shown in picture_chapters.make(findings, pictures):
        if shown.galleries:
            tables, charts = shown.figures(findings) if shown.figures else ((), ())
            chapters.append(
                Chapter(
                    id=shown.id, title=shown.title, lead=shown.lead, tables=tables, charts=charts,
                    galleries=shown.galleries, note=shown.note,
                )
            )  # fmt: skip
        else:
            absent.append((shown.title, shown.filled_by))
    sources = findings.sources()
    sources += [("images", place) for place in (pictures.images if pictures else ())]
    short = shorten([place for _, place in [*sources, *findings.unused]])
    return Report(
        headline=[*accuracy.headline(findings), *cards.cards(findings)],
        chapters=chapters,
        absent=absent,
        sources=[(kind, short[place]) for kind, place in sources],
        unused=[(place, why) for place, why in findings.unused],
    )


def _models(findings: Findings) -> list[Table]:
    rows: list[list[Any]] = []
    short = shorten([item.place for item in findings.models.values()])
    for fingerprint, item in sorted(findings.models.items(), key=lambda pair: pair[1].place):
        summary, record = item.content["model"], item.content.get("record", {})
        settings = summary.get("settings", {})
        width = bytes_per_code(summary["M"], summary["K"])
        rows.append(
            [
                f"{summary['method']} {fingerprint[:8]}", summary["M"], summary["K"], summary["D"],
                summary["dx"], summary["metric"], count(record.get("images")), width,
                f"{4 * summary['dx'] / width:,.0f}×", share(record.get("calibration")),
                settings.get("seed"), short[item.place],
            ]
        )  # fmt: skip
    head = ["model", "M", "K", "D", "dx", "metric", "trained on images", "bytes of a code",
            "smaller by", "γ", "seed", "place"]  # fmt: skip
    note = (
        "Bytes of a code: one for each of the M sub-codebooks, half of one where K ≤ 16. Smaller "
        "by: than dx values of float32."
    )
    return (
        [Table(title="Models", head=head, rows=rows, words=(0, 5, 11), wraps=(11,), note=note)]
        if rows
        else []
    )


def _stores(findings: Findings) -> list[Table]:
    rows: list[list[Any]] = []
    short = shorten([store.place for store in findings.stores])
    for store in findings.stores:
        latest = store.latest
        stored = latest.shards.totals.bytes
        models = sorted({model[:8] for model in latest.shards.totals.models})
        rows.append(
            [
                short[store.place], store.kind, latest.version, moment(latest.created),
                count(latest.rows),
                count(len(latest.shards)), size(stored), f"{stored / max(latest.rows, 1):.1f}",
                ", ".join(models), len(latest.quarantined),
            ]
        )  # fmt: skip
    head = ["store", "of", "version", "made (UTC)", "images", "shards", "bytes",
            "bytes of an image", "models", "left out"]  # fmt: skip
    note = (
        "Bytes of an image: of its row in the files, compressed: a code with its id and label, or "
        "the ids and scores of its results. Left out: shards."
    )
    return (
        [Table(title="Stores", head=head, rows=rows, words=(0, 1, 3, 8), note=note)] if rows else []
    )
