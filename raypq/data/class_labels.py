"""Readable names of classes, added to predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from raypq.data.classes import ClassTable


@dataclass(frozen=True, kw_only=True)
class ClassLabels:
    """Class_ids and the name of each."""

    ids: pa.StringArray
    names: pa.StringArray

    @classmethod
    def open(cls, uri: str) -> Self:
        """The names in a class table.

        Raises:
            InputError: it cannot be read.
        """
        table = ClassTable.open(uri)
        return cls(ids=table.ids, names=pa.array(table.names, pa.string()))

    def of(self, class_ids: pa.Array) -> pa.Array:
        """The name of each class_id; the class_id itself where the table lacks it."""
        found = self.names.take(pc.index_in(class_ids, value_set=self.ids))
        return pc.if_else(pc.is_valid(found), found, class_ids)

    def _of_lists(self, class_ids: pa.ListArray) -> pa.ListArray:
        lengths = pc.list_value_length(class_ids).to_numpy(zero_copy_only=False)
        offsets = pa.array([0, *lengths.cumsum()], pa.int32())
        return pa.ListArray.from_arrays(offsets, self.of(class_ids.flatten()))

    def conversion(
        self, schema: pa.Schema
    ) -> tuple[Callable[[pa.RecordBatch], pa.RecordBatch], pa.Schema]:
        """What adds ``name`` to batches of predictions, ``label_name`` where they have labels and
        ``accepted_name`` where they have accepted classes; and the schema with these columns."""
        added = [pa.field("name", pa.list_(pa.string()))]
        if "label" in schema.names:
            added.append(pa.field("label_name", pa.string()))
        if "accepted" in schema.names:
            added.append(pa.field("accepted_name", pa.list_(pa.string())))
        wider = pa.schema([*schema, *added])

        def run(batch: pa.RecordBatch) -> pa.RecordBatch:
            columns = [*batch.columns, self._of_lists(batch.column("class_id"))]
            if "label" in schema.names:
                columns.append(self.of(batch.column("label")))
            if "accepted" in schema.names:
                columns.append(self._of_lists(batch.column("accepted")))
            return pa.RecordBatch.from_arrays(columns, schema=wider)

        return run, wider
