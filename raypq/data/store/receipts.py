"""The receipts of a version: a sequence that makes each ``Receipt`` on demand.

A version of a large store has a million of them, which as objects take gigabytes. They are held as
columns, which are read from the version's manifests when they are first needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from raypq.data.store import manifest
from raypq.data.store.manifest import COLUMNS, Manifest, Totals
from raypq.data.store.shard_writer import Receipt
from raypq.errors import DamagedError

_OBJECTS = 10_000  # receipts that are kept as objects, of up to 6 KB, once they are asked for
_BATCH = 4096  # receipts that are made at once
_VALUES = 1 << 16  # of a column that are converted at once


class _Columns(Protocol):
    """Columns of receipts, in shard order."""

    def __len__(self) -> int: ...
    def read(self, names: Sequence[str]) -> dict[str, pa.Array]: ...


class Receipts(Sequence[Receipt]):
    """The receipts of a version, sorted by shard.

    Attributes:
        manifests: the files that hold them, the oldest first; none where the version itself does.
    """

    def __init__(
        self,
        columns: _Columns,
        *,
        items: tuple[Receipt, ...] | None = None,
        totals: Totals | None = None,
        manifests: Sequence[Manifest] = (),
    ) -> None:
        self._columns, self._items, self._totals = columns, items, totals
        self._known: dict[str, pa.Array] = {}
        self.manifests = tuple(manifests)

    @classmethod
    def of(cls, receipts: Iterable[Receipt]) -> Receipts:
        """Of objects in shard order."""
        if isinstance(receipts, Receipts):
            return receipts
        items = tuple(receipts)
        return cls(_OfItems(items), items=items)

    @classmethod
    def of_columns(cls, columns: pa.Table) -> Receipts:
        """Of rows with all ``COLUMNS``, in shard order."""
        return cls(_OfTable(columns))

    @classmethod
    def stored(cls, store: str, manifests: Sequence[Manifest], totals: Totals) -> Receipts:
        """Of the manifests of a version, the oldest first."""
        return cls(_Stored(store, manifests, totals.shards), totals=totals, manifests=manifests)

    @classmethod
    def joined(cls, store: str, manifests: Sequence[Manifest]) -> Receipts:
        """Of manifests that need not be all of a version."""
        return cls(_Stored(store, manifests, None), manifests=manifests)

    def __len__(self) -> int:
        return len(self._columns)

    @overload
    def __getitem__(self, index: int) -> Receipt: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Receipt, ...]: ...
    def __getitem__(self, index: int | slice) -> Receipt | tuple[Receipt, ...]:
        if (items := self._objects()) is not None:
            return items[index]
        if isinstance(index, slice):
            return tuple(self._made(np.arange(len(self))[index]))
        position = range(len(self))[index]  # raises IndexError
        return self._made(np.array([position]))[0]

    def __iter__(self) -> Iterator[Receipt]:
        if (items := self._objects()) is not None:
            yield from items
            return
        for start in range(0, len(self), _BATCH):
            yield from self._made(np.arange(start, min(start + _BATCH, len(self))))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Receipts) and self.manifests and self.manifests == other.manifests:
            return True
        if not isinstance(other, Receipts | tuple):
            return NotImplemented
        return len(self) == len(other) and all(
            mine == its for mine, its in zip(self, other, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        return f"Receipts({len(self)})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_known": {}}

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        if self._items is not None:
            return sum(item.rows for item in self._items)
        return self.totals.rows

    def in_manifests(self, manifests: Sequence[Manifest]) -> Receipts:
        """The same receipts, held by these manifests (none: by their version itself)."""
        same = Receipts(self._columns, items=self._items, totals=self._totals, manifests=manifests)
        same._known = self._known
        return same

    @property
    def totals(self) -> Totals:
        """Sums over the shards."""
        if self._totals is None:
            sums = [pc.sum(self.column(name), min_count=0).as_py() for name in ("rows", "bytes")]
            models = tuple(sorted(pc.unique(self.column("model")).to_pylist()))
            self._totals = Totals(shards=len(self), rows=sums[0], bytes=sums[1], models=models)
        return self._totals

    def column(self, name: str) -> pa.Array:
        """One of ``COLUMNS`` [n]; it is kept, since several callers need the same ones."""
        return self.columns(name)[0]

    def columns(self, *names: str) -> list[pa.Array]:
        """As ``column``, for several, which are read together."""
        missing = [name for name in names if name not in self._known]
        if missing:
            self._known |= self._columns.read(missing)
        return [self._known[name] for name in names]

    def values(self, name: str) -> Iterator[Any]:
        """The values of a column as Python objects, some at a time."""
        return values_of(self.column(name))

    def files(self) -> Iterator[tuple[str, int]]:
        """Path and bytes of each file; the columns are not kept."""
        columns = self.read(["path", "bytes"])
        return zip(*map(values_of, columns.values()), strict=True)

    def read(self, names: Sequence[str] = tuple(COLUMNS)) -> dict[str, pa.Array]:
        """As ``columns``, by name; they are not kept, since each is needed once."""
        known = {name: self._known[name] for name in names if name in self._known}
        read = self._columns.read([name for name in names if name not in known])
        return {name: known[name] if name in known else read[name] for name in names}

    def select(self, rows: NDArray[np.int64]) -> Receipts:
        """The receipts of some rows, by ascending number."""
        return Receipts(_Selected(self, rows))

    def find(self, shards: pa.Array) -> NDArray[np.int64]:
        """The number of the receipt of each shard [n]; −1 for one that is not here."""
        positions = pc.index_in(shards, value_set=self.column("shard"))
        return pc.fill_null(positions, -1).to_numpy(zero_copy_only=False).astype(np.int64)

    def _objects(self) -> tuple[Receipt, ...] | None:
        """All receipts, if they are few enough to be kept as objects."""
        if self._items is None and len(self) <= _OBJECTS:
            self._items = tuple(self._made(np.arange(len(self))))
        return self._items

    def _made(self, rows: NDArray[np.int64]) -> list[Receipt]:
        columns = self.columns(*COLUMNS)
        taken = [column.take(pa.array(rows)) for column in columns]
        return manifest.receipts_of(pa.table(taken, [*COLUMNS]))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """As a list of receipts in documents; an object of this class is taken as it is."""

        def validate(value: Any, as_items: Callable[[Any], tuple[Receipt, ...]]) -> Receipts:
            return value if isinstance(value, Receipts) else cls.of(as_items(value))

        def serialize(value: Sequence[Receipt], info: Any) -> list[dict[str, Any]]:
            return [item.model_dump(mode=info.mode) for item in value]

        return core_schema.no_info_wrap_validator_function(
            validate,
            handler.generate_schema(tuple[Receipt, ...]),
            serialization=core_schema.plain_serializer_function_ser_schema(
                serialize, info_arg=True
            ),
        )


def values_of(column: pa.Array) -> Iterator[Any]:
    """The values of a column as Python objects, some at a time."""
    for start in range(0, len(column), _VALUES):
        yield from column.slice(start, _VALUES).to_pylist()


class _OfItems:
    """Columns of objects."""

    def __init__(self, items: tuple[Receipt, ...]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def read(self, names: Sequence[str]) -> dict[str, pa.Array]:
        return {name: manifest.column_of(self._items, name) for name in names}


class _OfTable:
    """Columns in memory."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table.combine_chunks()

    def __len__(self) -> int:
        return len(self._table)

    def read(self, names: Sequence[str]) -> dict[str, pa.Array]:
        return {name: _joined([self._table.column(name)], COLUMNS[name]) for name in names}


