"""Streaming reads of a Parquet file: footer checked before decoding, page checksums verified."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from raypq import io_counters
from raypq.data.storage.footer import Chunk, Footer, FooterError, parse
from raypq.data.storage.objects import server_errors, status_of
from raypq.data.storage.operations import file_size
from raypq.data.storage.place import filesystem, is_local, local_path
from raypq.data.storage.settings import StorageSettings
from raypq.errors import DamagedError, InputError

# Errors of Arrow for a damaged file.
_UNREADABLE = (
    pa.ArrowInvalid,
    pa.ArrowNotImplementedError,
    UnicodeDecodeError,
    FooterError,
    OSError,
)
_MAGIC, _ENCRYPTED = b"PAR1", b"PARE"
_MAX_FOOTER = 256 << 20  # bytes; Arrow needs about a hundred times as much memory to read it
_READ_BUFFER = 1 << 20  # bytes; bounds what a column reader holds in addition to its page
_BLOCK, _BLOCKS = 8 << 20, 8  # cache of an object, in bytes and blocks: columns are read in turn
_SMALL = 64 << 20  # bytes; a column that decodes to less is harmless, however well it compresses


class CheckedFile(pq.ParquetFile):  # type: ignore[misc]  # pyarrow has no types
    """A Parquet file that yields exactly the rows of its footer, or raises an error.

    Arrow silently skips a page whose header was damaged to name another page type; a page's
    checksum does not cover its header.
    """

    uri: str
    footer: Footer

    def has(self, name: str) -> bool:
        """Whether there is a column of this name (or several)."""
        return name in self.schema_arrow.names

    def field(self, name: str) -> pa.Field:
        """The field of a column.

        Raises:
            InputError: no such column, or several of the name.
        """
        check_column(self.uri, self.schema_arrow.names, name)
        return self.schema_arrow.field(name)

    def iter_batches(
        self,
        batch_size: int = 65536,
        row_groups: Sequence[int] | None = None,
        columns: Sequence[str] | None = None,
        **options: Any,
    ) -> Iterator[pa.RecordBatch]:
        """As in ``pyarrow``, also with paths ``a.b`` into structs; text is checked to be UTF-8.

        Raises:
            InputError: another number of rows than in the footer, a requested column that is
                missing, or several columns of its name.
        """
        for name in columns or ():
            if self.has(name) or "." not in name:
                self.field(name)
        rows = 0
        for batch in super().iter_batches(batch_size, row_groups, columns, **options):
            _check_texts(batch.columns)
            rows += len(batch)
            yield batch
        groups = range(len(self.footer.groups)) if row_groups is None else row_groups
        self._check_rows(rows, sum(self.footer.groups[group][0] for group in groups))

    def read(self, columns: Sequence[str] | None = None, **options: Any) -> pa.Table:
        """As in ``pyarrow``, with the checks and errors of ``iter_batches``."""
        for name in columns or ():
            self.field(name)
        table = super().read(columns, **options)
        _check_texts(table.columns)
        self._check_rows(len(table), self.footer.rows)
        return table

    def _check_rows(self, found: int, expected: int) -> None:
        if found != expected:
            raise DamagedError(
                self.uri, expected=f"{expected} rows, as its footer says", found=f"{found} in all"
            )


def check_column(uri: str, names: Sequence[str], name: str) -> None:
    """Refuses a name that no column has, or several.

    Raises:
        InputError: naming the columns, or how many there are of the name.
    """
    count = names.count(name)
    if not count:
        raise InputError(uri, expected=f"a column '{name}'", found=f"columns {', '.join(names)}")
    if count > 1:
        raise InputError(
            uri,
            expected=f"one column '{name}'",
            found=f"{count} of that name; rename or drop the others",
        )


def _check_texts(columns: Iterable[pa.Array | pa.ChunkedArray]) -> None:
    for column in columns:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            column.validate(full=True)  # or a later reader would fail on it


def is_parquet(content: bytes) -> bool:
    """Whether content begins with the magic bytes of Parquet, encrypted or not."""
    return content[:4] in (_MAGIC, _ENCRYPTED)


@contextmanager
def open_parquet(
    uri: str,
    *,
    size: int | None = None,
    content: bytes | None = None,
    block: int = _BLOCK,
    blocks: int = _BLOCKS,
) -> Iterator[CheckedFile]:
    """Opens a Parquet file for streaming reads, page checksums verified.

    Local files are read through small buffers rather than a memory map: mapped pages count as
    the worker's memory, and a shard may be larger than that.

    Args:
        size: the expected size in bytes, where a snapshot gives it.
        content: of the file, if it has been read already.
        block, blocks: bytes of an object that are fetched at once, and blocks that are cached.

    Raises:
        InputError: the file is missing, empty, truncated, of another size or not Parquet.
    """
    with ExitStack() as stack:
        if not is_local(uri):
            stack.enter_context(server_errors(uri))
        yield stack.enter_context(_open(uri, size, content, block, blocks))


@contextmanager
def _open(
    uri: str, size: int | None, content: bytes | None, block: int, blocks: int
) -> Iterator[CheckedFile]:
    with ExitStack() as stack:
        try:
            source, actual_size = _open_source(uri, size, content, block, blocks)
            stack.callback(source.close)
            file = _open_checked(source, uri, actual_size)
        except FileNotFoundError:
            raise DamagedError(uri, expected="a Parquet file", found="no such file") from None
        except _UNREADABLE as error:
            if _is_io_failure(error):
                raise
            raise DamagedError(
                uri,
                expected="a complete Parquet file",
                found=f"one that is cut off or damaged, or no Parquet ({_first_line(error)})",
            ) from None
        stack.callback(file.close, force=True)
        try:
            yield file
        except _UNREADABLE as error:
            if _is_io_failure(error):
                raise
            raise _read_error(file, error) from error


@contextmanager
def open_bytes(uri: str) -> Iterator[tuple[IO[bytes], int]]:
    """A file to read from at any place, and its size in bytes.

    Raises:
        DamagedError: it is missing or empty.
    """
    with ExitStack() as stack:
        if not is_local(uri):
            stack.enter_context(server_errors(uri))
        try:
            size = file_size(uri)
            if is_local(uri):
                source: Any = open(local_path(uri), "rb", buffering=_READ_BUFFER)  # noqa: SIM115
            else:
                source = _open_remote(uri, _BLOCK, _BLOCKS)
        except FileNotFoundError:
            raise DamagedError(uri, expected="a file", found="no such file") from None
        stack.callback(source.close)
        if not size:
            raise DamagedError(uri, expected="a file with content", found="an empty file (0 bytes)")
        yield source, size


def _open_source(
    uri: str, size: int | None, content: bytes | None, block: int, blocks: int
) -> tuple[Any, int]:
    """An Arrow or fsspec file to read from, and its size in bytes.

    Raises:
        DamagedError: it is empty, or not of the expected size.
    """
    actual_size = file_size(uri) if content is None else len(content)
    if actual_size == 0:
        raise DamagedError(uri, expected="a Parquet file", found="an empty file (0 bytes)")
    if size is not None and actual_size != size:
        raise DamagedError(
            uri, expected=f"a complete Parquet file of {size} bytes", found=f"{actual_size} bytes"
        )
    if content is not None:
        return pa.BufferReader(content), actual_size
    if is_local(uri):
        return pa.OSFile(str(local_path(uri)), "rb"), actual_size
    return _open_remote(uri, block, blocks), actual_size


def _open_remote(uri: str, block: int, blocks: int) -> Any:
    """An object to read from in blocks, some of which are cached."""
    fs, path = filesystem(uri)
    cache = {"cache_type": "blockcache", "cache_options": {"maxblocks": blocks}}
    return fs.open(path, "rb", block_size=block, **cache)


def _open_checked(source: Any, uri: str, size: int) -> CheckedFile:
    """Opens a Parquet file with Arrow, after its footer has been checked.

    Raises:
        InputError: the footer asks for more than is allowed, or is encrypted.
        FooterError: there is no footer, or Arrow reads another number of columns in it.
    """
    footer = _read_footer(source, uri, size)
    if footer is not None:
        _check_footer(footer, uri, size)
    file = CheckedFile(
        source,
        pre_buffer=False,
        buffer_size=_READ_BUFFER,
        page_checksum_verification=True,
    )
    if footer is None:
        raise FooterError("no footer")
    if file.metadata.num_columns != len(footer.leaves):
        raise FooterError(f"{len(footer.leaves)} columns, or {file.metadata.num_columns}")
    file.uri, file.footer = uri, footer
    return file


def _read_error(file: CheckedFile, error: BaseException) -> InputError:
    """The error to raise where a page could not be decoded."""
    if file.footer.encrypted and "decrypt" in str(error):
        return InputError(
            file.uri,
            expected="columns that are not encrypted, for raypq holds no keys",
            found=f"encrypted {', '.join(file.footer.encrypted)}",
        )
    return DamagedError(
        file.uri, expected="readable Parquet pages", found=f"damaged ones ({_first_line(error)})"
    )


def stream(
    file: CheckedFile, rows: int, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Batches of up to ``rows`` rows of some columns (all by default); adds to ``io_counters``."""
    size = stored_bytes(file.footer, columns) / max(file.footer.rows, 1)
    for batch in file.iter_batches(batch_size=rows, columns=columns):
        io_counters.add(len(batch), size * len(batch))
        yield batch


