"""Checks of a store's shards before work begins: one id type, and the label column.

The driver checks them before tasks start, so that a shard of another id type is refused when it is
encoded and not when it is searched. A store that is continued keeps its type; otherwise the first
shard with rows determines it. For most stores this reads one footer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raypq import console
from raypq.config import Columns
from raypq.data import ids
from raypq.data.ids import IdRule
from raypq.data.layouts import open_shard
from raypq.data.storage import Shard, join, open_parquet
from raypq.data.store.shard_writer import Receipt
from raypq.errors import InputError, RaypqError
from raypq.stages.stores.shard_run import StoreRun

_DEFAULT = Columns().label
MADE_IDS = "made_ids"  # entry in the summary of a version whose ids are made of file and row


def id_rule(run: StoreRun, columns: Columns) -> IdRule | None:
    """The type that the ids of a run's shards must have; None where no shard has rows.

    Receipts of early versions lack it. Then it is read from one of their files, and if that holds
    text, integers narrower than int64 are written as text too (``IdRule.old``).

    Raises:
        InputError: the shards that the run keeps have ids of two types.
    """
    kept = [*run.kept.values(), *(task.previous for task in run.tasks if task.previous)]
    kept = sorted((receipt for receipt in kept if receipt.rows), key=lambda item: item.shard)
    before = [receipt for receipt in (run.latest.shards if run.latest else ()) if receipt.rows]
    untyped = next((receipt for receipt in (*kept, *before) if receipt.ids is None), None)
    early_kind = None if untyped is None else _kind_of(run.store, untyped)
    old = early_kind == "string"
    rules = {
        kind: IdRule(kind=kind, origin=join(run.store, receipt.path), old=old)
        for receipt in reversed(kept)
        if (kind := receipt.ids or early_kind) is not None
    }
    if len(rules) > 1:
        first, second = rules.values()
        ids.check(second.kind, first, where=second.origin, found=second.type)
    made = None if run.latest is None or not before else MADE_IDS in run.latest.summary
    if rules:
        if run.latest is None:  # the run was interrupted before its first version
            rule = rule_of([task.shard for task in run.tasks], columns, old=old)
            made = None if rule is None else rule.made
        return replace(next(iter(rules.values())), made=made)
    rule = rule_of([task.shard for task in run.tasks], columns, old=old)
    if rule is None or run.latest is None or made is None:
        return rule
    return replace(rule, made=made, origin=f"{run.store} version {run.latest.version}")


def rule_of(shards: Sequence[Shard], columns: Columns, *, old: bool = False) -> IdRule | None:
    """The id type of the first feature shard with rows; None where no shard has rows.

    Unreadable shards are skipped here; the worker that reads their rows reports the error.
    """
    for shard in shards:
        try:
            with open_shard(shard, columns) as file:
                if not file.rows:
                    continue
                made = file.ids_are_made
                kind = ids.kind_of(file.field(columns.id).type, where=shard.uri, old=old)
        except (RaypqError, OSError):
            continue
        if kind is not None:
            if made:
                console.say(
                    f"{shard.uri}: no column '{columns.id}': ids are made of the file and the row, "
                    f"such as {shard.stem}:0 (--id-column, columns.id: another column)"
                )
            return IdRule(kind=kind, origin=shard.uri, old=old, made=made)
    return None


def _kind_of(store: str, receipt: Receipt) -> ids.IdKind | None:
    uri = join(store, receipt.path)
    try:
        with open_parquet(uri, size=receipt.bytes) as file:
            return ids.kind_of(file.field("id").type, where=uri)
    except (RaypqError, OSError):
        return None


def check_label_column(shards: Sequence[Shard], columns: Columns) -> None:
    """Checks that at least one shard has the label column, if the user named one.

    Raises:
        InputError: none has it; names the columns of a shard.
    """
    if columns.label == _DEFAULT:
        return
    names: list[str] = []
    for shard in shards:
        try:
            with open_shard(shard, columns) as file:
                if file.has(columns.label):
                    return
                names = names or file.schema.names
        except (RaypqError, OSError):
            continue
    if names:
        raise InputError(
            shards[0].uri,
            expected=f"a column '{columns.label}' (--label-column, columns.label) in at least one "
            f"of {len(shards)} shard(s)",
            found=f"columns {', '.join(names)}",
        )
