"""What evaluations tell: accuracy, what quantization costs, and how classes differ."""

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
    """What an evaluation judged, in words."""
    models = list(item.content.get("models", {}).values())
    methods = "+".join(sorted({str(told["method"]) for told in models}))
    if not item.content.get("compressed"):
        return f"{methods} exact" if methods else item.name
    widths = sorted({told["M"] for told in models})
    return f"{methods} codes, M = {', '.join(map(str, widths))}" if widths else item.name


def headline(found: Findings) -> list[tuple[str, str]]:
    """The evaluation that compresses and does best, in a few figures."""
    coded = [item for item in found.evaluations if item.content.get("compressed")]
    judged = coded or found.evaluations
    told: list[tuple[str, str]] = []
    if judged:
        best = max(judged, key=lambda item: _figure(item, "H") or _hit(item) or 0.0)
        told.append((title_of(best), "best by H" if _figure(best, "H") else "best"))
        if (width := image_bytes(best.content, found.models)) is not None:
            told.append((f"{width:,.0f} bytes", "an image"))
        known = [
            4 * found.models[name].content["model"]["dx"] / width
            for name in best.content.get("models", {})
            if width and name in found.models
        ]
        if known and best.content.get("compressed"):
            told.append((f"{max(known):,.0f}×", "smaller than float32"))
        for label, key in (("ZSL", "zsl"), ("H", "H")):
            if (value := _figure(best, key)) is not None:
                told.append((share(value), label))
        if best_H := best.content.get("calibrated", {}).get("best_H"):
            told.append((share(best_H), "H at the best γ"))
        if _figure(best, "H") is None and (hit := _hit(best)) is not None:
            told.append((share(hit), "hit@1"))
        told.append((count(best.content["images"]), "images judged"))
    return told


def _figure(item: Named, key: str) -> float | None:
    value = item.content.get(key)
    return None if value is None else float(value)


def _hit(item: Named) -> float | None:
    value = item.content["top1"].get("hit@1")
    return None if value is None else float(value)


def overview(found: Findings) -> tuple[list[Table], list[Chart]]:
    """One row an evaluation."""
    rows: list[list[Any]] = []
    for item in _sorted(found):
        told = item.content
        fit = told.get("calibrated", {})
        rows.append(
            [
                title_of(item), told.get("candidates"), told.get("split"), count(told["images"]),
                count(image_bytes(told, found.models)),
                *(share(told.get(key)) for _, key in _FIGURES),
                share(fit.get("best_H")), share(fit.get("H")), share(fit.get("ausuc")),
                *(share(told["top1"].get(f"hit@{k}")) for k in (1, 5, 10)),
                item.name,
            ]
        )  # fmt: skip
    if not rows:
        return [], []
    head = ["", "candidates", "judged", "images", "bytes an image", *(name for name, _ in _FIGURES),
            "H at the best γ", "H at the model's γ", "area under the curve",
            "hit@1", "hit@5", "hit@10", "file"]  # fmt: skip
    note = "The best γ is chosen on the images that are judged: a bound, not a result."
    return [Table(title="Evaluations", head=head, rows=rows, words=(0, 1, 2, 15), note=note)], []


def _sorted(found: Findings) -> list[Named]:
    """Uncompressed first, then by bytes, most first."""
    return sorted(
        found.evaluations,
        key=lambda item: (
            bool(item.content.get("compressed")),
            -(image_bytes(item.content, found.models) or 0.0),
            item.place,
        ),
    )


def quantization(found: Findings) -> tuple[list[Table], list[Chart]]:
    """Accuracy over loss and over bytes; and the figures as a table."""
    points = [_point(item, found) for item in _sorted(found)]
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
                "Loss: mean ‖u − q(u)‖² of the encoded images, in parts of the mean ‖u‖². "
                "Uncompressed features have none.",
                x="quantization loss", log_x=False,
            )
        )  # fmt: skip
    drawn.append(
        _curve(
            [point for point in points if point["bytes"]], keys, "bytes", "bytes",
            "Accuracy against bytes an image",
            "The rightmost points are uncompressed float32 features, where they were judged.",
            x="bytes an image", log_x=True,
        )
    )  # fmt: skip
    head = ["", "M", "bytes an image", "quantization loss", *(label for label, _ in keys)]
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


def _point(item: Named, found: Findings) -> dict[str, Any]:
    told = item.content
    losses = [found.loss(name) for name in told.get("models", {})]
    compressed = bool(told.get("compressed"))
    known = [value for value in losses if value is not None]
    loss: float | None = 0.0
    if compressed:
        loss = sum(known) / len(known) if known and len(known) == len(losses) else None
    widths = {str(one["M"]) for one in told.get("models", {}).values()}
    return {
        "title": title_of(item),
        "compressed": compressed,
        "M": ", ".join(sorted(widths)) if compressed else "–",
        "bytes": image_bytes(told, found.models),
        "loss": loss,
        "hit@1": told["top1"].get("hit@1"),
        **{key: told.get(key) for _, key in _FIGURES},
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
        here = sorted((p[over], p[key]) for p in points if p.get(key) is not None)
        series[label] = ([at for at, _ in here], [value for _, value in here])
    top = {p[over]: max(p[key] for _, key in keys if p.get(key) is not None) for p in points}
    notes = [(p[over], top[p[over]], f"M={p['M']}" if p["compressed"] else "exact") for p in points]
    return charts.lines(
        name, title, caption, series, x=x, y="accuracy", log_x=log_x, notes=notes, from_zero=True
    )


def classes(found: Findings) -> tuple[list[Table], list[Chart]]:
    """Of the best evaluation that lists its classes: their spread, the worst, the confusions."""
    listed = [item for item in found.evaluations if item.content.get("per_class")]
    if not listed:
        return [], []
    coded = [item for item in listed if item.content.get("compressed")]
    item = max(coded or listed, key=lambda one: _figure(one, "H") or _hit(one) or 0.0)
    every = item.content["per_class"]
    groups: dict[str, list[float]] = {}
    for one in every:
        name = {True: "seen classes", False: "unseen classes", None: "classes"}[one["seen"]]
        groups.setdefault(name, []).append(one["hit@1"])
    spread = charts.ranked(
        "classes",
        "Accuracy by class",
        f"{title_of(item)}: share of each class's images that are right at top 1, best class "
        "first.",
        {name: groups[name] for name in sorted(groups)},
        x="classes, best first (%)",
        y="right at top 1",
    )
    worst = sorted(every, key=lambda one: (one["hit@1"], -one["images"], one["class_id"]))
    rows = [
        [one["name"], one["class_id"], {True: "seen", False: "unseen", None: ""}[one["seen"]],
         count(one["images"]), share(one["hit@1"])]
        for one in worst[:_WORST]
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
        images = {one["class_id"]: one["images"] for one in every}
        rows = [
            [one["name"], one["answer"], count(one["images"]),
             share(one["images"] / images[one["class_id"]]) if one["class_id"] in images else "–"]
            for one in pairs[:_WORST]
        ]  # fmt: skip
        tables.append(
            Table(
                title="Most frequent confusions",
                head=["images of", "are taken for", "images", "of the class"],
                rows=rows,
                words=(0, 1),
            )
        )
    return tables, [spread]
