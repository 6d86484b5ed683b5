"""The columns of a feature shard: how vectors are stored, the type of its ids, its labels."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from raypq.config import Columns
from raypq.data import arrays, ids, images
from raypq.data.ids import IdRule
from raypq.data.layouts import ShardFile, arrow_types
from raypq.errors import InputError

_SAMPLED = 16  # values of a column of bytes that decide between images and vectors
WIDTH_NOTE = b"raypq.width"  # metadata of a fixed_size_binary feature field


@dataclass(frozen=True, kw_only=True)
class FeatureLayout:
    """The layout of a feature column.

    Attributes:
        width: values of a vector, if known before a row is read.
        side: pixels on a side, if it holds encoded images.
        sized: whether it is fixed_size_binary, whose size does not determine the width.
    """

    width: int | None
    side: int | None = None
    sized: bool = False


def layout_of(file: ShardFile, columns: Columns, width: int | None, uri: str) -> FeatureLayout:
    """The layout of a feature column; ``width`` is the model's dx, if there is a model.

    Raises:
        InputError: bytes that may be images or vectors.
    """
    field = file.field(columns.feature)
    where = f"{uri}, column '{columns.feature}'"
    if file.names_images(columns.feature):
        return FeatureLayout(width=None, side=_side(columns, width, where))
    arrow_types.check_extension(field, where)
    kind = arrow_types.storage_type(field.type)
    known = width or columns.width or stored_width(field)
    if pa.types.is_fixed_size_binary(kind):
        return FeatureLayout(width=known, sized=True)
    if arrow_types.is_bytes(kind):
        if columns.width is not None or _are_vectors(file, columns, width, where):
            return FeatureLayout(width=known)
        return FeatureLayout(width=None, side=_side(columns, width, where))
    if pa.types.is_fixed_size_list(kind):
        empty = pa.array([], kind)
        return FeatureLayout(width=arrays.matrix(empty, width=width, where=where).shape[1])
    return FeatureLayout(width=known)


def check_images(file: ShardFile, columns: Columns) -> None:
    """Checks that a feature column holds encoded images or image files.

    Raises:
        InputError: it has another type.
    """
    kind = file.field(columns.feature).type
    if not (file.names_images(columns.feature) or arrow_types.is_bytes(kind)):
        raise InputError(
            f"{file.uri}, column '{columns.feature}'",
            expected="encoded images (bytes, or a struct {bytes, path})",
            found=str(kind),
        )


def _are_vectors(file: ShardFile, columns: Columns, width: int | None, where: str) -> bool:
    """Whether byte strings are vectors rather than encoded images.

    Raises:
        InputError: they are no images, and the width of the vectors is not known.
    """
    if columns.image_size is not None or not file.rows:
        return False
    first = next(file.batches(_SAMPLED, [columns.feature])).column(0)
    values = [value for value in first.to_pylist() if value]
    sizes = {len(value) for value in values}
    if not values or len(sizes) > 1:
        return False
    size = sizes.pop()
    if width is not None and size in (2 * width, 4 * width):
        return not any(images.is_image(value, signed=True) for value in values)
    if size % 4 or columns.bad_images or any(images.is_image(value) for value in values):
        return False
    raise InputError(
        where,
        expected="encoded images"
        if width is None
        else f"encoded images, or vectors of width {width} ({4 * width} or {2 * width} bytes)",
        found=f"{size} bytes a row that are no image; if they are {size // 4} float32 values, "
        f"say so with --feature-width {size // 4} (columns.width)",
    )


def _side(columns: Columns, width: int | None, where: str) -> int:
    """Pixels on a side of the images in a column: from the model's width, or the job's settings."""
    if width is not None:
        return images.side_of(width, where=where)
    if columns.image_size is None:
        raise InputError(
            where,
            expected="a size in pixels to read images (--image-size, columns.image_size)",
            found="none",
        )
    return columns.image_size


def stored_width(field: pa.Field) -> int | None:
    """The width in the metadata of a fixed_size_binary field, where ``raypq repack`` writes it."""
    width = (field.metadata or {}).get(WIDTH_NOTE, b"")
    return int(width) if width.isdigit() else None


def kind_of_ids(file: ShardFile, columns: Columns, rule: IdRule | None) -> ids.IdKind:
    """The type of a shard's ids; for a shard without rows, that of the store.

    Raises:
        InputError: no such column, several, a type that ids cannot have, or another type than that
            of the store.
    """
    kind = file.field(columns.id).type
    where = f"{file.uri}, column '{columns.id}'"
    if not file.rows:  # the type of an empty column means nothing
        is_integer = pa.types.is_integer(arrow_types.plain_type(kind))
        return rule.kind if rule else "int64" if is_integer else "string"
    if rule is not None:
        _check_made(file, columns, rule)
    id_kind = ids.kind_of(kind, where=where, old=rule is not None and rule.old)
    if id_kind is None:  # only nulls; reading the first row raises
        return "string" if rule is None else rule.kind
    if rule is not None:
        ids.check(id_kind, rule, where=where, found=kind)
    return id_kind


def _check_made(file: ShardFile, columns: Columns, rule: IdRule) -> None:
    """Refuses ids made of file and row beside ids of a column, and the reverse.

    Raises:
        InputError: naming the column.
    """
    if rule.made is None or rule.made == file.ids_are_made:
        return
    names = [name for name in file.schema.names if rule.made or name != columns.id]
    raise InputError(
        file.uri,
        expected=f"no column '{columns.id}', as in {rule.origin}, whose ids are made of file and "
        "row; or a new store"
        if rule.made
        else f"a column '{columns.id}', as in {rule.origin}",
        found=f"columns {', '.join(names)}",
    )


def has_labels(file: ShardFile, columns: Columns) -> bool:
    """Whether a shard has labels.

    A column of the type null, which some writers use for a column of nulls, counts as none.

    Raises:
        InputError: several columns of that name.
    """
    if not file.has(columns.label):
        return False
    kind = file.field(columns.label).type
    return not pa.types.is_null(arrow_types.plain_type(kind))
