"""Output of the evaluations: a short table of scores. All scores, and the record of the run, are in
the JSON file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from raypq import console
from raypq.cli.options import PLACE, show
from raypq.text_tables import plain_table

json_file = click.option(
    "--json",
    "json_file",
    type=PLACE,
    help="Write everything here as JSON; - prints that instead of the table.",
)


def output(
    result: dict[str, Any], path: str | None, table: Callable[[dict[str, Any]], str]
) -> None:
    """Writes the scores to a file if one is named, and prints them as a table."""
    from raypq.data import result_file

    if console.structured():
        if path and path != "-":
            result_file.write(path, result)
        show(result)
        return
    if path == "-":
        console.emit(result_file.text_of(result))
        return
    if path:
        result_file.write(path, result)
    console.emit(table(result))


def classification(result: dict[str, Any]) -> str:
    """Accuracy of all, seen and unseen classes, then the generalized zero-shot scores."""
    metrics = [key for key in result["top1"] if key.startswith("hit@") and "mean" not in key]
    groups = [
        [
            name,
            f"{scores['classes']:,}",
            f"{scores['images']:,}",
            *(_share(scores.get(metric)) for metric in metrics),
        ]
        for name, key in (("all", "top1"), ("seen", "seen"), ("unseen", "unseen"))
        if (scores := result.get(key))
    ]
    about = (
        f"{result['images']:,} images, candidates {result['candidates']}, "
        f"evaluated: {result['split']}"
    )
    parts = [
        f"{result['predictions']}, version {result['version']}\n{about}",
        plain_table(["mean of the classes", "classes", "images", *metrics], groups),
    ]
    curve = result.get("calibrated", {})
    applied = result.get("applied_gamma")
    name = "as predicted" if applied is None else f"as predicted, {_gamma(applied)}"
    rows = [[name, *(_share(result.get(key)) for key in ("zsl", "ts", "tr", "H"))]]
    if plain := result.get("uncalibrated"):
        rows.append(["without calibration", "", *(_share(plain[key]) for key in ("ts", "tr", "H"))])
    if "gamma" in curve and curve["gamma"] != applied:
        rows.append(
            [_gamma(curve["gamma"]), "", *(_share(curve[key]) for key in ("ts", "tr", "H"))]
        )
    if "best_H" in curve:
        rows.append([f"the best γ, {curve['best_gamma']:.4g}", "", "", "", _share(curve["best_H"])])
    if any(any(row[1:]) for row in rows):
        parts.append(plain_table(["zero-shot", "ZSL", "ts", "tr", "H"], rows))
    if "ausuc" in curve:
        parts.append(
            f"Area under the seen-unseen curve: {curve['ausuc']:.3f}. "
            "The best γ is chosen on these images: a bound, not a result."
        )
    return "\n\n".join(parts)


def _gamma(gamma: float | dict[str, float]) -> str:
    return "each model's γ" if isinstance(gamma, dict) else f"γ = {gamma:.4g}"


def retrieval(result: dict[str, Any]) -> str:
    """One row for each R, and the mean average precision of the full ranking."""
    depths = sorted({int(key.partition("@")[2]) for key in result if "@" in key})
    metrics = [
        metric
        for metric in ("map", "precision", "recall", "1-recall")
        if depths and f"{metric}@{depths[0]}" in result
    ]
    rows = [[f"{R:,}", *(_share(result[f"{metric}@{R}"]) for metric in metrics)] for R in depths]
    left_out = [
        f"{count:,} {reason}"
        for reason, count in (
            ("without a label", result["queries_without_label"]),
            ("without a row of their label", result["queries_without_relevant"]),
            ("refused", len(result["refused"])),
        )
        if count
    ]
    about = (
        f"{result['queries']:,} queries of {result['rows']:,} rows, {result['metric']}, "
        f"{result['distance'].upper()}"
    )
    parts = [f"{result['codes']}, version {result['version']}\n{about}"]
    if "map" in result:
        parts.append(f"mAP over the full ranking: {_share(result['map'])}")
    if rows:
        names = {"map": "mAP@R"}
        parts.append(
            plain_table(["R", *(names.get(metric, f"{metric}@R") for metric in metrics)], rows)
        )
    if left_out:
        parts.append(f"Queries {', '.join(left_out)}.")
    return "\n\n".join(parts)


def fewshot(result: dict[str, Any]) -> str:
    """One row for each number of examples."""
    rows = [
        [name, _share(scores["accuracy"]), f"± {scores['interval']:.3f}"]
        for name, scores in result.items()
        if name.endswith("-shot")
    ]
    head = [f"{result['ways']}-way, {result['space']}", "accuracy", "95 %"]
    return f"{plain_table(head, rows)}\n\nMeans over {result['episodes']:,} episodes."


def clusterability(result: dict[str, Any]) -> str:
    """Mutual information of clusters and labels."""
    row = [
        result["space"], f"{result['images']:,}", f"{result['classes']:,}",
        _share(result["mi"]), _share(result["nmi"]), f"± {result['nmi_std']:.3f}",
    ]  # fmt: skip
    return plain_table(["space", "images", "classes", "nats", "normalised", "restarts"], [row])


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
