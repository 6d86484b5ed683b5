"""The columns of a class table, checked and converted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq.data import arrays, texts
from raypq.data.feature_columns import stored_width
from raypq.data.layouts import arrow_types, tensors
from raypq.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class PrototypeLists:
    """Several embeddings of each class, of which the best one gives its score.

    Attributes:
        E: [p, da], float32, class by class. owner: class of each [p], ascending int64.
    """

    E: NDArray[np.float32]
    owner: NDArray[np.int64]

    def of(self, chosen: NDArray[np.int64]) -> PrototypeLists:
        """Those of some classes, ascending; owners are positions in ``chosen``."""
        owner = np.searchsorted(chosen, self.owner)
        taken = np.isin(self.owner, chosen)
        return PrototypeLists(E=self.E[taken], owner=owner[taken])


def names(table: pa.Table, uri: str, ids: pa.StringArray) -> list[str]:
    """Readable names [T]; the class_id where there is none."""
    if "name" not in table.column_names:
        return [str(key) for key in ids]
    column = arrays.whole(table.column("name"))
    if arrow_types.is_text(arrow_types.plain_type(column.type)):
        column = texts.strings(column, where=f"{uri}, column 'name'", nulls=True)
    pairs = zip(column.to_pylist(), ids, strict=True)
    return [str(key) if name is None or name == "" else str(name) for name, key in pairs]


def embeddings(table: pa.Table, uri: str, ids: pa.StringArray) -> NDArray[np.float32] | None:
    """Class embeddings [T, da]; None without the column.

    Raises:
        InputError: they are no vectors of finite numbers of one width.
    """
    if "embedding" not in table.column_names:
        return None
    where = f"{uri}, column 'embedding'"
    column = arrays.whole(table.column("embedding"))
    arrow_types.check_extension(table.schema.field("embedding"), where)
    width = _width(table.schema.field("embedding"), column, uri)
    raw = arrays.matrix(column, width=width, where=where)
    return arrays.finite_float32(raw, where=where, ids=ids)


def check_width(E: NDArray[np.float32], width: int, uri: str) -> None:
    """Refuses embeddings of another width than those before.

    Raises:
        InputError: they are.
    """
    if E.shape[1] != width:
        raise InputError(
            f"{uri}, column 'embedding'",
            expected=f"{width} values, as in the rows before",
            found=str(E.shape[1]),
        )


def _width(field: pa.Field, column: pa.Array, uri: str) -> int | None:
    """Values of an embedding stored as bytes: from the field's metadata, or from its size.

    None for lists, whose type or values give the width.

    Raises:
        InputError: bytes that may be float16 or float32.
    """
    fixed = pa.types.is_fixed_size_binary(column.type)
    if not (fixed or arrow_types.is_bytes(column.type)):
        return None
    if (width := stored_width(field)) is not None:
        return width
    sizes = [column.type.byte_width] if fixed else pc.unique(pc.binary_length(column)).to_pylist()
    if sizes and all(size % 4 == 2 for size in sizes):
        return int(sizes[0]) // 2  # float16: the size is no multiple of 4 bytes
    raise InputError(
        f"{uri}, column 'embedding'",
        expected="a list of numbers, or bytes with a note of how many numbers they are",
        found=f"{column.type} without it, which may be float16 or float32; write a list, or note "
        f"it: raypq repack --features {uri} --id-column class_id --feature-column embedding "
        "--feature-width WIDTH --output FOLDER",
    )


def bias(table: pa.Table, uri: str) -> NDArray[np.float64] | None:
    """A number for each class [T]; None without the column.

    Raises:
        InputError: other values, or one that is not finite.
    """
    if "bias" not in table.column_names:
        return None
    column = arrays.whole(table.column("bias"))
    numbers = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    where = f"{uri}, column 'bias'"
    if not numbers or column.null_count:
        raise InputError(
            where,
            expected="a number for each class",
            found=f"{column.type} with {column.null_count} nulls",
        )
    bias = column.cast(pa.float64(), safe=False).to_numpy()
    if len(bad := np.flatnonzero(~np.isfinite(bias))):
        raise InputError(
            f"{where}, row {bad[0]}", expected="a finite number", found=str(bias[bad[0]])
        )
    return bias


def flags(table: pa.Table, name: str, uri: str) -> NDArray[np.bool_] | None:
    """A column of booleans, or of numbers that are all 0 or 1."""
    if name not in table.column_names:
        return None
    column = arrays.whole(table.column(name))
    values = column.storage if isinstance(column, pa.ExtensionArray) else column
    numbers = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    where = f"{uri}, column '{name}'"
    if not (pa.types.is_boolean(values.type) or numbers) or values.null_count:
        raise InputError(
            where,
            expected="booleans (or 0 and 1) without nulls",
            found=f"{column.type} with {values.null_count} nulls; write it as "
            f"CAST({name} AS BOOLEAN)",
        )
    flags = values.to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero((flags != 0) & (flags != 1))
    if len(wrong):
        raise InputError(f"{where}, row {wrong[0]}", expected="0 or 1", found=str(flags[wrong[0]]))
    return np.asarray(flags).astype(np.bool_)


def counts(table: pa.Table, uri: str) -> NDArray[np.int64] | None:
    """Images of each class [T]; None without the column.

    Raises:
        InputError: they are no int64 numbers.
    """
    if "image_count" not in table.column_names:
        return None
    column = arrays.whole(table.column("image_count"))
    if not pa.types.is_integer(column.type) or column.null_count:
        raise InputError(
            f"{uri}, column 'image_count'",
            expected="integers without nulls",
            found=f"{column.type} with {column.null_count} nulls; write it as "
            "CAST(image_count AS BIGINT)",
        )
    if pa.types.is_uint64(column.type) and len(column) and pc.max(column).as_py() >= 1 << 63:
        found = str(pc.max(column))
        raise InputError(f"{uri}, column 'image_count'", expected="int64 counts", found=found)
    return column.cast(pa.int64()).to_numpy()


def _check_vectors(vectors: pa.Array, width: int | None, where: str, owners: pa.Array) -> None:
    """Refuses nulls and vectors of another width, by their class."""
    if vectors.null_count:
        at = int(np.flatnonzero(vectors.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(
            f"{where}, class_id {owners[at].as_py()!r}", expected="vectors", found="a null"
        )
    widths = tensors.list_lengths(vectors)
    wanted = width if width is not None or not len(widths) else int(widths[0])
    if len(wrong := np.flatnonzero(widths != wanted)):
        at = int(wrong[0])
        raise InputError(
            f"{where}, class_id {owners[at].as_py()!r}",
            expected=f"vectors of {wanted} values, as the embeddings",
            found=f"one of {widths[at]} ({len(wrong)} such vector(s))",
        )


def prototypes(
    table: pa.Table, uri: str, ids: pa.StringArray, width: int | None
) -> PrototypeLists | None:
    """The lists of the column ``prototypes``, each of at least one vector of ``width``.

    Raises:
        InputError: another type, an empty list, or vectors of another width than the embeddings.
    """
    if "prototypes" not in table.column_names:
        return None
    column = arrays.whole(table.column("prototypes"))
    where = f"{uri}, column 'prototypes'"
    nested = arrow_types.is_list(column.type) and arrow_types.is_list(column.type.value_type)
    if not nested or column.null_count:
        raise InputError(
            where,
            expected="a list of vectors for each class",
            found=f"{column.type} with {column.null_count} nulls",
        )
    lengths = tensors.list_lengths(column)
    if len(empty := np.flatnonzero(lengths == 0)):
        raise InputError(
            f"{where}, class_id {ids[int(empty[0])].as_py()!r}",
            expected="at least one vector",
            found="an empty list",
        )
    owner = np.repeat(np.arange(len(column), dtype=np.int64), lengths)
    _check_vectors(column.flatten(), width, where, ids.take(pa.array(owner)))
    owners = ids.take(pa.array(owner))
    raw = arrays.matrix(column.flatten(), width=width, where=where)
    return PrototypeLists(E=arrays.finite_float32(raw, where=where, ids=owners), owner=owner)
