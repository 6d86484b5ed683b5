"""Rates for a plan: from a file, from an earlier bench of this machine, or measured now."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from raypq import console
from raypq.bench.harness import processor
from raypq.config import read_mapping
from raypq.errors import ConfigError
from raypq.sizing import Rates

RESULTS = Path(__file__).parent / "results"


def find(path: str | None) -> tuple[Rates, str]:
    """Rates, and where they come from in words.

    Args:
        path: a result file of ``raypq bench``; None takes the newest in ``raypq/bench/results``
            that was measured on this kind of machine, or measures.

    Raises:
        ConfigError: the file cannot be read or holds no rates.
    """
    if path is not None:
        document = read_mapping(path)
        return Rates.of(document, origin=path), _origin(Path(path), document)
    here = processor(), os.cpu_count()
    for file in sorted(RESULTS.glob("*.json"), reverse=True):
        document = read_mapping(file)
        if "rates" in document and (document.get("cpu"), document.get("cores")) == here:
            return Rates.of(document, origin=str(file)), _origin(file, document)
    console.say(
        "no rates of this machine yet; measuring (raypq bench rates --json FILE keeps them)"
    )
    from raypq.bench import rates

    cores = os.cpu_count() or 1
    return rates.measure(cores), f"measured now, {here[0]}, {cores} workers side by side"


def _origin(path: Path, document: dict[str, Any]) -> str:
    missing = {"date", "cpu", "cores", "threads"} - document.keys()
    if missing:
        raise ConfigError(
            f"{path}: expected a result file of raypq bench, found none of {sorted(missing)}"
        )
    side = f"{document['threads']} worker{'s side by side' if document['threads'] > 1 else ''}"
    clock = ", by the processor's clock" if document.get("clock") == "processor" else ""
    return (
        f"{path.name}, measured on {document['date']}, {document['cpu']}, "
        f"{document['cores']} cores, {side}{clock}"
    )