class _Selected:
    """Some rows of other columns."""

    def __init__(self, receipts: Receipts, rows: NDArray[np.int64]) -> None:
        self._receipts, self._rows = receipts, pa.array(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, names: Sequence[str]) -> dict[str, pa.Array]:
        columns = self._receipts.columns(*names)
        return {name: column.take(self._rows) for name, column in zip(names, columns, strict=True)}


class _Stored:
    """Columns of manifests: of the rows of a shard that in the newest file counts."""

    def __init__(self, store: str, manifests: Sequence[Manifest], shards: int | None) -> None:
        self._store, self._manifests, self._shards = store, manifests, shards
        self._rows: pa.Array | None = None  # of the joined manifests, in shard order
        self._is_joined = len(manifests) > 1 or any(item.removed for item in manifests)

    def __len__(self) -> int:
        if self._shards is None:
            self._shards = len(self.read(["shard"])["shard"])
        return self._shards

    def read(self, names: Sequence[str]) -> dict[str, pa.Array]:
        first = ["shard"] if self._is_joined and self._rows is None else []
        names = [*dict.fromkeys([*names, *first])]
        if not names:
            return {}
        tables = [manifest.read(self._store, item, names) for item in self._manifests]
        if first:
            self._rows = rows_that_count(tables)
        columns = {}
        for name in names:
            column = _joined([table.column(name) for table in tables], COLUMNS[name])
            columns[name] = column if self._rows is None else column.take(self._rows)
        found = len(columns[names[0]])
        if self._shards is not None and found != self._shards:
            files = ", ".join(item.path for item in self._manifests)
            raise DamagedError(
                f"{self._store}, {files}",
                expected=f"{self._shards} shards, as the version says",
                found=str(found),
            )
        return columns


def rows_that_count(tables: Sequence[pa.Table]) -> pa.Array:
    """Rows of the joined tables, in shard order: the newest of each shard, unless it is removed.

    Args:
        tables: of manifests, the oldest first, with ``shard`` and ``removed``.
    """
    stems, numbers, first = [], [], sum(map(len, tables))
    newer: list[pa.Array] = []
    for table in reversed(tables):
        first -= len(table)
        shards = _joined([table.column("shard")], COLUMNS["shard"])
        counts = pc.invert(table.column("removed"))
        if newer:
            known = pc.is_in(shards, value_set=pa.concat_arrays(newer))
            counts = pc.and_(counts, pc.invert(known))
        rows = np.flatnonzero(counts.to_numpy())
        stems.append(shards.take(pa.array(rows)))
        numbers.append(rows + first)
        newer.append(shards)
    order = pc.sort_indices(pa.concat_arrays(stems))
    return pa.array(np.concatenate(numbers)).take(order)


def _joined(columns: Sequence[pa.ChunkedArray], kind: pa.DataType) -> pa.Array:
    chunks = [chunk for column in columns for chunk in column.chunks]
    if len(chunks) == 1:
        return chunks[0]
    return pa.concat_arrays(chunks) if chunks else pa.nulls(0, kind)
