"""Class scorers: a model with the tables of the candidate classes.

During a roll-out a store holds shards of several models. Each shard is scanned with the tables of
its own model. Classes are ranked within an image, so one version may hold predictions of different
models. Their *scores* have no common scale: never compare those of images of different models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypq import kernels
from raypq.config import ClassifyJob, Metric
from raypq.data.storage import join
from raypq.data.store.shard_writer import Receipt
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, InputError, ModelError, RaypqError
from raypq.kernels.stored_tables import StoredTables
from raypq.methods import registry
from raypq.methods.base import Model
from raypq.stages.classification.calibration import gamma_of
from raypq.stages.classification.candidates import Candidates, in_parts, several_prototypes
from raypq.stages.classification.class_groups import (
    WHOLE_BYTES,
    ClassGroup,
    StoredGroup,
    bytes_of,
)
from raypq.stages.classification.untrained import warn_of_untrained
from raypq.stages.stores import model_store

Group = ClassGroup | StoredGroup


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassScorer:
    """A model with the metric and the calibration of its scores.

    Attributes:
        calibration: subtracted from the scores of seen classes (calibrated stacking).
    """

    model: Model
    metric: Metric
    calibration: float

    def groups(self, candidates: Candidates, rows: int = 0) -> dict[str, Group]:
        """The groups of candidates with their lookup tables.

        Args:
            rows: codes that they will be scanned with, as far as it is known.
        """
        groups: dict[str, Group] = {}
        for name, chosen in candidates.groups.items():
            if self.stored(candidates):
                parts = (self._tables(candidates, name, part) for part in in_parts(chosen))
                groups[name] = StoredGroup(StoredTables.write(tables for tables, _ in parts), rows)
            else:
                tables, owner = self._tables(candidates, name, chosen)
                groups[name] = ClassGroup(tables=tables, owner=owner)
        return groups

    def _tables(
        self, candidates: Candidates, group: str, chosen: NDArray[np.int64]
    ) -> tuple[kernels.Tables, NDArray[np.int64] | None]:
        try:
            made = candidates.prototypes(self.model, chosen)
        except InputError as error:  # of the classes, so that no shard is at fault
            raise RaypqError(str(error)) from None
        bias = made.bias - self.calibration if group == "seen" else made.bias
        return self.model.tables(made.V, bias, self.metric), made.owner

    def stored(self, candidates: Candidates) -> bool:
        """Whether the tables of all candidates are too large for memory, so that they are in
        files."""
        model, several = self.model, candidates.table.prototypes is not None
        if several and not model.classes_by_id:
            return False
        return bytes_of(model.M, model.K, model.D, len(candidates.chosen)) > WHOLE_BYTES

    @property
    def settings(self) -> str:
        """Everything but the model's fingerprint and the class table that scores depend on."""
        layer = self.model.layer
        added = "" if layer is None else f":{layer.digest}"
        return f"{self.metric}:{self.calibration!r}{added}"

    def describe(self) -> dict[str, Any]:
        """Its entry in the summary of a version."""
        return {
            "method": self.model.method,
            "M": self.model.M,
            "K": self.model.K,
            "metric": self.metric,
            "calibration": self.calibration,
            "model_calibration": self.model.record.get("calibration"),
        }


def build_scorers(
    job: ClassifyJob,
    codes: Snapshot | None,
    candidates: Candidates,
    *,
    nightly_model: Model | None = None,
) -> dict[str, ClassScorer]:
    """The scorers by fingerprint: of the model that the job names, or of those that made the codes.

    Args:
        nightly_model: the model of a nightly job. It takes the place of the stored one, which may
            have another calibration. Other models of the store, whose shards are to be encoded
            anew, need no calibration.

    Raises:
        ConfigError: features without a model, a calibration without seen classes, another metric
            than dot for a head.
        ModelError: another model than the named one made the codes, or a model is missing.
    """
    table = candidates.table
    if nightly_model is not None and codes is None:
        models = {nightly_model.fingerprint: nightly_model}
        paths = {nightly_model.fingerprint: job.model or nightly_model.method}
    elif job.model is not None:
        model = registry.load(job.model)
        if codes is not None:
            assert job.codes is not None, "the snapshot is read from it"
            _check_all(job.codes, codes.shards, model)
        models, paths = {model.fingerprint: model}, {model.fingerprint: job.model}
    elif codes is None or job.codes is None:
        raise ConfigError("classify needs a model (--model) to score features")
    else:
        models = model_store.load(job.codes, codes.shards.totals.models)
        paths = {name: model_store.folder_of(job.codes, name) for name in models}
        if nightly_model is not None and nightly_model.fingerprint in models:
            models[nightly_model.fingerprint] = nightly_model
    if job.calibration and table.seen is None:
        raise ConfigError(f"calibration: {job.classes} has no column 'seen' to calibrate by")
    scorers = {}
    for name, model in models.items():
        required = nightly_model is None or name == nightly_model.fingerprint
        compete = len(candidates.groups) > 1
        calibration = gamma_of(job, model, paths[name], compete=compete, required=required)
        _check_head_metric(job, model, paths[name])
        model.check_encoder(table.encoder, candidates.ids, where=table.uri)
        warn_of_untrained(job, model, table, candidates.chosen, paths[name])
        try:
            model = _with_table(model, candidates)
            # Raises before any work starts where the classes do not fit the model; of many, the
            # first ones.
            chosen = candidates.chosen
            candidates.prototypes(model, chosen if model.classes_by_id else in_parts(chosen)[0])
        except ModelError as error:
            raise error.inside(table.uri) from None
        scorers[name] = ClassScorer(
            model=model, metric=job.metric or model.class_metric, calibration=calibration
        )
    return scorers


def _check_head_metric(job: ClassifyJob, model: Model, path: str) -> None:
    if model.has_head and job.metric not in (None, "dot"):
        raise ConfigError(
            f"metric: {path} has a linear head, whose scores are dot products; leave --metric "
            f"(metric) out, found {job.metric!r}"
        )


def _with_table(model: Model, candidates: Candidates) -> Model:
    """The model with the prototypes of the whole table, if they depend on one another; computed
    here once, and not by each worker."""
    table = candidates.table
    if not model.joint_classes or model.has_head:
        return model
    if not model.needs_embeddings(candidates.ids):
        return model.with_record(model.record, None)  # no other classes compete
    if table.prototypes is not None:
        raise several_prototypes(model, table)
    if model.classes_by_id and table.E is None:
        return model  # what it lacks is named where its prototypes are made
    ids = table.ids.to_pylist()
    if model.layer is not None and model.layer.find(ids, table.embeddings) is not None:
        return model
    return model.with_classes(ids, table.embeddings)


def summary_of_models(
    scorers: Mapping[str, ClassScorer], receipts: Iterable[Receipt]
) -> dict[str, Any]:
    """Each model of a version with its numbers of shards and rows."""
    shards: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    for receipt in receipts:
        shards[receipt.model] += 1
        rows[receipt.model] += receipt.rows
    return {
        name: {**scorer.describe(), "shards": shards[name], "rows": rows[name]}
        for name, scorer in scorers.items()
    }


def _check_all(store: str, receipts: Sequence[Receipt], model: Model) -> None:
    others = [receipt for receipt in receipts if receipt.model != model.fingerprint]
    if others:
        raise ModelError(
            join(store, others[0].path),
            expected=f"codes made by model {model.fingerprint[:12]}",
            found=f"codes made by model {others[0].model[:12]} ({len(others)} of {len(receipts)} "
            "shards are not this model's; without --model, each shard is classified by its own)",
        )
