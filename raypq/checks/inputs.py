"""Checks of what a job reads: listings, stores, models, networks and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raypq.checks.finding import Finding, errors, fail, ok, warn
from raypq.config import Columns, EmbedClassesJob, Job, NetworkSettings
from raypq.config.places import Place, is_library_model
from raypq.data.classes import ClassTable
from raypq.data.features import FeatureStore
from raypq.data.layouts.listing import list_features
from raypq.data.storage import Shard, file_size, join
from raypq.data.storage.rights import unreadable
from raypq.data.store import snapshot
from raypq.data.survey import survey
from raypq.methods import registry
from raypq.methods.base import Model

_SAMPLED = 8  # shards whose footers are read
_READ = "give this user the right to list and read it (on S3: s3:ListBucket, s3:GetObject)"
_THERE = f"name a path that exists, or {_READ}"
_PACKAGES = {"torchvision": "torchvision", "timm": "timm", "open_clip": "open_clip"}


@dataclass
class Inputs:
    """What the checks learned of a job's inputs.

    Attributes:
        models: that load, by key of the job. images, bytes: of the source, estimated from a sample
            of its shards. width: of its features.
        stores: versions of stores that are read, by URI. tables: class tables, by key of the job.
        files: one of each place, which nodes try to read. packages: modules that workers import.
    """

    models: dict[str, Model] = field(default_factory=dict)
    images: int = 0
    bytes: int = 0
    width: int = 0
    stores: dict[str, snapshot.Snapshot] = field(default_factory=dict)
    tables: dict[str, ClassTable] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    packages: set[str] = field(default_factory=set)


def check_inputs(job: Job, places: Sequence[Place], inputs: Inputs) -> list[Finding]:
    """Checks every place that a job reads, and its networks.

    Args:
        inputs: takes what is learned.
    """
    findings: list[Finding] = []
    for place in places:
        subject = f"{place.field}: {place.uri}"
        with errors(subject, _THERE, findings):
            findings.append(_check(job, place, subject, inputs))
    if isinstance(job, EmbedClassesJob):
        findings += _encoder(job)
    findings += _widths(inputs)
    return findings


def _check(job: Job, place: Place, subject: str, inputs: Inputs) -> Finding:
    """Checks one place; errors are raised."""
    kind = place.use.kind
    if kind in ("parquet", "images"):
        return _shards(job, place, subject, inputs)
    if kind == "store":
        return _store(place, subject, inputs)
    if kind == "model":
        model = inputs.models[place.field] = registry.load(place.uri)
        inputs.files.append(join(place.uri, "model.json"))
        return ok(subject, f"{model.method}, M = {model.M}, for features of width {model.dx}")
    if kind == "backbone":
        return _backbone(job, place, subject, inputs)
    return _file(place, subject, inputs)


def _shards(job: Job, place: Place, subject: str, inputs: Inputs) -> Finding:
    shards = list_features([place.uri], "images" if place.field == "images" else "features")
    columns = getattr(job, "columns", Columns())
    step = -(-len(shards) // _SAMPLED)
    sample = [replace(shard, index=index) for index, shard in enumerate(shards[::step])]
    found = survey(FeatureStore(shards=sample, columns=columns))
    rows, of_sample, total = sum(found.rows), _bytes(found.shards), _bytes(shards)
    images = round(rows * total / of_sample) if of_sample else rows
    inputs.files += [sample[0].uri] if sample[0].files is None else []
    if place.field in ("features", "images", "train"):
        inputs.images += images
        inputs.bytes += total
        inputs.width = inputs.width or (found.width if place.field != "images" else 0)
    if found.failures:
        text = (
            f"{len(shards)} shards, of {len(sample)} tried {len(found.failures)} cannot be used: "
            f"{found.failures[0]}"
        )
        if getattr(job, "on_bad_shard", "fail") == "quarantine":
            return warn(subject, text, "correct them; as the config stands, they are left out")
        return fail(subject, text, "correct them, or leave them out (on_bad_shard: quarantine)")
    about = "" if len(sample) == len(shards) else "about "
    return ok(subject, f"{len(shards)} shards, {about}{images:,} images, {total / 1e9:.3g} GB")


def _bytes(shards: Sequence[Shard]) -> int:
    return sum(shard.size for shard in shards)


def _store(place: Place, subject: str, inputs: Inputs) -> Finding:
    numbers = snapshot.versions(place.uri)
    if not numbers:
        return fail(subject, "no version", "run the job that writes it first, or correct the path")
    latest = inputs.stores[place.uri] = snapshot.read(place.uri, numbers[-1])
    if latest.shards:
        path, size = (column[0].as_py() for column in latest.shards.columns("path", "bytes"))
        first = join(place.uri, path)
        if file_size(first) != size:
            return fail(
                subject,
                f"{first} does not have the size that version {latest.version} says",
                f"raypq snapshots verify {place.uri} names every such file and the remedy",
            )
        inputs.files.append(first)
    return ok(subject, f"version {latest.version}, {latest.rows:,} rows")


def _file(place: Place, subject: str, inputs: Inputs) -> Finding:
    section, _, key = place.field.rpartition(".")
    if place.use.kind == "split":
        table = inputs.tables.get(f"{section}.classes" if section else "classes")
        if table is None:
            return warn(subject, "not checked without its class table", "see the class table")
        return ok(subject, f"{len(table.selection(place.uri).index):,} classes")
    if key == "classes":
        table = inputs.tables[place.field] = ClassTable.open(place.uri)
        inputs.files.append(place.uri)
        return ok(subject, f"{len(table):,} classes")
    size = file_size(place.uri)
    if reason := unreadable(place.uri):
        return fail(subject, reason, _READ)
    inputs.files.append(place.uri)
    return ok(subject, f"{size:,} bytes, can be read")


def _backbone(job: Any, place: Place, subject: str, inputs: Inputs) -> Finding:
    """Loads the network, as the job would; weights that are not there yet are downloaded."""
    from raypq.backbones.loading import load_backbone

    columns, network = job.columns, getattr(job, "network", NetworkSettings())
    backbone = load_backbone(place.uri, network, size=columns.image_size, device="cpu")
    if is_library_model(place.uri):
        inputs.packages.add(_PACKAGES[place.uri.partition(":")[0]])
    elif place.uri.lower().endswith(".onnx"):
        inputs.packages.add("onnxruntime")
    if place.field == "backbone":
        inputs.width = backbone.width
    return ok(subject, f"loads; features of width {backbone.width}")


def _encoder(job: EmbedClassesJob) -> list[Finding]:
    from raypq.backbones.text_networks import load_text_encoder

    subject = f"encoder: {job.encoder}"
    findings: list[Finding] = []
    remedy = "install the package that it names, or name another encoder"
    with errors(subject, remedy, findings):
        load_text_encoder(job.encoder, weights=job.weights, device="cpu")
        findings.append(ok(subject, "loads"))
    return findings


def _widths(inputs: Inputs) -> list[Finding]:
    """Features must have the width that the model takes."""
    return [
        fail(
            key,
            f"the model takes features of width {model.dx}, and the source has {inputs.width}",
            "name the model that was trained on such features, or the features of the model",
        )
        for key, model in inputs.models.items()
        if key == "model" and inputs.width and model.dx != inputs.width
    ]
