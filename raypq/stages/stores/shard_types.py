"""Checks of a store's shards before work begins: one id type, and the label column.

The driver looks before any work is handed out, so that a shard of another type is refused where it
is written and not where it is searched. A store that is continued keeps the type that it has;
otherwise the first shard with rows says it. Of most stores one footer is read for this.
"""

from __future__ import annotations

from collections.abc import Sequence

from raypq.config import Columns
from raypq.data import ids
from raypq.data.ids import IdRule
from raypq.data.storage import Shard, join, open_parquet
from raypq.data.store.shard_writer import Receipt
from raypq.errors import InputError, RaypqError
from raypq.stages.stores.shard_run import StoreRun

_DEFAULT = Columns().label


def id_rule(run: StoreRun, columns: Columns) -> IdRule | None:
    """The type that the ids of a run's shards must have; None where no shard has a row.

    Receipts of earlier versions do not name it. Then one of their files is looked at, and if it
    holds text, integers narrower than int64 stay text (``IdRule.old``), as they were written.

    Raises:
        InputError: the shards that the run keeps have ids of two types.
    """
    kept = [*run.kept.values(), *(task.kept for task in run.tasks if task.kept)]
    kept = sorted((receipt for receipt in kept if receipt.rows), key=lambda item: item.shard)
    before = [receipt for receipt in (run.latest.shards if run.latest else ()) if receipt.rows]
    silent = next((receipt for receipt in (*kept, *before) if receipt.ids is None), None)
    held = None if silent is None else _kind_of(run.store, silent)
    old = held == "string"
    rules = {
        kind: IdRule(kind=kind, origin=join(run.store, receipt.path), old=old)
        for receipt in reversed(kept)
        if (kind := receipt.ids or held) is not None
    }
    if len(rules) > 1:
        one, other = rules.values()
        ids.check(other.kind, one, where=other.origin, found=other.type)
    if rules:
        return next(iter(rules.values()))
    return rule_of([task.shard for task in run.tasks], columns, old=old)


def rule_of(shards: Sequence[Shard], columns: Columns, *, old: bool = False) -> IdRule | None:
    """The type of ids that the first feature shard with rows has; None where none has any.

    A shard that cannot be read is passed over: whoever reads its rows says why.
    """
    for shard in shards:
        try:
            with open_parquet(shard.uri) as file:
                if not file.metadata.num_rows:
                    continue
                kind = ids.kind_of(file.field(columns.id).type, where=shard.uri, old=old)
        except (RaypqError, OSError):
            continue
        if kind is not None:
            return IdRule(kind=kind, origin=shard.uri, old=old)
    return None


def _kind_of(store: str, receipt: Receipt) -> ids.IdKind | None:
    uri = join(store, receipt.path)
    try:
        with open_parquet(uri, size=receipt.bytes) as file:
            return ids.kind_of(file.field("id").type, where=uri)
    except (RaypqError, OSError):
        return None


def check_label_column(shards: Sequence[Shard], columns: Columns) -> None:
    """Refuses a label column that was asked for by name and that no shard has.

    Raises:
        InputError: naming a column that is there instead.
    """
    if columns.label == _DEFAULT:
        return
    there: list[str] = []
    for shard in shards:
        try:
            with open_parquet(shard.uri) as file:
                if file.has(columns.label):
                    return
                there = there or file.schema_arrow.names
        except (RaypqError, OSError):
            continue
    if there:
        raise InputError(
            shards[0].uri,
            expected=f"a column '{columns.label}' (--label-column, columns.label) in at least one "
            f"of {len(shards)} shard(s)",
            found=f"columns {', '.join(there)}",
        )
