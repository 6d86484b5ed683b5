"""What the evaluations print: a short table of figures. All of them, and the record of the run, are
in the JSON file."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import click

from raypq import console
from raypq.cli.options import PLACE, show

_WIDTH = 100  # of a table, as everything else that is printed

json_file = click.option(
    "--json",
    "json_file",
    type=PLACE,
    help="Write everything here as JSON; - prints that instead of the table.",
)


def output(result: dict[str, Any], to: str | None, table: Callable[[dict[str, Any]], str]) -> None:
    """Writes the scores to a file if one is named, and prints them as a table."""
    from raypq.data import result_file

    if console.structured():
        if to and to != "-":
            result_file.write(to, result)
        show(result)
        return
    if to == "-":
        console.emit(result_file.text_of(result))
        return
    if to:
        result_file.write(to, result)
    console.emit(table(result))


def classification(result: dict[str, Any]) -> str:
    """Accuracy by group, then what holds for both groups together."""
    kinds = [key for key in result["top1"] if key.startswith("hit@") and "mean" not in key]
    groups = [
        [name, f"{told['classes']:,}", f"{told['images']:,}", *(_share(told.get(k)) for k in kinds)]
        for name, key in (("all", "top1"), ("seen", "seen"), ("unseen", "unseen"))
        if (told := result.get(key))
    ]
    about = f"{result['images']:,} images, candidates {result['candidates']}"
    parts = [
        f"{result['predictions']}, version {result['version']}\n{about}, judged: {result['split']}",
        _table(["mean of the classes", "classes", "images", *kinds], groups),
    ]
    curve = result.get("calibrated", {})
    rows = [["as predicted", *(_share(result.get(key)) for key in ("zsl", "ts", "tr", "H"))]]
    if "gamma" in curve:
        gamma = curve["gamma"]
        name = "each model's γ" if isinstance(gamma, dict) else f"γ = {gamma:.4g}"
        rows.append([name, "", *(_share(curve[key]) for key in ("ts", "tr", "H"))])
    if "best_H" in curve:
        rows.append([f"the best γ, {curve['best_gamma']:.4g}", "", "", "", _share(curve["best_H"])])
    if any(any(row[1:]) for row in rows):
        parts.append(_table(["zero-shot", "ZSL", "ts", "tr", "H"], rows))
    if "ausuc" in curve:
        parts.append(
            f"Area under the seen-unseen curve: {curve['ausuc']:.3f}. "
            "The best γ is chosen on these images: a bound, not a result."
        )
    return "\n\n".join(parts)


def retrieval(result: dict[str, Any]) -> str:
    """One row for each R, and the mean average precision of the full ranking."""
    kinds = ("map", "precision", "recall", "1-recall")
    depths = sorted({int(key.partition("@")[2]) for key in result if "@" in key})
    there = [kind for kind in kinds if depths and f"{kind}@{depths[0]}" in result]
    rows = [[f"{R:,}", *(_share(result[f"{kind}@{R}"]) for kind in there)] for R in depths]
    left = [
        f"{count:,} {words}"
        for words, count in (
            ("without a label", result["queries_without_label"]),
            ("without a row of their label", result["queries_without_relevant"]),
            ("refused", len(result["refused"])),
        )
        if count
    ]
    asked = f"{result['queries']:,} queries of {result['rows']:,} rows"
    about = f"{asked}, {result['metric']}, {result['distance'].upper()}"
    parts = [f"{result['codes']}, version {result['version']}\n{about}"]
    if "map" in result:
        parts.append(f"mAP over the full ranking: {_share(result['map'])}")
    if rows:
        names = {"map": "mAP@R"}
        parts.append(_table(["R", *(names.get(kind, f"{kind}@R") for kind in there)], rows))
    if left:
        parts.append(f"Queries {', '.join(left)}.")
    return "\n\n".join(parts)


def fewshot(result: dict[str, Any]) -> str:
    """One row for each number of examples."""
    rows = [
        [name, _share(told["accuracy"]), f"± {told['interval']:.3f}"]
        for name, told in result.items()
        if name.endswith("-shot")
    ]
    head = [f"{result['ways']}-way, {result['space']}", "accuracy", "95 %"]
    return f"{_table(head, rows)}\n\nMeans over {result['episodes']:,} episodes."


def clusterability(result: dict[str, Any]) -> str:
    """Mutual information of clusters and labels."""
    row = [
        result["space"], f"{result['images']:,}", f"{result['classes']:,}",
        _share(result["mi"]), _share(result["nmi"]), f"± {result['nmi_std']:.3f}",
    ]  # fmt: skip
    return _table(["space", "images", "classes", "nats", "normalised", "restarts"], [row])


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=_WIDTH, markup=False, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
