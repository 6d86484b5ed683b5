"""A summary of the footers of a feature store: rows of each shard, and the width of all."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from raypq.config import Columns
from raypq.data import arrays, images
from raypq.data.feature_columns import layout_of
from raypq.data.features import FeatureStore
from raypq.data.layouts import open_shard
from raypq.data.network_info import BackboneInfo
from raypq.data.storage import Shard
from raypq.errors import InputError, JobError, RaypqError, ShardFailure


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A summary of the footers of a store.

    Attributes:
        shards: the readable shards. rows: of each of them. width: dx, the same in all of them.
        backbone: that all features come from, if the files name one.
        failures: the other shards.
    """

    shards: Sequence[Shard]
    rows: Sequence[int]
    width: int
    failures: Sequence[ShardFailure]
    backbone: BackboneInfo | None = None


def survey(store: FeatureStore) -> Survey:
    """Reads every footer: rows of each shard, and one width across all.

    Raises:
        InputError: no shard has a row.
        JobError: every shard is bad.
    """
    with ThreadPoolExecutor(8) as pool:
        footers = list(pool.map(lambda shard: _try_footer(shard, store.columns), store.shards))
    shards: list[Shard] = []
    rows: list[int] = []
    failures: list[ShardFailure] = []
    width, first = 0, ""
    backbone: BackboneInfo | None = None
    for shard, footer in zip(store.shards, footers, strict=True):
        if isinstance(footer, RaypqError):
            failures.append(ShardFailure(shard=shard.uri, reason=str(footer)))
            continue
        count, shard_width, shard_backbone = footer
        if shard_backbone is not None and count:
            if backbone is not None and shard_backbone.fingerprint != backbone.fingerprint:
                reason = f"expected features of one backbone, {backbone}, found {shard_backbone}"
                failures.append(ShardFailure(shard=shard.uri, reason=reason))
                continue
            backbone = shard_backbone
        if width and shard_width and shard_width != width:
            reason = f"expected width {width} as in {first}, found width {shard_width}"
            failures.append(ShardFailure(shard=shard.uri, reason=reason))
            continue
        if not width and shard_width:
            width, first = shard_width, shard.uri
        shards.append(shard)
        rows.append(count)
    if not shards:
        raise JobError(failures, 0)
    if not failures and not sum(rows):
        raise InputError(
            store.shards[0].uri, expected="at least one row of features", found="empty shards only"
        )
    return Survey(shards=shards, rows=rows, width=width, failures=failures, backbone=backbone)


def count_rows(shards: Sequence[Shard], columns: Columns) -> int:
    """Total rows of shards, by their footers; an unreadable shard counts as 0."""

    def rows(shard: Shard) -> int:
        try:
            with open_shard(shard, columns) as file:
                return file.rows
        except InputError:
            return 0

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(rows, shards))


_Footer = tuple[int, int, BackboneInfo | None]  # rows, width, backbone


def _try_footer(shard: Shard, columns: Columns) -> _Footer | RaypqError:
    try:
        return _footer(shard, columns)
    except RaypqError as error:
        return error


def _footer(shard: Shard, columns: Columns) -> _Footer:
    with open_shard(shard, columns) as file:
        rows = file.rows
        where = f"{shard.uri}, column '{columns.feature}'"
        backbone = BackboneInfo.of(file.field(columns.feature), where=where)
        layout = layout_of(file, columns, None, shard.uri)
        if layout.side is not None:
            return rows, images.row_width(layout.side), backbone
        if layout.width is not None or not rows or layout.sized:
            return rows, layout.width or 0, backbone
        first = next(file.batches(1, [columns.feature]))
        X = arrays.matrix(first.column(0), width=columns.width, where=where)
        return rows, X.shape[1], backbone
