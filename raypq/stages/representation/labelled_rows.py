"""Labelled rows in memory, in the raw, mapped or decoded space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raypq import console
from raypq.config import ProbeJob, Space
from raypq.data.classes import ClassTable
from raypq.data.features import ReadOptions, open_features
from raypq.data.store.sources import open_sources
from raypq.data.unknown_classes import UnknownNames, examples
from raypq.errors import ConfigError, InputError
from raypq.methods import registry
from raypq.methods.base import Model
from raypq.stages.stores.shard_types import check_label_column


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledRows:
    """Rows in memory: X [n, a] in some space, and y [n] among the classes ``names``."""

    X: NDArray[np.float32]
    y: NDArray[np.int64]
    names: list[str]

    @classmethod
    def read(cls, job: ProbeJob) -> LabelledRows:
        """Reads all labelled rows of the classes in the job's split.

        Raises:
            ConfigError: the space needs a model, and none is named.
            InputError: no labelled row of these classes.
        """
        if job.model is None and job.space != "raw":
            raise ConfigError(
                f"space {job.space!r} is of a model: pass --model (model), or --space raw (space: "
                "raw)"
            )
        model = registry.load(job.model) if job.model else None
        table = ClassTable.open(job.classes) if job.classes is not None else None
        chosen = _class_ids(table, job.split)
        unknown = UnknownNames()
        parts, labels = [], []
        shards = open_sources(job.features, job.columns).shards
        check_label_column(shards, job.columns)
        for shard in shards:
            how = ReadOptions(backbone=model.backbone if model else None)
            width = model.dx if model else None
            with open_features(shard, job.columns, width=width, how=how) as reader:
                for batch in reader.batches():
                    if table is not None and batch.labels is not None:
                        unknown.add(table.find(batch.labels)[1])
                    names = [] if batch.labels is None else batch.labels.to_pylist()
                    rows = [
                        row
                        for row, label in enumerate(names)
                        if label is not None and (chosen is None or label in chosen)
                    ]
                    parts.append(in_space(batch.X[rows], model, job.space))
                    labels += [names[row] for row in rows]
        if unknown.rows:
            console.warn(
                f"{job.classes}: {unknown.rows:,} row(s) with a label that is none of its "
                f"class_ids, such as {examples(unknown.summary())}; they are left out",
                rows=unknown.rows,
            )
        if not labels:
            raise InputError(
                job.features[0], expected=f"labelled rows of {job.split!r} classes", found="none"
            )
        classes, y = np.unique(np.array(labels, dtype=np.str_), return_inverse=True)
        return cls(X=np.concatenate(parts), y=y.astype(np.int64), names=classes.tolist())


def _class_ids(table: ClassTable | None, split: str) -> set[str] | None:
    if table is None:
        return None
    return {table.ids[int(index)].as_py() for index in table.select(split)}


def in_space(X: NDArray[np.float32], model: Model | None, space: Space) -> NDArray[np.float32]:
    """Features [n, dx] in a space: raw, mapped by the model, or decoded from its codes."""
    if model is None or space == "raw":
        return X
    return model.mapped(X) if space == "mapped" else model.decode(model.encode(X))
