"""Filters of code rows: an expression over ``id`` and ``label``, a list of ids, or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq.data import filter_language
from raypq.data.codes import CodeBatch
from raypq.data.id_list import IdList


@dataclass(frozen=True, kw_only=True, eq=False)
class Filter:
    """The rows that pass both an expression and a list of ids; None passes all.

    Attributes:
        text: the expression. ids: of the store's id type.
    """

    text: str | None = None
    ids: pa.Array | None = None

    @classmethod
    def of(cls, text: str | None, ids: IdList | None, id_type: pa.DataType) -> Filter | None:
        """The filter of a job's settings, or None if there is none.

        Raises:
            ConfigError: a syntax error, or a value that no column can hold.
            InputError: a column that code stores do not have, or ids that a store of this type
                cannot have.
        """
        if text is None and ids is None:
            return None
        if text is not None:
            filter_language.parse(text)(_schema(id_type), "filter")
        return cls(text=text, ids=None if ids is None else ids.of_type(id_type))

    @property
    def uses_labels(self) -> bool:
        """Whether the expression tests the label."""
        return self.text is not None and filter_language.mentions(self.text, "label")

    def compile(self, id_type: pa.DataType, uri: str) -> Callable[[CodeBatch], NDArray[np.bool_]]:
        """A function that returns the mask [n] of the rows of a batch to keep.

        A batch without labels counts as one of null labels.

        Args:
            id_type: of the store; a file without rows may have another one.
            uri: names the file in errors.

        Raises:
            ConfigError: a value that no column of this type can hold.
        """
        expression = None
        if self.text is not None:
            expression = filter_language.parse(self.text)(_schema(id_type), uri)

        def mask_of(batch: CodeBatch) -> NDArray[np.bool_]:
            mask = np.ones(len(batch.B), bool)
            if self.ids is not None:
                mask &= pc.is_in(batch.ids, self.ids).to_numpy(zero_copy_only=False)
            if expression is not None:
                nulls = pa.nulls(len(mask), pa.string())
                columns: dict[str, Any] = {
                    "id": batch.ids,
                    "label": nulls if batch.labels is None else batch.labels,
                    "row": np.arange(len(mask)),
                }
                passed = np.zeros(len(mask), bool)
                passed[pa.table(columns).filter(expression).column("row").to_numpy()] = True
                mask &= passed
            return mask

        return mask_of


def _schema(id_type: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field("id", id_type), pa.field("label", pa.string())])
