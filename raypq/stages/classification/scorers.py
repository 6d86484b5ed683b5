"""Class scorers: a model with the tables of the candidate classes.

A store may hold shards of several models, a roll-out half done. Each shard is scanned with its own
model's tables. An image's classes are ranked among themselves, so predictions of different models
stand side by side in one version; the *scores* of two models have no common scale, so never compare
those of images that different models encoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import console, kernels
from raypq.config import ClassificationTarget, ClassifyJob, Metric
from raypq.data.class_list import Chosen
from raypq.data.classes import ClassTable
from raypq.data.storage import join
from raypq.data.store.shard_writer import Receipt
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, ModelError
from raypq.methods import registry
from raypq.methods.base import Model
from raypq.stages.stores import model_store


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """The classes to choose among.

    Attributes:
        chosen: indices into the whole ``table``, ascending.
        named: what the job names, classes that the table lacks included.
    """

    table: ClassTable
    named: Chosen

    @classmethod
    def of(cls, job: ClassificationTarget, table: ClassTable) -> Candidates:
        """The candidates of a job.

        Raises:
            ConfigError: an unknown split.
            InputError: nothing is selected, or the table lacks what the job refuses to leave out.
        """
        named = table.choose(job.candidates)
        if job.unknown_labels == "refuse":
            named.refuse()
        return cls(table=table, named=named)

    @property
    def chosen(self) -> NDArray[np.int64]:
        """Rows of the table that predictions choose from, ascending."""
        return self.named.index

    def prototypes(
        self, model: Model, chosen: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Prototypes V [t, D] and bias [t] of some classes of the table."""
        ids = self.table.ids.take(pa.array(chosen)).to_pylist()
        E = self.table.E if model.classes is not None else self.table.embeddings
        return model.prototypes_of(ids, None if E is None else E[chosen])

    @cached_property
    def groups(self) -> dict[str, NDArray[np.int64]]:
        """The candidates by seen and unseen; one group of all where only one kind is there."""
        seen = self.table.seen
        if seen is None:
            return {"all": self.chosen}
        parts = {
            "seen": self.chosen[seen[self.chosen]],
            "unseen": self.chosen[~seen[self.chosen]],
        }
        return {name: part for name, part in parts.items() if len(part)}


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassScorer:
    """A model and how it is asked.

    Attributes:
        calibration: taken off the scores of seen classes (calibrated stacking).
    """

    model: Model
    metric: Metric
    calibration: float

    def tables(self, candidates: Candidates) -> dict[str, kernels.Tables]:
        """Lookup tables of each group of candidates."""
        built = {}
        for name, chosen in candidates.groups.items():
            V, bias = candidates.prototypes(self.model, chosen)
            if name == "seen":
                bias = bias - self.calibration
            built[name] = self.model.tables(V, bias, self.metric)
        return built

    @property
    def settings(self) -> str:
        """What its scores depend on beside the model's fingerprint and the class table."""
        layer = self.model.layer
        added = "" if layer is None else f":{layer.digest}"
        return f"{self.metric}:{self.calibration!r}{added}"

    def describe(self) -> dict[str, Any]:
        """What a version says of it."""
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
    own: Model | None = None,
) -> dict[str, ClassScorer]:
    """The judges by fingerprint: the model that the job names, or those that made the codes.

    Args:
        own: the model of a nightly job, which is the one for its codes: its twin beside them may
            not be tuned as it is. Others in the store, which wait to be encoded by it, are taken
            as they are, tuned or not.

    Raises:
        ConfigError: features without a model, a calibration without seen classes.
        ModelError: codes of another model than the one named, a model that is not with its codes.
    """
    table = candidates.table
    if own is not None and codes is None:
        models, places = {own.fingerprint: own}, {own.fingerprint: job.model or own.method}
    elif job.model is not None:
        model = registry.load(job.model)
        if codes is not None:
            assert job.codes is not None, "the snapshot is read from it"
            _check_all(job.codes, codes.shards, model)
        models, places = {model.fingerprint: model}, {model.fingerprint: job.model}
    elif codes is None or job.codes is None:
        raise ConfigError("classify needs a model (--model) to score features")
    else:
        models = model_store.load(job.codes, (receipt.model for receipt in codes.shards))
        places = {name: model_store.place(job.codes, name) for name in models}
        if own is not None and own.fingerprint in models:
            models[own.fingerprint] = own
    if job.calibration and table.seen is None:
        raise ConfigError(f"calibration: {job.classes} has no column 'seen' to calibrate by")
    judges = {}
    for name, model in models.items():
        waits = own is not None and name != own.fingerprint
        calibration = _calibration(job, model, places[name], needed=not waits)
        model = _with_table(model, table)
        # They must fit before any work starts.
        candidates.prototypes(model, candidates.chosen[: 1 if model.classes is None else None])
        judges[name] = ClassScorer(
            model=model, metric=job.metric or model.class_metric, calibration=calibration
        )
    return judges


def _with_table(model: Model, table: ClassTable) -> Model:
    """The model with prototypes of the whole table, where they depend on one another.

    They are made once, here, and not by each worker.
    """
    if not model.joint_classes:
        return model
    ids = table.ids.to_pylist()
    if model.layer is not None and model.layer.find(ids, table.embeddings) is not None:
        return model
    return model.with_classes(ids, table.embeddings)


def told_of(judges: Mapping[str, ClassScorer], receipts: Iterable[Receipt]) -> dict[str, Any]:
    """What a version says of its models: each with its shards and rows."""
    shards: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    for receipt in receipts:
        shards[receipt.model] += 1
        rows[receipt.model] += receipt.rows
    return {
        name: {**judge.describe(), "shards": shards[name], "rows": rows[name]}
        for name, judge in judges.items()
    }


def _check_all(store: str, receipts: Sequence[Receipt], model: Model) -> None:
    others = [receipt for receipt in receipts if receipt.model != model.fingerprint]
    if others:
        raise ModelError(
            join(store, others[0].path),
            expected=f"codes made by model {model.fingerprint[:12]}",
            found=f"codes made by model {others[0].model[:12]} ({len(others)} of {len(receipts)} "
            "shards are not this model's; without a model named, each shard's own is used)",
        )


def _calibration(job: ClassifyJob, model: Model, place: str, *, needed: bool) -> float:
    if job.calibration != "model":
        return float(job.calibration)
    found = model.record.get(model_store.CALIBRATION)
    if found is None and not needed:
        console.warn(
            f"{place}: no calibration from raypq train --tune; the shards that it encoded are "
            "classified without one until they are encoded anew"
        )
        return 0.0
    if found is None:
        raise ModelError(place, expected="a calibration from raypq train --tune", found="none")
    return float(found)
