"""Which images of a graph are a group, which of them is kept, and their order in a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq.kernels.forest import edges_from

Ints = NDArray[np.int64]
# Whether pairs of codes are within the threshold [n], and weights: the nearer, the lighter [n].
Codes = NDArray[np.uint8]
Near = Callable[[Codes, Codes], tuple[NDArray[np.bool_], NDArray[np.float32]]]


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
    cliques: Near | None,
    equal_are_near: bool,
) -> Order:
    """The order of members.

    Args:
        preferred: ids that are kept where a group has one. Otherwise, or of several, it is the one
            with the largest or smallest value, or the smallest id.
        largest: whether the largest value is kept.
        cliques: given, every two images of a group are within the threshold.
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
    if cliques is None:
        kept_of = _best(members.root, better)
    else:
        kept_of = _cliques(members, better, cliques, collapse=equal_are_near)
    size = np.bincount(kept_of, minlength=m)[kept_of]
    kept = kept_of == np.arange(m)
    first = _best(kept_of, rank)
    order = np.lexsort((rank, ~kept, rank[first]))
    order = order[size[order] > 1]
    position = np.empty(m, np.int64)
    starts = np.flatnonzero(kept[order])
    position[order] = np.arange(len(order)) - np.repeat(starts, size[order][starts])
    linked, weight = _links(members, kept_of, kept) if cliques is None else (kept_of, None)
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


def _cliques(members: Members, better: Ints, near: Near, *, collapse: bool) -> Ints:
    """The first member of the group of each, where every two of a group are within the threshold.

    Of what is connected, the best member that is in no group yet starts one. The others join in the
    order of their distance from it, each if it is near to all that have joined. All that is
    connected is worked on at the same time.
    """
    m = len(better)
    leader = np.arange(m)
    if collapse:  # the best member of a code stands for the others
        _, code = np.unique(
            np.concatenate([members.root[:, None].astype(">i8").view(np.uint8).reshape(m, 8),
                            members.B], axis=1), axis=0, return_inverse=True,
        )  # fmt: skip
        leader = _best(code.reshape(-1), better)
    nodes = np.flatnonzero(leader == np.arange(m))
    nodes = nodes[np.lexsort((better[nodes], members.root[nodes]))]
    root, B = members.root[nodes], members.B[nodes]
    of_node = np.full(len(nodes), -1)
    left = np.arange(len(nodes))
    while len(left):
        starts = np.r_[True, np.diff(root[left]) != 0]
        starter = left[starts][np.cumsum(starts) - 1]
        of_node[left[starts]] = left[starts]
        some, start = left[~starts], starter[~starts]
        within, weight = near(B[start], B[some])
        some, start, weight = some[within], start[within], weight[within]
        order = np.lexsort((some, weight, start))
        some, start = some[order], start[order]
        while len(some):
            nearest = np.r_[True, np.diff(start) != 0]
            of_node[some[nearest]] = start[nearest]
            joined = some[nearest][np.cumsum(nearest) - 1][~nearest]
            some, start = some[~nearest], start[~nearest]
            within, _ = near(B[joined], B[some])
            some, start = some[within], start[within]
        left = left[of_node[left] < 0]
    place = np.empty(m, np.int64)
    place[nodes] = nodes[of_node]
    return place[leader]
