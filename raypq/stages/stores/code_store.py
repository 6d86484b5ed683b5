"""Opening a code store: its version, its models and their metric."""

from __future__ import annotations

from collections.abc import Mapping

from raypq import console
from raypq.config import Metric
from raypq.data.codes import CodeFile
from raypq.data.store import snapshot
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, InputError, ModelError
from raypq.methods import registry
from raypq.methods.base import Model
from raypq.stages.stores import model_store


def check_model(file: CodeFile, models: Mapping[str, Model]) -> None:
    """Refuses codes that none of these models made, or that have another shape than it gives.

    Raises:
        ModelError: naming both fingerprints, or both shapes.
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
    """The version of a code store, which must have rows.

    Raises:
        InputError: not a code store, or an empty one.
    """
    found = snapshot.read(codes, version)
    if found.kind != "codes":
        raise InputError(codes, expected="a code store", found=f"a store of {found.kind}")
    if not found.rows:
        raise InputError(codes, expected="at least one code", found="an empty store")
    return found


def models_for(codes: str, version: Snapshot, model: str | None) -> dict[str, Model]:
    """The models of a version's shards, by fingerprint.

    Raises:
        ModelError: one is not there, or ``model`` is given and another made some of the codes.
    """
    fingerprints = {receipt.model for receipt in version.shards}
    if model is None:
        models = model_store.load(codes, fingerprints)
    else:
        given = registry.load(model)
        models = {given.fingerprint: given}
        if fingerprints != set(models):
            found = ", ".join(sorted(name[:12] for name in fingerprints))
            raise ModelError(
                codes, expected=f"codes of model {given.fingerprint[:12]} only", found=found
            )
    widths = {one.dx for one in models.values()}
    if len(widths) > 1:
        raise ModelError(
            codes, expected="models of one feature width", found=f"widths {sorted(widths)}"
        )
    return models


def metric_of(models: dict[str, Model], wanted: Metric | None) -> Metric:
    """The metric to rank by: as asked for, or the one that all models have.

    Raises:
        ConfigError: the models differ and none was asked for.
    """
    found = {model.metric for model in models.values()}
    if wanted is None and len(found) > 1:
        raise ConfigError(
            f"metric: the models of the store have {', '.join(sorted(found))}; name one"
        )
    if len(models) > 1:
        console.warn(
            f"{len(models)} models made the codes of this store: their scores are merged as they "
            "are, which is meaningful only where the models share one metric space"
        )
    return wanted or found.pop()
