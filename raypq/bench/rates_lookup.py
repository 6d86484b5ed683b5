"""Rates for a plan: from a file, from an earlier bench of this machine, or measured now.

Rates are quiet if other processes took at most 5% of the machine's processor time while they were
measured, as the result file says. Busy rates make every stage look slower than it is, so the newest
quiet ones count.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raypq import console, kernels
from raypq.bench.harness import processor
from raypq.bench.other_load import QUIET_SHARE, OtherLoad
from raypq.config import read_mapping
from raypq.errors import ConfigError
from raypq.sizing import Rates

RESULTS = Path(__file__).parent / "results"

Document = Mapping[str, Any]


def find(path: str | None) -> tuple[Rates, str]:
    """Rates, and where they come from in words.

    Args:
        path: a result file of ``raypq bench``, or a folder of them, of which the newest quiet one
            counts; None takes the newest quiet one in ``raypq/bench/results`` that was measured on
            this kind of machine, or measures.

    Raises:
        ConfigError: the file cannot be read or holds no rates, or no file of the folder does.
    """
    if path is None:
        documents = {
            file: document for file, document in _documents(RESULTS).items() if _is_here(document)
        }
        return _newest(documents) if documents else _measured()
    if not Path(path).is_dir():
        return _read(Path(path), read_mapping(path))
    documents = _documents(Path(path))
    if not documents:
        raise ConfigError(f"{path}: expected a result file of raypq bench with rates, found none")
    return _newest(documents)


def other_load(document: Document) -> float | None:
    """Share of the processor time that other processes took while the rates of a result file were
    measured; None where the file does not say."""
    for result in document.get("results", []):
        if result.get("bench") == "rates":
            share: float | None = result.get("other_load")
            return share
    return None


def _documents(folder: Path) -> dict[Path, Document]:
    """The result files of a folder that have rates."""
    documents = {file: read_mapping(str(file)) for file in sorted(folder.glob("*.json"))}
    return {file: document for file, document in documents.items() if "rates" in document}


def _is_here(document: Document) -> bool:
    """Whether it was measured on a machine like this one. Different processors may have one name,
    so the instruction set counts too."""
    isa = document.get("kernels", {}).get("isa")
    here = processor(), os.cpu_count(), kernels.runtime_info()["isa"]
    return (document.get("cpu"), document.get("cores"), isa) == here


def _newest(documents: Mapping[Path, Document]) -> tuple[Rates, str]:
    """The newest quiet rates; where none are known to be quiet, the newest."""

    def rank(file: Path) -> tuple[bool, str, str]:
        share = other_load(documents[file])
        quiet = share is not None and share <= QUIET_SHARE
        return quiet, str(documents[file].get("date", "")), file.name

    file = max(documents, key=rank)
    return _read(file, documents[file])


def _read(file: Path, document: Mapping[str, Any]) -> tuple[Rates, str]:
    return Rates.of(dict(document), origin=str(file)), _origin(file, document)


def _measured() -> tuple[Rates, str]:
    console.say(
        "no rates of this machine yet; measuring (raypq bench rates --json FILE keeps them)"
    )
    from raypq.bench import rates

    cores = os.cpu_count() or 1
    load = OtherLoad()
    found = rates.measure(cores)
    return found, (
        f"measured now, {processor()}, {cores} workers side by side, {_others(load.share())}"
    )


def _origin(path: Path, document: Document) -> str:
    missing = {"date", "cpu", "cores", "threads"} - document.keys()
    if missing:
        raise ConfigError(
            f"{path}: expected a result file of raypq bench, found none of {sorted(missing)}"
        )
    side = f"{document['threads']} worker{'s side by side' if document['threads'] > 1 else ''}"
    clock = ", by the processor's clock" if document.get("clock") == "processor" else ""
    return (
        f"{path.name}, measured on {document['date']}, {document['cpu']}, "
        f"{document['cores']} cores, {side}{clock}, {_others(other_load(document))}"
    )


def _others(share: float | None) -> str:
    """The load by other processes, in words."""
    if share is None:
        return "load by other processes not recorded"
    return f"other processes took {share:.0%} of the processors"
