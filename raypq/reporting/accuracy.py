"""Evaluations of classification: accuracy, its loss by quantization, and accuracy by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raypq.reporting import charts
from raypq.reporting.charts import Chart
from raypq.reporting.findings import Findings, Named, image_bytes
from raypq.reporting.tables import Table, count, share

_FIGURES = (("ZSL", "zsl"), ("ts", "ts"), ("tr", "tr"), ("H", "H"))
_WORST = 15


def title_of(item: Named) -> str:
    """Method and code size of an evaluation, in words."""
    models = list(item.content.get("models", {}).values())
    methods = "+".join(sorted({str(model["method"]) for model in models}))
    if not item.content.get("compressed"):
        return f"{methods} exact" if methods else item.name
    widths = sorted({model["M"] for model in models})
    return f"{methods} codes, M = {', '.join(map(str, widths))}" if widths else item.name


def headline(findings: Findings) -> list[tuple[str, str]]:
    """Key scores of the best evaluation of codes, or of features where there is none."""
    coded = [item for item in findings.evaluations if item.content.get("compressed")]
    candidates = coded or findings.evaluations
    scores: list[tuple[str, str]] = []
    if candidates:
        best = max(candidates, key=lambda item: _figure(item, "H") or _hit(item) or 0.0)
        scores.append((title_of(best), "best by H" if _figure(best, "H") else "best"))
        if (width := image_bytes(best.content, findings.models)) is not None:
            scores.append((f"{width:,.0f} bytes", "of an image, without its id"))
        known = [
            4 * findings.models[name].content["model"]["dx"] / width
            for name in best.content.get("models", {})
            if width and name in findings.models
        ]
        if known and best.content.get("compressed"):
            scores.append((f"{max(known):,.0f}×", "smaller than float32"))
        for label, key in (("ZSL", "zsl"), ("H", "H")):
            if (value := _figure(best, key)) is not None:
                scores.append((share(value), label))
        if best_H := best.content.get("calibrated", {}).get("best_H"):
            scores.append((share(best_H), "H at the best γ"))
        if _figure(best, "H") is None and (hit := _hit(best)) is not None:
            scores.append((share(hit), "hit@1"))
        scores.append((count(best.content["images"]), "images evaluated"))
    return scores


def _figure(item: Named, key: str) -> float | None:
    value = item.content.get(key)
    return None if value is None else float(value)


def _hit(item: Named) -> float | None:
    value = item.content["top1"].get("hit@1")
    return None if value is None else float(value)


def overview(findings: Findings) -> tuple[list[Table], list[Chart]]:
    """One row per evaluation, and one of its calibration."""
    rows: list[list[Any]] = []
    calibrated: list[list[Any]] = []
    for item in _sorted(findings):
        content = item.content
        rows.append(
            [
                title_of(item), content.get("candidates"), content.get("split"),
                count(content["images"]), count(image_bytes(content, findings.models)),
                *(share(content.get(key)) for _, key in _FIGURES),
                *(share(content["top1"].get(f"hit@{k}")) for k in (1, 5, 10)),
                item.name,
            ]
        )  # fmt: skip
        if fit := content.get("calibrated"):
            calibrated.append(
                [
                    title_of(item), share(content.get("uncalibrated", content).get("H")),
                    share(fit.get("best_H")), share(fit.get("H")), share(fit.get("ausuc")),
                    item.name,
                ]
            )  # fmt: skip
    if not rows:
        return [], []
    head = ["", "candidates", "evaluated", "images", "bytes of a code or features",
            *(name for name, _ in _FIGURES), "hit@1", "hit@5", "hit@10", "file"]  # fmt: skip
    tables = [Table(title="Evaluations", head=head, rows=rows, words=(0, 1, 2, 12))]
    if calibrated:
        head = ["", "H without γ", "H at the best γ", "H at the model's γ", "area under the curve",
                "file"]  # fmt: skip
        note = "The best γ is chosen on the evaluated images: a bound, not a result."
        tables.append(
            Table(title="Calibration", head=head, rows=calibrated, words=(0, 5), note=note)
        )
    return tables, []


def _sorted(findings: Findings) -> list[Named]:
    """Evaluations, uncompressed first, then by bytes per image, largest first."""
    return sorted(
        findings.evaluations,
        key=lambda item: (
            bool(item.content.get("compressed")),
            -(image_bytes(item.content, findings.models) or 0.0),
            item.place,
        ),
    )


def quantization(findings: Findings) -> tuple[list[Table], list[Chart]]:
    """Accuracy over quantization loss and over bytes per image; and the scores as a table."""
    points = [_point(item, findings) for item in _sorted(findings)]
    coded = [point for point in points if point["compressed"]]
    keys = [(label, key) for label, key in (*_FIGURES, ("hit@1", "hit@1")) if _has(coded, key)]
    if any(key == "H" for _, key in keys):
        keys = [pair for pair in keys if pair[1] != "hit@1"]
    if len({point["bytes"] for point in coded}) < 2 or not keys:
        return [], []
    drawn = []
    with_loss = [point for point in points if point["loss"] is not None]
    if len({point["loss"] for point in with_loss}) > 1:
        drawn.append(
            _curve(
                with_loss, keys, "loss", "loss", "Accuracy against quantization loss",
                "Loss: mean ‖u − q(u)‖² of the encoded images, divided by the mean ‖u‖². "
                "Uncompressed features have none.",
                x="quantization loss", log_x=False,
            )
        )  # fmt: skip
    drawn.append(
        _curve(
            [point for point in points if point["bytes"]], keys, "bytes", "bytes",
            "Accuracy against bytes an image",
            "The rightmost points are uncompressed float32 features, if evaluated.",
            x="bytes an image", log_x=True,
        )
    )  # fmt: skip
    head = [
        "",
        "M",
        "bytes of a code or features",
        "quantization loss",
        *(label for label, _ in keys),
    ]
    rows = [
        [
            point["title"], point["M"], count(point["bytes"]), share(point["loss"]),
            *(share(point.get(key)) for _, key in keys),
        ]
        for point in points
    ]  # fmt: skip
    return [Table(title="The same as a table", head=head, rows=rows)], drawn


def _has(points: Sequence[Mapping[str, Any]], key: str) -> bool:
    return bool(points) and all(point.get(key) is not None for point in points)


def _point(item: Named, findings: Findings) -> dict[str, Any]:
    content = item.content
    losses = [findings.loss(name) for name in content.get("models", {})]
    compressed = bool(content.get("compressed"))
    known = [value for value in losses if value is not None]
    loss: float | None = 0.0
    if compressed:
        loss = sum(known) / len(known) if known and len(known) == len(losses) else None
    widths = {str(model["M"]) for model in content.get("models", {}).values()}
    return {
        "title": title_of(item),
        "compressed": compressed,
        "M": ", ".join(sorted(widths)) if compressed else "–",
        "bytes": image_bytes(content, findings.models),
        "loss": loss,
        "hit@1": content["top1"].get("hit@1"),
        **{key: content.get(key) for _, key in _FIGURES},
    }


def _curve(
    points: Sequence[Mapping[str, Any]],
    keys: Sequence[tuple[str, str]],
    over: str,
    name: str,
    title: str,
    caption: str,
    *,
    x: str,
    log_x: bool,
) -> Chart:
    series = {}
    for label, key in keys:
        series_points = sorted((p[over], p[key]) for p in points if p.get(key) is not None)
        series[label] = ([at for at, _ in series_points], [value for _, value in series_points])
    top = {p[over]: max(p[key] for _, key in keys if p.get(key) is not None) for p in points}
    notes = [(p[over], top[p[over]], f"M={p['M']}" if p["compressed"] else "exact") for p in points]
    return charts.lines(
        name, title, caption, series, x=x, y="accuracy", log_x=log_x, notes=notes, from_zero=True
    )


def classes(findings: Findings) -> tuple[list[Table], list[Chart]]:
    """Accuracy by class of the best evaluation that lists its classes: chart, worst, confusions."""
    listed = [item for item in findings.evaluations if item.content.get("per_class")]
    if not listed:
        return [], []
    coded = [item for item in listed if item.content.get("compressed")]
    item = max(coded or listed, key=lambda entry: _figure(entry, "H") or _hit(entry) or 0.0)
    per_class = item.content["per_class"]
    groups: dict[str, list[float]] = {}
    for row in per_class:
        name = {True: "seen classes", False: "unseen classes", None: "classes"}[row["seen"]]
        groups.setdefault(name, []).append(row["hit@1"])
    chart = charts.ranked(
        "classes",
        "Accuracy by class",
        f"{title_of(item)}: share of each class's images that are right at top 1, best class "
        "first.",
        {name: groups[name] for name in sorted(groups)},
        x="classes, best first (%)",
        y="right at top 1",
    )
    worst = sorted(per_class, key=lambda row: (row["hit@1"], -row["images"], row["class_id"]))
    rows = [
        [row["name"], row["class_id"], {True: "seen", False: "unseen", None: ""}[row["seen"]],
         count(row["images"]), share(row["hit@1"])]
        for row in worst[:_WORST]
    ]  # fmt: skip
    tables = [
        Table(
            title="Classes that are recognised worst",
            head=["class", "class_id", "group", "images", "right at top 1"],
            rows=rows,
            words=(0, 1, 2),
        )
    ]
    if pairs := item.content.get("confusions"):
        images = {row["class_id"]: row["images"] for row in per_class}
        rows = [
            [row["name"], row["answer"], count(row["images"]),
             share(row["images"] / images[row["class_id"]]) if row["class_id"] in images else "–"]
            for row in pairs[:_WORST]
        ]  # fmt: skip
        tables.append(
            Table(
                title="Most frequent confusions",
                head=["images of", "are taken for", "images", "of the class"],
                rows=rows,
                words=(0, 1),
            )
        )
    return tables, [chart]
