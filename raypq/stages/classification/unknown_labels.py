"""Labels that a class table lacks: reported, or refused on request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raypq import console
from raypq.config import ClassificationTarget, EvaluateJob
from raypq.data import unknown_classes
from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError

_MEANT = {
    "unknown_labels": "row(s) with a label that is none of its class_ids",
    "unknown_classes": "prediction(s) of a class that is none of its class_ids",
}
_SO = {
    "unknown_labels": "they count in no accuracy",
    "unknown_classes": "they count as wrong",
}


def check_labels(
    job: ClassificationTarget | EvaluateJob, store: str, result: Mapping[str, Any]
) -> None:
    """Warns of names in a prediction store that the class table lacks, or refuses them.

    Args:
        result: counts, as ``ClassCounts.summary`` gives them.

    Raises:
        InputError: there are some, and the job refuses them.
    """
    for kind, meant in _MEANT.items():
        found = result.get(kind)
        if not found:
            continue
        text = f"{found['rows']:,} {meant}, such as {unknown_classes.examples(found)}"
        if job.unknown_labels == "refuse":
            raise InputError(
                store,
                expected="labels and predictions among the class_ids of "
                f"{job.classes} (unknown_labels: refuse)",
                found=f"{text}; add the classes to the table, correct the labels, or set "
                "unknown_labels: report",
            )
        console.warn(f"{job.classes}: {text}; {_SO[kind]}", rows=found["rows"])


def told_of(version: Snapshot) -> dict[str, Any]:
    """What a result says of labels and candidates of a prediction version that the class table
    lacks."""
    noted = {
        "unknown_labels": (version.summary.get("result") or {}).get("unknown_labels"),
        "left_out_candidates": version.summary.get("left_out_candidates"),
    }
    return {key: found for key, found in noted.items() if found}
