"""The candidate classes of a job, and their prototypes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.config import ClassificationTarget
from raypq.data.class_list import ClassSelection
from raypq.data.classes import ClassTable
from raypq.errors import InputError, ModelError
from raypq.methods.base import Model

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
            InputError: naming the table: prototypes beyond the range of float32.
            ModelError: the classes do not fit the model.
        """
        several = self.table.prototypes is not None and not model.classes_by_id
        parts = [chosen] if several else in_parts(chosen)
        try:
            made = [self._prototypes(model, part) for part in parts]
        except ModelError:
            raise
        except InputError as error:
            where = f"{self.table.uri}, prototypes of its classes"
            raise InputError(where, expected=error.expected, found=error.found) from None
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
            raise several_prototypes(model, self.table)
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


def several_prototypes(model: Model, table: ClassTable) -> ModelError:
    """The error of a class table with several prototypes of a class, for a model that takes one."""
    return ModelError(
        table.uri,
        expected=f"one embedding of each class, since {model.method} makes prototypes of all "
        "classes together",
        found="several (the column 'prototypes'); embed the classes with prototypes: mean",
    )
