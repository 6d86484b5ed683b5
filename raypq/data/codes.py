"""Code files: ``id``, ``code`` fixed_size_binary and, copied from the features, ``label``.

Codes of images also have ``version``, which changes when the image does: the next run decodes only
images that changed. K ≤ 16 packs two codes to a byte, the even sub-codebook in the low half. The
file's metadata holds the model's fingerprint, M and K.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.data import arrays, format_version
from raypq.data.layouts import arrow_types
from raypq.data.layouts.image_files import VERSION_BYTES
from raypq.data.storage import CheckedFile, stream
from raypq.data.stored import open_stored
from raypq.errors import InputError

_FORMAT = "1"
WRITE_OPTIONS: dict[str, Any] = {
    "compression": {"id": "zstd", "label": "zstd", "code": "none", "version": "none"},
    "use_dictionary": ["label"],
}


def bytes_per_code(M: int, K: int) -> int:
    """Bytes of the code of one image."""
    return (M + 1) // 2 if K <= 16 else M


def usage_bits(count: NDArray[Any]) -> NDArray[np.float64]:
    """Entropy of codeword usage in bits, [M], of counts [M, K]; log2(K) for uniform usage."""
    share: NDArray[np.float64] = count / np.maximum(count.sum(axis=1, keepdims=True), 1.0)
    logs = np.log2(share, out=np.zeros_like(share), where=share > 0)
    return -(share * logs).sum(axis=1)


def pack(B: NDArray[np.uint8], K: int) -> NDArray[np.uint8]:
    """Codes [n, M] as stored bytes [n, bytes_per_code]."""
    if K > 16:
        return B
    even = B[:, 0::2]
    odd = np.zeros_like(even)
    odd[:, : B.shape[1] // 2] = B[:, 1::2]
    return (even | (odd << 4)).astype(np.uint8)


def unpack(stored: NDArray[np.uint8], M: int, K: int) -> NDArray[np.uint8]:
    """Stored bytes back to codes [n, M]; the inverse of ``pack``."""
    if K > 16:
        return stored
    B = np.empty((len(stored), M), np.uint8)
    B[:, 0::2] = stored & 15
    B[:, 1::2] = stored[:, : M // 2] >> 4
    return B


def schema(
    *,
    fingerprint: str,
    M: int,
    K: int,
    id_type: pa.DataType,
    label: bool,
    version: bool = False,
) -> pa.Schema:
    """The schema of a code file.

    Args:
        version: whether it has versions of images.
    """
    fields = [
        pa.field("id", id_type, nullable=False),
        pa.field("code", pa.binary(bytes_per_code(M, K)), nullable=False),
    ]
    if label:
        fields.append(pa.field("label", pa.string()))
    if version:
        fields.append(pa.field("version", pa.binary(VERSION_BYTES), nullable=False))
    metadata = {"raypq.format": _FORMAT, "raypq.model": fingerprint, "raypq.M": M, "raypq.K": K}
    return pa.schema(fields, metadata={key: str(value) for key, value in metadata.items()})


@dataclass(frozen=True, kw_only=True)
class CodeBatch:
    """Some consecutive rows of a code file.

    Attributes:
        B: codes [n, M], uint8. ids: n values. labels: n values, or None without the column.
    """

    B: NDArray[np.uint8]
    ids: pa.Array
    labels: pa.StringArray | None


@dataclass(frozen=True, kw_only=True)
class CodeFile:
    """The footer of a code file.

    Attributes:
        fingerprint: of the model. label: whether there are labels.
    """

    uri: str
    rows: int
    fingerprint: str
    M: int
    K: int
    id_type: pa.DataType
    label: bool

    @classmethod
    def open(cls, uri: str, *, size: int | None = None) -> CodeFile:
        """Reads the footer of a file.

        Args:
            size: the expected size in bytes, where a snapshot gives it.

        Raises:
            InputError: not a code file of this format, or of another size.
        """
        with open_stored(uri, "codes", size=size) as file:
            metadata = file.schema_arrow.metadata or {}
            format_version.refuse_file(metadata, uri, what="code file", known=_FORMAT)
            if metadata.get(b"raypq.format") != _FORMAT.encode():
                number = metadata.get(b"raypq.format", b"a Parquet file without raypq metadata")
                raise InputError(
                    uri, expected=f"a code file of format {_FORMAT}", found=number.decode()
                )
            missing = {"raypq.M", "raypq.K", "raypq.model"} - {key.decode() for key in metadata}
            missing |= {"column 'id'", "column 'code'"} - {
                f"column '{name}'" for name in file.schema_arrow.names
            }
            if missing:
                raise InputError(
                    uri, expected="a code file", found=f"one without {', '.join(sorted(missing))}"
                )
            M, K = (_number(metadata, key, uri) for key in (b"raypq.M", b"raypq.K"))
            _check_types(file, M, K)
            return cls(
                uri=uri,
                rows=file.metadata.num_rows,
                fingerprint=metadata[b"raypq.model"].decode(),
                M=M,
                K=K,
                id_type=file.field("id").type,
                label=file.has("label"),
            )

    def ids(self, rows: int) -> Iterator[pa.Array]:
        """Streams the ids alone.

        Raises:
            InputError: an id is null, naming the row.
        """
        with open_stored(self.uri, "codes") as file:
            row = 0
            for batch in stream(file, rows, columns=["id"]):
                _check_nulls(batch, self.uri, row)
                yield batch.column(0)
                row += len(batch)

    def codes(self, rows: int) -> Iterator[NDArray[np.uint8]]:
        """Streams the codes alone, in batches [n, M] of up to ``rows``.

        Raises:
            InputError: a code of K or more, or a null code, naming the row.
        """
        for _, B in self._decoded(rows, ["code"]):
            yield B

    def batches(self, rows: int, *, labels: bool = True) -> Iterator[CodeBatch]:
        """Streams the codes in batches of up to ``rows``, with labels if the file has them.

        Raises:
            InputError: a code of K or more, or a null code or id, naming the row.
        """
        label = self.label and labels
        columns = ["id", "code"] + (["label"] if label else [])
        for batch, B in self._decoded(rows, columns):
            yield CodeBatch(
                B=B, ids=batch.column("id"), labels=batch.column("label") if label else None
            )

    def _decoded(
        self, rows: int, columns: list[str]
    ) -> Iterator[tuple[pa.RecordBatch, NDArray[np.uint8]]]:
        """Batches of some columns, with their codes [n, M]."""
        row = 0
        with open_stored(self.uri, "codes") as file:
            for batch in stream(file, rows, columns=columns):
                _check_nulls(batch, self.uri, row)
                B = unpack(arrow_types.fixed_bytes(batch.column("code")), self.M, self.K)
                if self.K < 256 and B.size and int(B.max()) >= self.K:
                    bad = int(np.flatnonzero((B >= self.K).any(axis=1))[0])
                    raise InputError(
                        f"{self.uri}, row {row + bad}",
                        expected=f"codes below K = {self.K}",
                        found=str(int(B[bad].max())),
                    )
                yield batch, B
                row += len(batch)


def _check_types(file: CheckedFile, M: int, K: int) -> None:
    """Refuses columns of other types than raypq writes, and columns of the same name."""
    code = pa.binary(bytes_per_code(M, K))
    known: dict[str, tuple[pa.DataType, ...]] = {
        "id": (pa.string(), pa.int64()), "code": (code,), "label": (pa.string(),),
        "version": (pa.binary(VERSION_BYTES),),
    }  # fmt: skip
    for name in filter(file.has, known):
        if (found := file.field(name).type) not in known[name]:
            raise InputError(
                f"{file.uri}, column '{name}'",
                expected=" or ".join(map(str, known[name])),
                found=str(found),
            )


def _check_nulls(batch: pa.RecordBatch, uri: str, row: int) -> None:
    for name in {"id", "code"} & {*batch.schema.names}:
        column = batch.column(name)
        if column.null_count:
            first = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise InputError(
                f"{uri}, row {row + first}", expected=f"a value in column '{name}'", found="null"
            )


def _number(metadata: Mapping[bytes, bytes], key: bytes, uri: str) -> int:
    try:
        number = int(metadata[key])
    except ValueError:
        number = 0
    if not 1 <= number <= 65_536:
        text = metadata[key].decode(errors="replace")
        raise InputError(uri, expected=f"a number as {key.decode()}", found=repr(text))
    return number


def record_batch(
    schema: pa.Schema,
    *,
    ids: pa.Array,
    stored: NDArray[np.uint8],
    labels: pa.StringArray | None,
    versions: pa.FixedSizeBinaryArray | None = None,
) -> pa.RecordBatch:
    """One batch of a code file; a missing label column becomes nulls where the schema has one."""
    columns = [ids.cast(schema.field("id").type), arrays.fixed_binary(stored)]
    if "label" in schema.names:
        columns.append(labels if labels is not None else pa.nulls(len(ids), pa.string()))
    if "version" in schema.names:
        columns.append(versions)
    return pa.RecordBatch.from_arrays(columns, schema=schema)
