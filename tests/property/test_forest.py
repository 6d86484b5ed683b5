"""Minimum spanning forests: the same by both implementations, and in any order of the edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raypq.kernels import forest, native, reference
from raypq.kernels.forest import Forest, edges_from, lowest_nodes

few = settings(max_examples=80, deadline=None, derandomize=True)
Graph = tuple[int, NDArray[np.uint32], NDArray[np.float32]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, e = draw(st.integers(1, 60)), draw(st.integers(0, 150))
    edges = np.sort(rng.integers(0, n, (e, 2)), axis=1).astype(np.uint32)
    weight = rng.integers(0, draw(st.sampled_from([2, 1000])), e).astype(np.float32)
    return n, edges[edges[:, 0] < edges[:, 1]], weight[edges[:, 0] < edges[:, 1]]


def connected_at(n: int, edges: np.ndarray, weight: np.ndarray, most: float) -> list[int]:
    return lowest_nodes(n, edges[weight <= most]).tolist()


@few
@given(graph=graphs(), seed=st.integers(0, 1000))
def test_forest(graph: Graph, seed: int) -> None:
    n, edges, weight = graph
    kept = reference.spanning_forest(n, edges, weight)
    for most in np.unique(weight):  # connected at each weight as the graph is
        whole = connected_at(n, edges, weight, most)
        assert connected_at(n, edges[kept], weight[kept], most) == whole
    assert len(kept) == n - len(set(lowest_nodes(n, edges).tolist()))
    if native.available():
        np.testing.assert_array_equal(native.spanning_forest(n, edges, weight), kept)
    order = np.random.default_rng(seed).permutation(len(edges))
    parts = Forest(n)
    for part in np.array_split(order, 4):
        parts.add(edges[part], weight[part])
        assert len(parts.edges) < n
    np.testing.assert_array_equal(parts.edges, edges[kept])
    np.testing.assert_array_equal(parts.weight, weight[kept])


@few
@given(graph=graphs(), seed=st.integers(0, 1000))
def test_edges_from_a_node_of_each_tree(graph: Graph, seed: int) -> None:
    n, edges, weight = graph
    edges = edges[reference.spanning_forest(n, edges, weight)]
    lowest = lowest_nodes(n, edges)
    order = np.random.default_rng(seed).permutation(n).astype(np.uint32)
    _, first = np.unique(lowest[order], return_index=True)
    roots = order[first]
    found = edges_from(n, edges, roots)
    np.testing.assert_array_equal(found, reference.edges_from(n, edges, roots))
    reached = {int(root) for root in roots}
    assert all(found[root] == len(edges) for root in roots)
    left = set(range(n)) - reached
    while left:  # each node by an edge to one that is nearer to the root
        near = {x for x in left if (set(edges[found[x]].tolist()) - {x}) <= reached}
        assert near
        reached |= near
        left -= near


def test_many_parts_take_the_memory_of_a_forest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forest, "_PENDING", 100)
    rng = np.random.default_rng(0)
    parts = Forest(50)
    for _ in range(40):
        edges = np.sort(rng.integers(0, 50, (60, 2)), axis=1).astype(np.uint32)
        edges = edges[edges[:, 0] < edges[:, 1]]
        parts.add(edges, rng.random(len(edges), np.float32))
        assert sum(map(len, parts._edges)) <= 49 + 160


@pytest.mark.skipif(not native.available(), reason="a check of the native kernel")
def test_bad_nodes() -> None:
    edges = np.array([[0, 5]], np.uint32)
    with pytest.raises(ValueError, match="not below n"):
        native.spanning_forest(5, edges, np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="not below n"):
        native.edges_from(5, edges, np.zeros(1, np.uint32))
    with pytest.raises(ValueError, match="weight for each"):
        native.spanning_forest(6, edges, np.zeros(2, np.float32))
