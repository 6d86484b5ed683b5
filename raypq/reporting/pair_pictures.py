"""Near-duplicates in pictures: groups of images that pairs connect."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from raypq.data.image_lookup import Wanted
from raypq.data.storage import join, stream
from raypq.data.stored import open_stored
from raypq.reporting.findings import Store
from raypq.reporting.pictures import Gallery, Picture, Row
from raypq.reporting.samples import Context
from raypq.reporting.tables import count

_PAIRS = 200_000  # that are read
_GROUPS = 4  # largest ones, nearest ones, and ones at the threshold
_IMAGES = 8  # of a group
_BATCH = 8192  # rows


@dataclass(frozen=True, kw_only=True)
class Group:
    """Images that pairs connect.

    Attributes:
        scores: of each image, the best score of a pair that it is in; best image first.
        best, last: the best score of a pair in the group, and the worst.
    """

    scores: dict[str, float]
    best: float
    last: float


def gallery(store: Store, context: Context) -> Gallery:
    """The largest groups, those of the nearest pairs, and those nearest to the threshold.

    Raises:
        InputError: a file of the store cannot be read.
    """
    pairs = _read(store)
    summary = store.latest.summary
    nearer = -1 if summary.get("metric") == "l2" else 1  # the sign of a score that is nearer
    groups = connected(pairs, nearer)
    chosen = choose(groups, nearer)
    ids = [name for _, group in chosen for name in [*group.scores][:_IMAGES]]
    kind = pairs.schema.field("id_a").type
    origins = context.origins_of(store, pa.array(ids, pa.string()).cast(kind).unique())
    total = store.latest.rows
    part = f" of the first {count(len(pairs))}" if len(pairs) < total else ""
    note = (
        f"{len(chosen)} of {count(len(groups))} groups{part} of {count(total)} pairs (threshold "
        f"{summary.get('threshold')}): the largest, those of the nearest pairs, and those that are "
        f"nearest to the threshold. Below an image: the "
        f"{'distance' if nearer < 0 else 'score'} of its nearest pair."
    )
    rows = [_row(why, group, origins) for why, group in chosen]
    return Gallery(title=context.short[store.place], note=note, rows=rows)


def _read(store: Store) -> pa.Table:
    """The first pairs, in order of their ids."""
    batches: list[pa.RecordBatch] = []
    for receipt in store.latest.shards:
        with open_stored(join(store.place, receipt.path), "pairs", size=receipt.bytes) as file:
            for batch in stream(file, _BATCH, ["id_a", "id_b", "score"]):
                batches.append(batch)
                if sum(len(part) for part in batches) >= _PAIRS:
                    break
            schema = pa.schema([file.field(name) for name in ("id_a", "id_b", "score")])
    return pa.Table.from_batches(batches, schema)[:_PAIRS] if store.latest.shards else _no_pairs()


def _no_pairs() -> pa.Table:
    return pa.table({"id_a": pa.array([], pa.string()), "id_b": [], "score": []})


def connected(pairs: pa.Table, nearer: int) -> list[Group]:
    """Connected groups, in order of the first pair of each."""
    first, second = (pairs.column(name).cast(pa.string()).to_pylist() for name in ("id_a", "id_b"))
    scores = pairs.column("score").to_pylist()
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for a, b in zip(first, second, strict=True):
        parent[root(b)] = root(a)
    members: dict[str, list[int]] = defaultdict(list)  # pairs by the root of their group
    for pair, a in enumerate(first):
        members[root(a)].append(pair)
    return [
        _group([(first[pair], second[pair], scores[pair]) for pair in found], nearer)
        for found in members.values()
    ]


def _group(pairs: Sequence[tuple[str, str, float]], nearer: int) -> Group:
    scores: dict[str, float] = {}
    ordered = sorted(pairs, key=lambda pair: (-nearer * pair[2], pair[:2]))
    for a, b, score in ordered:
        scores.setdefault(a, score)
        scores.setdefault(b, score)
    return Group(scores=scores, best=ordered[0][2], last=ordered[-1][2])


def choose(groups: Sequence[Group], nearer: int) -> list[tuple[str, Group]]:
    """Groups with the reason why each is shown."""
    numbers = range(len(groups))
    orders = {
        "one of the largest": lambda at: -len(groups[at].scores),
        "nearest pairs": lambda at: -nearer * groups[at].best,
        "nearest to the threshold": lambda at: nearer * groups[at].last,
    }
    chosen: dict[int, str] = {}
    for why, key in orders.items():
        left = [at for at in sorted(numbers, key=key) if at not in chosen]
        chosen |= dict.fromkeys(left[:_GROUPS], why)
    return [(why, groups[at]) for at, why in chosen.items()]


def _row(why: str, group: Group, origins: dict[str, str]) -> Row:
    names = [*group.scores]
    of = f", of which {_IMAGES} are shown" if len(names) > _IMAGES else ""
    pictures = [
        Picture(want=Wanted(name, origins.get(name)), note=f"{group.scores[name]:.3g}")
        for name in names[:_IMAGES]
    ]
    return Row(title=f"{count(len(names))} images ({why}){of}", pictures=pictures)
