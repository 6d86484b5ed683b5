"""Which images of a graph are a group, which of them is kept, and their order in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq.kernels.forest import edges_from

Ints = NDArray[np.int64]
Codes = NDArray[np.uint8]
NearRows = tuple[Ints, Ints, NDArray[np.float32]]  # rows of pairs, and weights: lighter is nearer
Find = Callable[[Codes], Iterable[NearRows]]  # the pairs of codes within the threshold


@dataclass(frozen=True, kw_only=True, eq=False)
class Members:
    """m images of groups, in the order of their rows.

    Attributes:
        row: number in the store [m]. root: lowest number of those that it is connected with [m].
        file, at: number of the code file, and the row in it [m].
        ids: m values. B: codes [m, M]. value: by which one is kept [m], or None.
        edges: of the minimum spanning forest, by index [e, 2]. weight: of each [e].
    """

    row: Ints
    root: Ints
    file: Ints
    at: Ints
    ids: pa.Array
    B: NDArray[np.uint8]
    value: NDArray[np.float64] | None
    edges: NDArray[np.uint32]
    weight: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """Members by group, the kept one first.

    Attributes:
        rows: members [m]; those that are alone are left out. first: that with the smallest id in
            the group of each; kept_row: the kept one. size: of the group. kept: whether it is kept.
        link: position in the group of the member that connects each with the kept one, 0 for that
            itself. link_weight: of this connection; NaN for the kept one.
    """

    rows: Ints
    first: Ints
    kept_row: Ints
    size: Ints
    kept: NDArray[np.bool_]
    link: Ints
    link_weight: NDArray[np.float32]


def order_of(
    members: Members,
    preferred: pa.Array,
    *,
    largest: bool,
    find: Find | None,
    equal_are_near: bool,
) -> Order:
    """The order of members.

    Args:
        preferred: ids that are kept where a group has one. Otherwise, or of several, it is the one
            with the largest or smallest value, or the smallest id.
        largest: whether the largest value is kept.
        find: where every two images of a group are to be within the threshold: how such pairs of
            codes are found.
        equal_are_near: whether images with one code are.
    """
    m = len(members.row)
    rank = np.empty(m, np.int64)
    rank[pc.array_sort_indices(members.ids).to_numpy()] = np.arange(m)
    other = ~pc.is_in(members.ids, value_set=preferred).to_numpy(zero_copy_only=False)
    keys = [rank, other] if members.value is None else [
        rank, -members.value if largest else members.value, other
    ]  # fmt: skip
    better = np.empty(m, np.int64)
    better[np.lexsort(keys)] = np.arange(m)
    if find is None:
        kept_of = _best(members.root, better)
    else:
        kept_of = _cliques(members, better, find, collapse=equal_are_near)
    size = np.bincount(kept_of, minlength=m)[kept_of]
    kept = kept_of == np.arange(m)
    first = _best(kept_of, rank)
    order = np.lexsort((rank, ~kept, rank[first]))
    order = order[size[order] > 1]
    position = np.empty(m, np.int64)
    starts = np.flatnonzero(kept[order])
    position[order] = np.arange(len(order)) - np.repeat(starts, size[order][starts])
    linked, weight = _links(members, kept_of, kept) if find is None else (kept_of, None)
    return Order(
        rows=order,
        first=first[order],
        kept_row=kept_of[order],
        size=size[order],
        kept=kept[order],
        link=position[linked[order]],
        link_weight=np.full(len(order), np.nan, np.float32) if weight is None else weight[order],
    )


def _best(group: Ints, better: Ints) -> Ints:
    """The member with the lowest number in ``better`` of the group of each [m]."""
    if not len(group):
        return group
    order = np.lexsort((better, group))
    starts = np.r_[True, np.diff(group[order]) != 0]
    best = np.empty(len(group), np.int64)
    best[order] = order[starts][np.cumsum(starts) - 1]
    return best


def _links(
    members: Members, kept_of: Ints, kept: NDArray[np.bool_]
) -> tuple[Ints, NDArray[np.float32]]:
    """The member by which each is connected with the kept one, and the weight of that edge."""
    m = len(kept_of)
    found = edges_from(m, members.edges, np.flatnonzero(kept).astype(np.uint32))
    linked, weight = kept_of.copy(), np.full(m, np.nan, np.float32)
    by = np.flatnonzero(~kept)
    ends = members.edges[found[by]].astype(np.int64)
    linked[by] = ends.sum(axis=1) - by
    weight[by] = members.weight[found[by]]
    return linked, weight


def _cliques(members: Members, better: Ints, find: Find, *, collapse: bool) -> Ints:
    """The first member of the group of each, where every two of a group are within the threshold.

    Of what is connected, the best member that is in no group yet starts one. The others join in the
    order of their distance from it, each if it is near to all that have joined.
    """
    m = len(better)
    leader = np.arange(m)
    if collapse:  # the best member of a code stands for the others
        _, code = np.unique(members.B, axis=0, return_inverse=True)
        leader = _best(code.reshape(-1), better)
    nodes = np.flatnonzero(leader == np.arange(m))
    nodes = nodes[np.argsort(better[nodes])]
    near = _neighbours(len(nodes), find(members.B[nodes]))
    first = np.full(len(nodes), -1)
    for node in range(len(nodes)):
        if first[node] >= 0:
            continue
        group: list[set[int]] = []
        for other in near(node):
            if first[other] < 0 and all(other in others for others in group):
                first[other] = node
                group.append(set(near(other)))
        first[node] = node
    place = np.empty(m, np.int64)
    place[nodes] = nodes[first]
    return place[leader]


def _neighbours(n: int, pairs: Iterable[NearRows]) -> Callable[[int], list[int]]:
    """The near nodes of each of n nodes, nearest first; of equal ones, the lower first."""
    parts = [(i, j, weight) for i, j, weight in pairs]
    i, j, weight = (
        np.concatenate([np.empty(0, kind), *(part[at] for part in parts)])
        for at, kind in enumerate((np.int64, np.int64, np.float32))
    )
    of, other, twice = np.r_[i, j], np.r_[j, i], np.r_[weight, weight]
    order = np.lexsort((other, twice, of))
    other = other[order]
    ends = np.searchsorted(of[order], np.arange(n + 1))
    return lambda node: other[ends[node] : ends[node + 1]].tolist()
