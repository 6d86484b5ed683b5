"""Manifest files: the receipts of many shards as columns of a Parquet file.

``manifests/<32 hex digits>.parquet`` is sorted by shard, written once, and shared by versions. Each
row is the receipt of a shard, or says that the shard is removed. A version names several manifests:
of the rows of a shard that in the last of them counts (``raypq.data.store.manifest_tree``).
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter, field_validator

from raypq.config import Settings
from raypq.data import format_version
from raypq.data.storage import (
    CheckedFile,
    atomic_write,
    join,
    open_parquet,
    sync_folder,
)
from raypq.data.store import named_files
from raypq.data.store.manifest_checks import check_values
from raypq.data.store.names import Id, Stem
from raypq.data.store.shard_stats import Spread
from raypq.data.store.shard_writer import Count, HashingFile, Receipt
from raypq.errors import DamagedError, InputError

FOLDER = "manifests"
ROW_GROUP = 10_000  # rows; the least that a search for a range of shards reads
_FORMAT = "1"
_PATH = re.compile(rf"{FOLDER}/[0-9a-f]{{32}}\.parquet")
_SHA256 = re.compile(r"[0-9a-f]{64}")

_TEXT, _COUNT, _REAL, _DIGEST = pa.large_string(), pa.int64(), pa.float64(), pa.binary(32)
_SPREAD = pa.struct([(name, _REAL) for name in Spread.model_fields])
_STATS = pa.struct(
    [("rows", _COUNT), ("error", _SPREAD), ("norm", _SPREAD), ("coded", _COUNT), ("entropy", _REAL)]
)
# Columns of receipts; beside them ``removed`` is stored.
COLUMNS: Mapping[str, pa.DataType] = {
    "shard": _TEXT,
    "path": _TEXT,
    "bytes": _COUNT,
    "rows": _COUNT,
    "sha256": _DIGEST,
    "model": _TEXT,
    "work": _TEXT,
    "source_uri": _TEXT,
    "source_size": _COUNT,
    "source_modified": _TEXT,
    "source_sha256": _DIGEST,
    "ids": _TEXT,
    "stats": _STATS,
}
_REMOVED = pa.field("removed", pa.bool_(), nullable=False)
_SCHEMA = pa.schema(
    [
        pa.field("shard", _TEXT, nullable=False),
        _REMOVED,
        *(pa.field(name, kind) for name, kind in COLUMNS.items() if name != "shard"),
    ],
    metadata={"raypq.format": _FORMAT},
)
_SORTED = ("shard", "path", "source_uri")  # texts that share their beginnings with their neighbours
_FEW = ("model", "work", "ids")  # texts that repeat
_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": list(_FEW),
    "column_encoding": dict.fromkeys(_SORTED, "DELTA_BYTE_ARRAY")
    | dict.fromkeys(("bytes", "rows", "source_size"), "DELTA_BINARY_PACKED"),
    "write_page_checksum": True,
    "row_group_size": ROW_GROUP,
}


class Manifest(Settings):
    """A manifest file as a version names it.

    Attributes:
        bytes, sha256: of the file.
        shards, removed: its rows, of shards and of removed ones.
        rows, data_bytes: sums over its shards.
        first, last: the first and last shard, removed ones included.
        models: fingerprints of the models of its shards.
    """

    path: str
    bytes: Count
    sha256: str
    shards: Count
    removed: Count
    rows: Count
    data_bytes: Count
    first: Stem
    last: Stem
    models: tuple[Id, ...]

    @field_validator("path")
    @classmethod
    def _inside(cls, value: str) -> str:
        if not _PATH.fullmatch(value):
            raise ValueError(f"expected a name {FOLDER}/<32 hex digits>.parquet, found {value!r}")
        return value

    @property
    def entries(self) -> int:
        """Its rows."""
        return self.shards + self.removed


class Totals(Settings):
    """Sums over the shards of a version, so that it can be listed without its manifests."""

    shards: Count
    rows: Count
    bytes: Count
    models: tuple[Id, ...] = Field(default=())


_RECEIPTS = TypeAdapter(list[Receipt])


def _sha256_bytes(value: str | None) -> bytes | None:
    if value is None:
        return None
    if not _SHA256.fullmatch(value):
        raise ValueError(f"expected a sha256 of 64 hex digits, found {value!r}")
    return bytes.fromhex(value)


def _stats_values(receipt: Receipt) -> dict[str, Any] | None:
    return None if receipt.stats is None else receipt.stats.model_dump()


_GETTERS: Mapping[str, Callable[[Receipt], Any]] = {
    **{name: attrgetter(name) for name in COLUMNS if not name.startswith("source_")},
    **{
        name: attrgetter(name.replace("_", ".", 1)) for name in COLUMNS if name.startswith("source")
    },
    "sha256": lambda receipt: _sha256_bytes(receipt.sha256),
    "source_sha256": lambda receipt: _sha256_bytes(receipt.source.sha256),
    "stats": _stats_values,
}


def column_of(receipts: Iterable[Receipt], name: str) -> pa.Array:
    """One of ``COLUMNS`` of receipts.

    Raises:
        ValueError: a sha256 that is none.
    """
    get = _GETTERS[name]
    return pa.array([get(receipt) for receipt in receipts], COLUMNS[name])


def receipts_of(columns: pa.Table) -> list[Receipt]:
    """The receipts of rows with all ``COLUMNS``."""
    names = ("uri", "size", "modified", "sha256")
    rows = columns.to_pylist()
    for row in rows:
        row["source"] = {name: row.pop(f"source_{name}") for name in names}
        row["sha256"] = row["sha256"].hex()
        if (sha256 := row["source"]["sha256"]) is not None:
            row["source"]["sha256"] = sha256.hex()
    return _RECEIPTS.validate_python(rows)


def write(store: str, shards: pa.Table, removed: pa.Array) -> Manifest:
    """Writes a manifest; a version may name it when this returns.

    Args:
        shards: rows with all ``COLUMNS``. removed: names of removed shards.
    """
    stems = pa.concat_arrays([*shards.column("shard").chunks, removed.cast(_TEXT)])
    gone = pa.nulls(len(removed))
    table = pa.table(
        {
            "shard": stems,
            "removed": pa.array([False] * len(shards) + [True] * len(removed), pa.bool_()),
            **{
                name: pa.chunked_array([*shards.column(name).chunks, gone.cast(kind)], kind)
                for name, kind in COLUMNS.items()
                if name != "shard"
            },
        },
        schema=_SCHEMA,
    )
    table = table.take(pc.sort_indices(stems))
    path = f"{FOLDER}/{uuid.uuid4().hex}.parquet"
    with atomic_write(join(store, path)) as file:
        sink = HashingFile(file)
        pq.write_table(table, sink, **_OPTIONS)
    sync_folder(join(store, FOLDER))
    stems = table.column("shard")
    return Manifest(
        path=path,
        bytes=sink.bytes,
        sha256=sink.digest.hexdigest(),
        shards=len(shards),
        removed=len(removed),
        rows=pc.sum(shards.column("rows"), min_count=0).as_py(),
        data_bytes=pc.sum(shards.column("bytes"), min_count=0).as_py(),
        first=stems[0].as_py(),
        last=stems[-1].as_py(),
        models=tuple(sorted(pc.unique(shards.column("model")).to_pylist())),
    )


def read(store: str, manifest: Manifest, columns: Iterable[str]) -> pa.Table:
    """Columns of a manifest, and ``removed``; checked, so that no name leads out of the store.

    Raises:
        InputError: the file is missing, damaged, of a newer format, or its values cannot be.
    """
    wanted = list(dict.fromkeys([*columns, "removed"]))
    with _opened(store, manifest, wanted) as file:
        table = file.read(wanted).combine_chunks()
    check_values(join(store, manifest.path), table)
    return table


def find(store: str, manifest: Manifest, shards: pa.Array, columns: Iterable[str]) -> pa.Table:
    """As ``read``, the rows of some shards; reads only row groups that may hold them, and their
    other columns only where there are any."""
    wanted = list(dict.fromkeys(["shard", *columns, "removed"]))
    found: list[pa.RecordBatch] = []
    with _opened(store, manifest, wanted) as file:
        leaves = file.metadata.schema
        at = next(at for at in range(len(leaves)) if leaves.column(at).path == "shard")
        for group in range(file.num_row_groups):
            if not _may_hold(file.metadata.row_group(group).column(at).statistics, shards):
                continue
            batches = file.iter_batches(ROW_GROUP, [group], ["shard"])
            names = pa.chunked_array([batch.column("shard") for batch in batches], _TEXT)
            if pc.any(pc.is_in(names, value_set=shards)).as_py():
                found += file.iter_batches(ROW_GROUP, [group], wanted)
        schema = pa.schema([file.field(name) for name in wanted])
    table = pa.Table.from_batches(found, schema)
    table = table.filter(pc.is_in(table.column("shard"), value_set=shards)).combine_chunks()
    check_values(join(store, manifest.path), table)
    return table


def _may_hold(bounds: Any, shards: pa.Array) -> bool:
    """Whether some shards may lie between the first and the last of a row group."""
    if bounds is None or not bounds.has_min_max:
        return True
    low, high = pa.scalar(bounds.min, _TEXT), pa.scalar(bounds.max, _TEXT)
    inside = pc.and_(pc.greater_equal(shards, low), pc.less_equal(shards, high))
    return bool(pc.any(inside).as_py())


@contextmanager
def _opened(store: str, manifest: Manifest, columns: Sequence[str]) -> Iterator[CheckedFile]:
    uri = join(store, manifest.path)
    with open_parquet(uri, size=manifest.bytes) as file:
        metadata = file.metadata.metadata
        format_version.refuse_file(metadata, uri, what="manifest", known=_FORMAT)
        for name in columns:
            kind = _SCHEMA.field(name).type
            if file.field(name).type != kind:
                raise InputError(
                    f"{uri}, column '{name}'", expected=str(kind), found=str(file.field(name).type)
                )
        if file.footer.rows != manifest.entries:
            raise DamagedError(
                uri, expected=f"{manifest.entries} rows", found=f"{file.footer.rows} rows"
            )
        yield file


def damaged(
    store: str, manifests: Sequence[Manifest], *, sha256: bool = False
) -> Iterator[InputError]:
    """An error for each manifest that is missing or of another size.

    Args:
        sha256: check the content, too.
    """
    return named_files.damaged(store, FOLDER, manifests, noun="manifest", sha256=sha256)
