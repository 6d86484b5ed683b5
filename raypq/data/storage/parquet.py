"""Reading one Parquet file in a stream: page checksums verified, footer checked before decoding."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raypq import meter
from raypq.data.storage.objects import answering
from raypq.data.storage.operations import file_size
from raypq.data.storage.place import filesystem, is_local, local_path
from raypq.data.storage.settings import StorageSettings
from raypq.errors import InputError

# What Arrow raises for a damaged file.
_UNREADABLE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, OSError)
_READ_BUFFER = 1 << 20  # bytes; bounds what a column reader holds beside its page
_BLOCK, _BLOCKS = 8 << 20, 8  # of an object kept at hand: columns are read in turn
_SMALL = 64 << 20  # bytes; a column that decodes to less is no danger, however well it packs
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}  # bytes


@contextmanager
def open_parquet(
    uri: str,
    *,
    size: int | None = None,
    content: bytes | None = None,
    block: int = _BLOCK,
    blocks: int = _BLOCKS,
) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file for reading in a stream, page checksums verified.

    Local files are read through small buffers rather than a memory map: mapped pages count as
    the worker's memory, and a shard may be larger than the worker.

    Args:
        size: bytes that the file must have, where a snapshot says it.
        content: of the file, where it is read already.
        block, blocks: of an object so many bytes are fetched at once, and so many of these kept.

    Raises:
        InputError: the file is missing, empty, truncated, of another size or not Parquet.
    """
    with ExitStack() as stack:
        if not is_local(uri):
            stack.enter_context(answering(uri))
        yield stack.enter_context(_open(uri, size, content, block, blocks))


@contextmanager
def _open(
    uri: str, size: int | None, content: bytes | None, block: int, blocks: int
) -> Iterator[pq.ParquetFile]:
    source: Any = None
    try:
        found = file_size(uri) if content is None else len(content)
        if found == 0:
            raise InputError(uri, expected="a Parquet file", found="an empty file (0 bytes)")
        if size is not None and found != size:
            raise InputError(
                uri, expected=f"a complete Parquet file of {size} bytes", found=f"{found} bytes"
            )
        if content is not None:
            source = pa.BufferReader(content)
        elif is_local(uri):
            source = pa.OSFile(str(local_path(uri)), "rb")
        else:
            source = _open_object(uri, block, blocks)
        file = pq.ParquetFile(
            source,
            pre_buffer=False,
            buffer_size=_READ_BUFFER,
            page_checksum_verification=True,
        )
        _check_footer(file.metadata, uri, found)
    except FileNotFoundError:
        raise InputError(uri, expected="a Parquet file", found="no such file") from None
    except _UNREADABLE as error:
        if source is not None:
            source.close()
        if isinstance(error, OSError) and not _is_arrows(error):
            raise
        raise InputError(
            uri, expected="a complete Parquet file", found=_first_line(error)
        ) from None
    try:
        yield file
    except _UNREADABLE as error:
        if isinstance(error, OSError) and not _is_arrows(error):
            raise
        raise InputError(
            uri, expected="readable Parquet pages", found=_first_line(error)
        ) from error
    finally:
        file.close(force=True)
        source.close()


def stream(
    file: pq.ParquetFile, rows: int, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Batches of up to ``rows`` rows of some columns (all by default), counted by the meter."""
    size = _stored_bytes(file.metadata, columns) / max(file.metadata.num_rows, 1)
    for batch in file.iter_batches(batch_size=rows, columns=columns):
        meter.add(len(batch), size * len(batch))
        yield batch


def _stored_bytes(footer: pq.FileMetaData, columns: Sequence[str] | None) -> int:
    """Bytes of these columns in the file; ``a`` takes ``a.list.element`` along."""
    chosen = [
        number
        for number in range(footer.num_columns)
        if columns is None
        or any(f"{footer.schema.column(number).path}.".startswith(f"{name}.") for name in columns)
    ]
    return sum(
        int(footer.row_group(group).column(number).total_compressed_size)
        for group in range(footer.num_row_groups)
        for number in chosen
    )


def _open_object(uri: str, block: int, blocks: int) -> Any:
    fs, path = filesystem(uri)
    return fs.open(
        path,
        "rb",
        block_size=block,
        cache_type="blockcache",
        cache_options={"maxblocks": blocks},
    )


def _check_footer(footer: pq.FileMetaData, uri: str, size: int) -> None:
    """Refuses a file that asks for more than it can hold, before a page of it is decoded.

    A page is decompressed whole, and it is no larger than its column's share of the row group.
    A column that packs beyond what data does (``StorageSettings.expansion``) is a bomb.

    Raises:
        InputError: naming the row group and column, what it asks for and the bound.
    """
    bounds = StorageSettings.current()
    rows = 0
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        rows += group.num_rows
        for number in range(group.num_columns):
            column = group.column(number)
            where = f"{uri}, row group {index}, column '{column.path_in_schema}'"
            stored, plain = column.total_compressed_size, column.total_uncompressed_size
            if min(stored, plain, group.num_rows, column.num_values) < 0 or stored > size:
                raise InputError(
                    where,
                    expected=f"sizes that fit a file of {size} bytes",
                    found=f"{stored} bytes stored, {plain} decompressed, {group.num_rows} rows",
                )
            if plain > bounds.row_group_bytes:
                raise InputError(
                    where,
                    expected=f"at most {bounds.row_group_mib} MiB in one row group "
                    "(RAYPQ_STORAGE_ROW_GROUP_MIB)",
                    found=f"{plain >> 20} MiB; write smaller row groups",
                )
            width = _WIDTHS.get(column.physical_type) or footer.schema.column(number).length or 1
            decoded = max(plain, column.num_values * width)
            if decoded > max(_SMALL, bounds.expansion * stored):
                raise InputError(
                    where,
                    expected=f"data that grows at most {bounds.expansion} times when it is read "
                    "(RAYPQ_STORAGE_EXPANSION)",
                    found=f"{stored} bytes that ask for {decoded >> 20} MiB",
                )
    if rows != footer.num_rows:
        raise InputError(
            uri, expected=f"{footer.num_rows} rows, as its footer says", found=f"{rows} in all"
        )


def _is_arrows(error: OSError) -> bool:
    # Arrow reports content that it cannot decode as a plain OSError without a number; a lost
    # connection is a subclass, a full or failing disk has a number.
    plain = type(error) is OSError and error.filename is None
    return plain and error.errno in (None, errno.EINVAL)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
