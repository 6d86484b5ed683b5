"""Labels that a class table lacks: reported, or refused on request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raypq import console
from raypq.config import ClassificationTarget, EvaluateJob
from raypq.data import unknown_classes
from raypq.data.store import snapshot_summary
from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError

_DESCRIPTIONS = {
    "unknown_labels": "row(s) with a label that is none of its class_ids",
    "unknown_classes": "prediction(s) of a class that is none of its class_ids",
}
_CONSEQUENCES = {
    "unknown_labels": "they count in no accuracy",
    "unknown_classes": "they count as wrong",
}


def check_labels(
    job: ClassificationTarget | EvaluateJob, store: str, result: Mapping[str, Any]
) -> None:
    """Warns of labels and predictions that the class table lacks, or refuses them.

    Args:
        result: counts, as ``ClassCounts.summary`` gives them.

    Raises:
        InputError: there are unknown names, and ``unknown_labels`` is ``refuse``.
    """
    for kind, description in _DESCRIPTIONS.items():
        names = result.get(kind)
        if not names:
            continue
        text = f"{names['rows']:,} {description}, such as {unknown_classes.examples(names)}"
        if job.unknown_labels == "refuse":
            raise InputError(
                store,
                expected="labels and predictions among the class_ids of "
                f"{job.classes} (unknown_labels: refuse)",
                found=f"{text}; add the classes to the table, correct the labels, or set "
                "unknown_labels: report",
            )
        console.warn(f"{job.classes}: {text}; {_CONSEQUENCES[kind]}", rows=names["rows"])


def counts_of(store: str, version: Snapshot) -> dict[str, dict[str, Any]]:
    """The unknown labels and classes that a version counted, for ``check_labels``.

    Raises:
        InputError: its summary holds something else there, naming the key.
    """
    counts: dict[str, dict[str, Any]] = {}
    for kind in _DESCRIPTIONS:
        keys = ("result", kind)
        if not snapshot_summary.section(store, version, *keys):
            continue
        names = snapshot_summary.section(store, version, *keys, "names")
        rows = snapshot_summary.number(store, version, *keys, "rows", least=0)
        counts[kind] = {
            "rows": int(rows or 0),
            "names": {
                name: int(snapshot_summary.number(store, version, *keys, "names", name) or 0)
                for name in names
            },
        }
    return counts


def summary(version: Snapshot) -> dict[str, Any]:
    """Unknown labels and left-out candidates of a prediction version, where there are any."""
    values = {
        "unknown_labels": (version.summary.get("result") or {}).get("unknown_labels"),
        "left_out_candidates": version.summary.get("left_out_candidates"),
    }
    return {key: value for key, value in values.items() if value}