def stored_bytes(footer: Footer, columns: Sequence[str] | None) -> int:
    """Stored bytes of these columns; ``a`` includes ``a.list.element``."""
    return sum(
        chunk.stored
        for _, chunks in footer.groups
        for chunk in chunks
        if columns is None or any(f"{chunk.path}.".startswith(f"{name}.") for name in columns)
    )


def _read_footer(source: Any, uri: str, size: int) -> Footer | None:
    """The footer of an open file; None if there is none (Arrow's error says more about that).

    Raises:
        InputError: the file is encrypted as a whole, or its footer is too large.
        FooterError: it is damaged.
    """

    def read(start: int, n: int) -> bytes:
        source.seek(start)
        return bytes(source.read(n))

    tail = read(max(size - 8, 0), 8)
    if tail[-4:] == _ENCRYPTED:
        raise InputError(
            uri,
            expected="a file that is not encrypted, for raypq holds no keys",
            found="an encrypted footer",
        )
    length = int.from_bytes(tail[:4], "little")
    if tail[-4:] != _MAGIC or length > size - 12:
        return None
    if length > _MAX_FOOTER:
        raise InputError(
            uri,
            expected=f"a footer of at most {_MAX_FOOTER >> 20} MiB",
            found=f"{length >> 20} MiB; write larger row groups or fewer columns",
        )
    return parse(read(size - 8 - length, length))


