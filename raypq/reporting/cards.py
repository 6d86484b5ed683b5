"""Summary cards: the few figures of each kind of store that a person looks for first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from raypq.data.store import snapshot_summary
from raypq.reporting.findings import Findings, Store
from raypq.reporting.tables import count, share

Card = tuple[str, str]  # value, and its name
_STORES = 2  # of a kind, the first ones, that have cards


def cards(findings: Findings) -> list[Card]:
    """The cards of the stores, kind by kind."""
    made: list[Card] = []
    for kind, of_kind in _KINDS.items():
        for store in [store for store in findings.stores if store.kind == kind][:_STORES]:
            made += of_kind(store)
    return list(dict.fromkeys(made))


def _number(store: Store, *keys: str) -> float | None:
    """A number in the summary of the latest version; None where there is none."""
    return snapshot_summary.number(store.place, store.latest, *keys, least=0)


def _codes(store: Store) -> Sequence[Card]:
    made = [(count(store.latest.rows), "images in codes")]
    if store.latest.quarantined:
        made.append((count(len(store.latest.quarantined)), "shards left out"))
    share_done = _number(store, "rollout", "share")
    if share_done is not None and share_done < 1:
        made.append((f"{100 * share_done:.0f}%", "rolled out"))
    return made


def _features(store: Store) -> Sequence[Card]:
    return [(count(store.latest.rows), "images with features")]


def _predictions(store: Store) -> Sequence[Card]:
    made = [(count(store.latest.rows), "images classified")]
    if (hit := _number(store, "result", "accuracy", "hit@1")) is not None:
        made.append((share(hit), "right at top 1, mean of classes"))
    return made


def _search(store: Store) -> Sequence[Card]:
    return [(f"{count(store.latest.rows)} × {count(_number(store, 'top_k'))}", "queries × results")]


def _pairs(store: Store) -> Sequence[Card]:
    return [(count(store.latest.rows), "pairs of near-duplicates")]


def _groups(store: Store) -> Sequence[Card]:
    dropped = count(_number(store, "dropped"))
    return [
        (count(_number(store, "groups")), "groups of near-duplicates"),
        (dropped, "images to drop"),
    ]


def _clusters(store: Store) -> Sequence[Card]:
    largest = count(_number(store, "largest"))
    return [(count(_number(store, "k")), "clusters"), (largest, "images of the largest cluster")]


_KINDS: Mapping[str, Callable[[Store], Sequence[Card]]] = {
    "codes": _codes,
    "features": _features,
    "predictions": _predictions,
    "search": _search,
    "pairs": _pairs,
    "groups": _groups,
    "clusters": _clusters,
}
