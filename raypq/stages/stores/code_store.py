"""Opening a code store: its version, its models and their metric."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from raypq import console
from raypq.config import Metric
from raypq.data.codes import CodeFile
from raypq.data.store import snapshot
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, InputError, ModelError
from raypq.methods import registry
from raypq.methods.base import Model
from raypq.stages.stores import model_store
from raypq.stages.stores.shard_task import stored_shards


def check_model(file: CodeFile, models: Mapping[str, Model]) -> None:
    """Checks that one of these models made a code file, and the shape of its codes.

    Raises:
        ModelError: no such model, or another M or K than the model's.
    """
    model = models.get(file.fingerprint)
    if model is None:
        known = ", ".join(sorted(name[:12] for name in models))
        raise ModelError(
            file.uri,
            expected=f"codes made by model {known}",
            found=f"codes made by model {file.fingerprint[:12]}",
        )
    if (file.M, file.K) != (model.M, model.K):
        raise ModelError(
            file.uri,
            expected=f"codes of M = {model.M}, K = {model.K}, as model {file.fingerprint[:12]} "
            "makes them",
            found=f"M = {file.M}, K = {file.K}; remove the file, and encode its shard again",
        )


def open_store(codes: str, version: int | None) -> Snapshot:
    """A version of a code store, which must have rows.

    Raises:
        InputError: not a code store, or an empty one.
    """
    opened = snapshot.read(codes, version)
    if opened.kind != "codes":
        raise InputError(codes, expected="a code store", found=f"a store of {opened.kind}")
    if not opened.rows:
        raise InputError(codes, expected="at least one code", found="an empty store")
    return opened


def models_for(codes: str, version: Snapshot, model: str | None) -> dict[str, Model]:
    """The models of a version's shards, by fingerprint.

    Raises:
        ModelError: a model is missing, or ``model`` is given and another made some of the codes.
    """
    fingerprints = set(version.shards.totals.models)
    if model is None:
        models = model_store.load(codes, fingerprints)
    else:
        given = registry.load(model)
        models = {given.fingerprint: given}
        if fingerprints != set(models):
            raise ModelError(
                codes,
                expected=f"codes of model {given.fingerprint[:12]} only",
                found=", ".join(sorted(name[:12] for name in fingerprints)),
            )
    widths = {item.dx for item in models.values()}
    if len(widths) > 1:
        raise ModelError(
            codes, expected="models of one feature width", found=f"widths {sorted(widths)}"
        )
    return models


def metric_of(models: dict[str, Model], requested: Metric | None) -> Metric:
    """The metric to rank by: the requested one, or the one that all models have.

    Raises:
        ConfigError: the metrics of the models differ and none was requested.
    """
    metrics = {model.metric for model in models.values()}
    if requested is None and len(metrics) > 1:
        raise ConfigError(
            f"metric: the models of the store have {', '.join(sorted(metrics))}; name one"
        )
    if len(models) > 1:
        console.warn(
            f"{len(models)} models made the codes of this store: their scores are merged without "
            "scaling, which is meaningful only where the models share one metric space"
        )
    return requested or metrics.pop()


def warn_of_codes_for_classes(
    codes: str, models: Mapping[str, Model], *, reranked: bool = False
) -> None:
    """Warns where images are compared with images by codes that are made for scores of classes."""
    methods = {model.method for model in models.values() if model.weights_axes_by_classes}
    if methods and not reranked:
        console.warn(
            f"{codes}: its codes ({', '.join(sorted(methods))}) are made for scores of classes: "
            "the nearest images by them are often not the nearest by the features; re-rank by the "
            "features (raypq search --rerank 1000, rerank: 1000), or encode with a model that is "
            "trained without --classes (classes), such as opq"
        )


def id_type_of(store: str, version: Snapshot) -> pa.DataType:
    """The id type of a version of a code store: that of its first file with rows.

    Raises:
        InputError: that file is damaged.
    """
    for shard, receipt in zip(stored_shards(store, version), version.shards, strict=True):
        if receipt.rows:
            return CodeFile.open(shard.uri, size=shard.size).id_type
    return pa.string()