def _check_footer(footer: Footer, uri: str, size: int) -> None:
    """Refuses a decompression bomb before a page is decoded.

    A page is decompressed as a whole, and is at most as large as its column chunk. A chunk that
    expands more than data does (``StorageSettings.expansion``) is refused. Encrypted columns are
    not checked; they cannot be read either.

    Raises:
        InputError: naming the row group and column, its sizes and the bound.
    """
    bounds = StorageSettings.current()
    for index, (rows, chunks) in enumerate(footer.groups):
        for chunk, leaf in zip(chunks, footer.leaves, strict=True):
            stored, plain = chunk.stored, chunk.plain
            if min(stored, plain, chunk.values) < 0 or stored > size:
                raise InputError(
                    _location(uri, index, chunk),
                    expected=f"sizes that fit a file of {size} bytes",
                    found=f"{stored} bytes stored, {plain} decompressed, {rows} rows",
                )
            if plain > bounds.row_group_bytes:
                raise InputError(
                    _location(uri, index, chunk),
                    expected=f"at most {bounds.row_group_mib} MiB in one row group "
                    "(RAYPQ_STORAGE_ROW_GROUP_MIB)",
                    found=f"{plain >> 20} MiB; write smaller row groups",
                )
            decoded = max(plain, chunk.values * (leaf.width or 1))
            if decoded > max(_SMALL, bounds.expansion * stored):
                raise InputError(
                    _location(uri, index, chunk),
                    expected=f"data that grows at most {bounds.expansion} times when it is read "
                    "(RAYPQ_STORAGE_EXPANSION)",
                    found=f"{stored} bytes that ask for {decoded >> 20} MiB",
                )
    rows = sum(rows for rows, _ in footer.groups)
    if rows != footer.rows:
        raise InputError(
            uri, expected=f"{footer.rows} rows, as its footer says", found=f"{rows} in all"
        )


def _location(uri: str, group: int, chunk: Chunk) -> str:
    return f"{uri}, row group {group}, column '{chunk.path}'"


def _is_io_failure(error: BaseException) -> bool:
    """Whether an error is of the storage, rather than of the file's content.

    Arrow reports content that it cannot decode as a plain OSError without a number; a lost
    connection is a subclass, a full or failing disk has a number, and an error of a server has its
    response.
    """
    if not isinstance(error, OSError):
        return False
    if status_of(error) is not None:
        return True
    from_arrow = type(error) is OSError and error.filename is None
    return not (from_arrow and error.errno in (None, errno.EINVAL))


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
