"""Inputs of the report: result files, models and stores, recognised by their content."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raypq import console
from raypq.data.codes import bytes_per_code
from raypq.data.storage import (
    exists,
    file_size,
    is_local,
    join,
    json_text,
    list_folders,
    local_path,
    read_named,
)
from raypq.data.store import snapshot
from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError, RaypqError

_DEPTH = 4  # folders below the one that was named
_LARGEST = 256 << 20  # bytes of a JSON file that is looked into


@dataclass(frozen=True, kw_only=True)
class Named:
    """A result file or model: its path and its content."""

    place: str
    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.place.rsplit("/", 1)[-1].removesuffix(".json")


@dataclass(frozen=True, kw_only=True)
class Store:
    """A store of codes or predictions, and all its versions, oldest first."""

    place: str
    versions: Sequence[Snapshot]

    @property
    def latest(self) -> Snapshot:
        """The last version."""
        return self.versions[-1]

    @property
    def kind(self) -> str:
        """What the store holds: codes, predictions, …."""
        return self.latest.kind


@dataclass(kw_only=True)
class Findings:
    """All inputs of a report.

    Attributes:
        models: by fingerprint, the content of ``model.json``.
        evaluations, retrievals, benches: result files by kind.
        unused: other files, and why they are not used.
    """

    models: dict[str, Named] = field(default_factory=dict)
    stores: list[Store] = field(default_factory=list)
    evaluations: list[Named] = field(default_factory=list)
    retrievals: list[Named] = field(default_factory=list)
    benches: list[Named] = field(default_factory=list)
    unused: list[tuple[str, str]] = field(default_factory=list)

    @property
    def codes(self) -> list[Store]:
        """The code stores."""
        return [store for store in self.stores if store.kind == "codes"]

    def sources(self) -> list[tuple[str, str]]:
        """Kind and path of every input of the page."""
        kinds = [("model", item.place) for item in self.models.values()]
        kinds += [(f"store of {store.kind}", store.place) for store in self.stores]
        for kind, items in (
            ("evaluation", self.evaluations),
            ("retrieval", self.retrievals),
            ("bench", self.benches),
        ):
            kinds += [(kind, item.place) for item in items]
        return sorted(kinds)

    def loss(self, fingerprint: str) -> float | None:
        """Mean ‖u − q(u)‖² divided by the mean ‖u‖², measured on the encoded rows."""
        rows, total = 0, 0.0
        for store in self.codes:
            for receipt in store.latest.shards:
                if receipt.model == fingerprint and receipt.stats:
                    rows += receipt.rows
                    total += receipt.rows * receipt.stats.error.mean
        return total / rows if rows else None


def image_bytes(evaluation: Mapping[str, Any], models: Mapping[str, Named]) -> float | None:
    """Bytes per image: of its code, or of its float32 features."""
    sizes = []
    for fingerprint, model in evaluation.get("models", {}).items():
        if evaluation.get("compressed"):
            sizes.append(bytes_per_code(model["M"], model["K"]))
        elif fingerprint in models:
            sizes.append(4 * models[fingerprint].content["model"]["dx"])
    return float(np.mean(sizes)) if sizes else None


def gather(places: Sequence[str]) -> Findings:
    """Reads files, and searches folders to a depth of four.

    Raises:
        InputError: a place that is not there, a damaged store, or nothing to report on at all.
    """
    findings = Findings()
    for place in places:
        for kind, uri in _walk(place.rstrip("/"), _DEPTH):
            _add(findings, kind, uri)
    if not findings.sources():
        raise InputError(
            ", ".join(places),
            expected="result files (*.json), a model or a store",
            found=f"none ({len(findings.unused)} other JSON files)" if findings.unused else "none",
        )
    for uri, reason in findings.unused:
        console.warn(f"{uri}: not in the report: {reason}")
    return findings


def _walk(place: str, depth: int) -> Iterator[tuple[str, str]]:
    """Kind (``store``, ``model`` or ``file``) and path of everything at or below a place."""
    if exists(join(place, "model.json")):
        yield "model", place
    elif _has_versions(place):
        yield "store", place
        for name in list_folders(join(place, "models")):
            yield "model", join(place, "models", name)
    elif is_local(place) and local_path(place).is_dir():
        if depth:
            for child in sorted(local_path(place).iterdir()):
                if child.name[0] not in "._" and (child.is_dir() or child.suffix == ".json"):
                    yield from _walk(str(child), depth - 1)
    elif not is_local(place) or local_path(place).exists():
        yield "file", place
    else:
        raise InputError(place, expected="a file, a store, a model or a folder", found="nothing")


def _has_versions(place: str) -> bool:
    return not place.endswith(".json") and bool(snapshot.versions(place))


def _add(findings: Findings, kind: str, uri: str) -> None:
    if kind == "store":
        versions = [snapshot.read(uri, version) for version in snapshot.versions(uri)]
        findings.stores.append(Store(place=uri, versions=versions))
    elif kind == "model":
        content = _read(join(uri, "model.json"))
        if isinstance(content.get("model"), dict) and "fingerprint" in content:
            named, name = Named(place=uri, content=content), str(content["fingerprint"])
            known = findings.models.get(name)
            # A store keeps copies of its models, under long names.
            if known is None or len(uri) < len(known.place):
                findings.models[name] = named
        else:
            findings.unused.append((uri, "not a model of raypq"))
    else:
        _add_file(findings, uri)


def _add_file(findings: Findings, uri: str) -> None:
    try:
        if file_size(uri) > _LARGEST:
            raise InputError(uri, expected=f"at most {_LARGEST >> 20} MiB", found="more")
        content = _read(uri)
    except RaypqError as error:
        findings.unused.append((uri, str(error).removeprefix(f"{uri}: ")))
        return
    named = Named(place=uri, content=content)
    if {"predictions", "images", "top1"} <= content.keys():
        findings.evaluations.append(named)
    elif {"codes", "queries", "rows"} <= content.keys():
        findings.retrievals.append(named)
    elif isinstance(content.get("results"), list) and "cpu" in content:
        findings.benches.append(named)
    else:
        findings.unused.append((uri, "not the result of an evaluation or a bench"))


def _read(uri: str) -> dict[str, Any]:
    try:
        content = json_text.parse(read_named(uri, expected="a JSON file"))
    except ValueError as error:
        raise InputError(uri, expected="JSON", found=str(error)) from None
    if not isinstance(content, dict):
        raise InputError(uri, expected="a JSON object", found=type(content).__name__)
    return content


def shorten(places: Sequence[str]) -> dict[str, str]:
    """Local paths without the folders that all of them share, for display."""
    if len(places) < 2 or not all(is_local(place) for place in places):
        return {place: place for place in places}
    paths = {place: local_path(place).absolute() for place in places}
    shared = os.path.commonpath([path.parent for path in paths.values()])
    return {place: str(path.relative_to(shared)) for place, path in paths.items()}
