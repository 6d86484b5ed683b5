"""Class scorers: a model with the tables of the candidate classes.

During a roll-out a store holds shards of several models. Each shard is scanned with the tables of
its own model. Classes are ranked within an image, so one version may hold predictions of different
models. Their *scores* have no common scale: never compare those of images of different models.
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

from raypq import kernels
from raypq.config import ClassificationTarget, ClassifyJob, Metric
from raypq.data.class_list import ClassSelection
from raypq.data.classes import ClassTable
from raypq.data.storage import join
from raypq.data.store.shard_writer import Receipt
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, ModelError
from raypq.kernels.stored_tables import StoredTables
from raypq.methods import registry
from raypq.methods.base import Model
from raypq.stages.classification.calibration import gamma_of
from raypq.stages.classification.class_groups import (
    WHOLE_BYTES,
    ClassGroup,
    StoredGroup,
    bytes_of,
)
from raypq.stages.classification.untrained import warn_of_untrained
from raypq.stages.stores import model_store

Group = ClassGroup | StoredGroup
_PART = 32_768  # classes whose prototypes are made at once


def in_parts(chosen: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Classes in parts of a fixed size; at least one part."""
    return np.split(chosen, range(_PART, len(chosen), _PART))


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """The classes that predictions choose from.

    Attributes:
        selection: the rows that the job selects, and names that the table lacks.
    """

    table: ClassTable
    selection: ClassSelection

    @classmethod
    def of(cls, job: ClassificationTarget, table: ClassTable) -> Candidates:
        """The candidates of a job.

        Raises:
            ConfigError: an unknown split.
            InputError: no class is selected, or ``unknown_labels`` is ``refuse`` and the table
                lacks one.
        """
        selection = table.selection(job.candidates)
        if job.unknown_labels == "refuse":
            selection.refuse()
        return cls(table=table, selection=selection)

    @property
    def chosen(self) -> NDArray[np.int64]:
        """Rows of the class table, ascending."""
        return self.selection.index

    @property
    def ids(self) -> list[str]:
        """Their class_ids."""
        ids: list[str] = self.table.ids.take(pa.array(self.chosen)).to_pylist()
        return ids

    def prototypes(self, model: Model, chosen: NDArray[np.int64]) -> Prototypes:
        """The prototypes of some classes of the table, ascending.

        Those of many classes are made in parts of a fixed size: the last bits of a product may
        depend on its shape, and shall not depend on whether all classes are held at once.

        Raises:
            ModelError: the classes do not fit the model.
        """
        several = self.table.prototypes is not None and not model.classes_by_id
        parts = [chosen] if several else in_parts(chosen)
        made = [self._prototypes(model, part) for part in parts]
        if len(made) == 1:
            return made[0]
        return Prototypes(
            V=np.concatenate([part.V for part in made]),
            bias=np.concatenate([part.bias for part in made]),
        )

    def _prototypes(self, model: Model, chosen: NDArray[np.int64]) -> Prototypes:
        table, owner = self.table, None
        if table.prototypes is not None and not model.classes_by_id:
            several = table.prototypes.of(chosen)
            V, bias = self._several(model, several.E)
            owner = several.owner
        else:
            ids = table.ids.take(pa.array(chosen)).to_pylist()
            E = table.E if model.classes_by_id or table.E is not None else table.embeddings
            V, bias = model.prototypes_of(ids, None if E is None else E[chosen])
        if table.bias is not None:
            bias = bias + (table.bias[chosen] if owner is None else table.bias[chosen][owner])
        return Prototypes(V=V, bias=bias, owner=owner)

    def _several(
        self, model: Model, E: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        if model.joint_classes:
            raise _several_prototypes(model, self.table)
        return model.prototypes(E)

    @cached_property
    def groups(self) -> dict[str, NDArray[np.int64]]:
        """Rows of seen and of unseen candidates; one group ``all`` where the table does not say."""
        seen = self.table.seen
        if seen is None:
            return {"all": self.chosen}
        parts = {
            "seen": self.chosen[seen[self.chosen]],
            "unseen": self.chosen[~seen[self.chosen]],
        }
        return {name: part for name, part in parts.items() if len(part)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Prototypes:
    """Prototypes V [p, D] with bias [p] of t classes.

    Attributes:
        owner: class of each prototype [p], ascending; None where each class has one.
    """

    V: NDArray[np.float32]
    bias: NDArray[np.float64]
    owner: NDArray[np.int64] | None = None


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
        made = candidates.prototypes(self.model, chosen)
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
        models = model_store.load(job.codes, (receipt.model for receipt in codes.shards))
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
            # Raises before any work starts where the classes do not fit the model.
            candidates.prototypes(model, candidates.chosen[: None if model.classes_by_id else 1])
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
        raise _several_prototypes(model, table)
    if model.classes_by_id and table.E is None:
        return model  # what it lacks is named where its prototypes are made
    ids = table.ids.to_pylist()
    if model.layer is not None and model.layer.find(ids, table.embeddings) is not None:
        return model
    return model.with_classes(ids, table.embeddings)


def _several_prototypes(model: Model, table: ClassTable) -> ModelError:
    return ModelError(
        table.uri,
        expected=f"one embedding of each class, since {model.method} makes prototypes of all "
        "classes together",
        found="several (the column 'prototypes'); embed the classes with prototypes: mean",
    )


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
