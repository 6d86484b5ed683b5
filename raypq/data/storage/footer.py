"""A reader of Parquet footers without Arrow: sizes, and which columns are encrypted.

Arrow aborts the process where a column's metadata is encrypted or damaged, since an exception of
its C++ is not translated to Python. This reader extracts what the checks need and refuses an
inconsistent footer, before Arrow reads it. Format: parquet.thrift of Apache Parquet, in Thrift's
compact protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_BOOLEANS, _BYTE, _SHORT_TO_LONG, _DOUBLE, _BINARY = (1, 2), 3, (4, 5, 6), 7, 8
_LISTS, _MAP, _STRUCT, _UUID = (9, 10), 11, 12, 13
_MAX_DEPTH = 32  # nested structs
_WIDTHS = {0: 1, 1: 4, 2: 8, 3: 12, 4: 4, 5: 8}  # bytes of a value by physical type
_FIXED = 7  # FIXED_LEN_BYTE_ARRAY
_TYPES = 8  # number of physical types


class FooterError(ValueError):
    """A footer that cannot be read, or is inconsistent."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf column: its physical type, and the bytes of a value (1 where they vary)."""

    type: int
    width: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A column chunk of a row group.

    Attributes:
        stored, plain: bytes, compressed and uncompressed; 0 where it is encrypted.
        values: their number; 0 where it is encrypted.
    """

    path: str
    stored: int
    plain: int
    values: int
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class Footer:
    """The parts of a footer that are checked.

    Attributes:
        rows: of the file. groups: rows and chunks of each row group, one chunk for each leaf.
    """

    rows: int
    leaves: tuple[Leaf, ...]
    groups: tuple[tuple[int, tuple[Chunk, ...]], ...]

    @property
    def encrypted(self) -> list[str]:
        """Paths of the columns that are encrypted in some row group."""
        return sorted({c.path for _, chunks in self.groups for c in chunks if c.encrypted})


def parse(content: bytes) -> Footer:
    """Parses a footer, without the length and the magic bytes that follow it.

    Raises:
        FooterError: it is damaged or inconsistent.
    """
    try:
        return _Reader(content).footer()
    except IndexError:
        raise FooterError("a footer that ends too early") from None


class _Reader:
    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def footer(self) -> Footer:
        rows, leaves = -1, tuple[Leaf, ...]()
        groups: tuple[tuple[int, tuple[Chunk, ...]], ...] = ()
        for field, kind in self._fields():
            if field == 2 and kind in _LISTS:
                leaves = self._schema()
            elif field == 3 and kind in _SHORT_TO_LONG:
                rows = self._integer()
            elif field == 4 and kind in _LISTS:
                groups = tuple(self._group(len(leaves), at) for at in self._structs())
            else:
                self._skip(kind)
        if rows < 0:
            raise FooterError("a footer without a number of rows")
        return Footer(rows, leaves, groups)

    def _schema(self) -> tuple[Leaf, ...]:
        leaves = []
        for at in self._structs():
            physical = width = children = 0
            typed = False
            for field, kind in self._fields():
                if field == 1 and kind in _SHORT_TO_LONG:
                    physical, typed = self._integer(), True
                elif field == 2 and kind in _SHORT_TO_LONG:
                    width = self._integer()
                elif field == 5 and kind in _SHORT_TO_LONG:
                    children = self._integer()
                else:
                    self._skip(kind)
            if at and typed and not children:  # the first element is the root
                if not 0 <= physical < _TYPES or width < 0:
                    raise FooterError(f"a column of the physical type {physical}, width {width}")
                leaves.append(
                    Leaf(physical, width if physical == _FIXED else _WIDTHS.get(physical, 1))
                )
        return tuple(leaves)

    def _group(self, columns: int, number: int) -> tuple[int, tuple[Chunk, ...]]:
        rows, chunks = -1, tuple[Chunk, ...]()
        for field, kind in self._fields():
            if field == 1 and kind in _LISTS:
                chunks = tuple(self._chunk(number) for _ in self._structs())
            elif field == 3 and kind in _SHORT_TO_LONG:
                rows = self._integer()
            else:
                self._skip(kind)
        if len(chunks) != columns:
            raise FooterError(f"row group {number} with {len(chunks)} of {columns} columns")
        if rows < 0:
            raise FooterError(f"row group {number} with {rows} rows")
        return rows, chunks

    def _chunk(self, group: int) -> Chunk:
        chunk: Chunk | None = None
        encrypted, path = False, ""
        for field, kind in self._fields():
            if field == 3 and kind == _STRUCT:
                chunk = self._metadata()
            elif field == 8:  # crypto_metadata, which holds the path of an encrypted column
                encrypted = True
                path = self._crypto_metadata(kind)
            else:
                self._skip(kind)
        if encrypted:
            return Chunk(path or (chunk.path if chunk else "?"), 0, 0, 0, encrypted=True)
        if chunk is None:
            raise FooterError(f"row group {group} with a column without metadata")
        return chunk

    def _crypto_metadata(self, kind: int) -> str:
        """The column's path in ``ColumnCryptoMetaData``, a union of two structs."""
        path = ""
        if kind != _STRUCT:
            self._skip(kind)
            return path
        for _, variant in self._fields():
            if variant != _STRUCT:
                self._skip(variant)
                continue
            for field, inner in self._fields():
                if field == 1 and inner in _LISTS:
                    path = ".".join(self._texts())
                else:
                    self._skip(inner)
        return path

    def _metadata(self) -> Chunk:
        path, values, plain, stored = "", 0, 0, 0
        for field, kind in self._fields():
            if field == 3 and kind in _LISTS:
                path = ".".join(self._texts())
            elif field == 5 and kind in _SHORT_TO_LONG:
                values = self._integer()
            elif field == 6 and kind in _SHORT_TO_LONG:
                plain = self._integer()
            elif field == 7 and kind in _SHORT_TO_LONG:
                stored = self._integer()
            else:
                self._skip(kind)
        return Chunk(path, stored, plain, values)

    # ---- the compact protocol --------------------------------------------------------------

    def _fields(self) -> Iterator[tuple[int, int]]:
        """Number and type of each field of a struct; the caller reads or skips the value."""
        last = 0
        while head := self._byte():
            last = last + (head >> 4) if head >> 4 else self._integer()
            yield last, head & 15

    def _list(self) -> tuple[int, int]:
        head = self._byte()
        size = head >> 4 if head >> 4 != 15 else self._varint()
        if size > len(self._data) - self._at:
            raise FooterError(f"a list of {size} items in {len(self._data)} bytes")
        return size, head & 15

    def _structs(self) -> range:
        size, kind = self._list()
        if size and kind != _STRUCT:
            raise FooterError("a list of another element type")
        return range(size)

    def _texts(self) -> list[str]:
        size, kind = self._list()
        if size and kind != _BINARY:
            raise FooterError("a path that is no text")
        return [self._binary().decode("utf-8", "replace") for _ in range(size)]

    def _byte(self) -> int:
        at = self._at
        self._at = at + 1
        return self._data[at]

    def _varint(self) -> int:
        data, at = self._data, self._at
        byte = data[at]
        at += 1
        value, shift = byte & 127, 7
        while byte > 127:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if shift > 70:
                raise FooterError("a number of more than 64 bits")
        self._at = at
        return value

    def _integer(self) -> int:
        """A zigzag varint."""
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _binary(self) -> bytes:
        size, start = self._varint(), self._at
        self._at = start + size
        if self._at > len(self._data):
            raise FooterError(f"a text of {size} bytes in {len(self._data)}")
        return self._data[start : self._at]

    def _skip(self, kind: int, depth: int = 0) -> None:
        if depth > _MAX_DEPTH:
            raise FooterError("too many nested structs")
        if kind in _SHORT_TO_LONG:
            self._varint()
        elif kind == _BINARY:
            self._binary()
        elif kind == _STRUCT:
            for _, inner in self._fields():
                self._skip(inner, depth + 1)
        elif kind in _LISTS:
            size, inner = self._list()
            for _ in range(size):
                self._item(inner, depth + 1)
        elif kind == _BYTE:
            self._at += 1
        elif kind == _DOUBLE:
            self._at += 8
        elif kind == _UUID:
            self._at += 16
        elif kind == _MAP:
            if size := self._varint():
                kinds = self._byte()
                for _ in range(size):
                    self._item(kinds >> 4, depth + 1)
                    self._item(kinds & 15, depth + 1)
        elif kind not in _BOOLEANS:  # whose type is their value
            raise FooterError(f"a value of the unknown type {kind}")

    def _item(self, kind: int, depth: int) -> None:
        """Skips an item of a list or map, where a boolean takes a byte."""
        self._skip(_BYTE if kind in _BOOLEANS else kind, depth)
