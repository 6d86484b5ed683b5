"""Classes in parts from a file, and in leaves: the answers of one scan of all, bit for bit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypq import console, kernels
from raypq.kernels import leaves, native, pruned, reference
from raypq.kernels.stored_tables import RowFile, StoredTables
from raypq.stages.classification import class_groups
from raypq.stages.classification.class_groups import StoredGroup
from raypq.stages.classification.ranking import topk

pytestmark = pytest.mark.skipif(not native.available(), reason="needs the native kernels")


def stored(tables: kernels.Tables, *cuts: int) -> StoredTables:
    """The same classes in a file, written in parts."""
    ends = [0, *sorted({cut for cut in cuts if 0 < cut < tables.T}), tables.T]
    return StoredTables.write(
        kernels.Tables(
            C=tables.C,
            W=tables.W[first:end],
            bias=tables.bias[first:end],
            norms=tables.norms,
            metric=tables.metric,
        )
        for first, end in pairwise(ends)
    )


def problem(
    rng: np.random.Generator, T: int, n: int, *, parents: int, noise: float, metric: str, kind: str
) -> tuple[kernels.Tables, np.ndarray]:
    """Classes around some parents, and codes of images around them."""
    M, K, d = 5, 16, 4
    centres = rng.standard_normal((parents, M * d))
    V = centres[rng.integers(parents, size=T)] + noise * rng.standard_normal((T, M * d))
    bias = rng.standard_normal(T)
    if kind == "ties":
        V, bias = np.round(V), np.zeros(T)
    elif kind == "equal":
        V, bias = np.repeat(V[:1], T, axis=0), np.zeros(T)
    elif kind == "scales":
        V *= 10.0 ** rng.integers(-4, 5, (T, 1))
        bias *= 10.0 ** rng.integers(-4, 5, T)
    U = V[rng.integers(T, size=max(n, K))] + 0.3 * rng.standard_normal((max(n, K), M * d))
    C = U[:K].reshape(K, M, d).transpose(1, 0, 2).astype(np.float32)
    if kind == "zero":
        C[:, 0] = 0
    B = kernels.encode(U.astype(np.float32), np.ascontiguousarray(C))[:n]
    if kind == "zero":
        B[: n // 2] = 0
    return kernels.build_tables(np.ascontiguousarray(C), V.astype(np.float32), bias, metric), B


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    T=st.sampled_from([1, 2, 63, 64, 65, 300, 1500]),
    n=st.sampled_from([1, 3, 40, 300]),
    parents=st.sampled_from([1, 4, 30]),
    noise=st.sampled_from([0.0, 0.05, 1.0]),
    metric=st.sampled_from(["dot", "cosine", "l2"]),
    kind=st.sampled_from(["plain", "ties", "equal", "scales", "zero"]),
    k=st.sampled_from([1, 5, 64, 100, 2000]),
    threads=st.sampled_from([1, 3]),
)
def test_leaves_and_parts_give_the_answers_of_the_reference(
    seed, T, n, parents, noise, metric, kind, k, threads
):
    tables, B = problem(
        np.random.default_rng(seed), T, n, parents=parents, noise=noise, metric=metric, kind=kind
    )
    score, classes = reference.topk_per_code(B, tables, k)
    file = stored(tables, T // 3, T // 2)
    found = leaves.build(file, threads=threads)
    assert sorted(found.number.tolist()) == list(range(T))
    for isa in native.isas():
        got = pruned.topk_per_code(B, found, k, threads=threads, isa=isa)
        assert (got[0] == score).all()
        assert (got[1] == classes).all()
    part = class_groups.bytes_of(*tables.C.shape[:2], tables.W.shape[1], 1 + seed % 70)
    got = topk(B, StoredGroup(file, rows=0, part_bytes=part), k, "cpu")
    assert (got[0] == score).all()
    assert (got[1] == classes).all()


def test_leaves_without_a_best_class_are_left_out():
    tables, B = problem(
        np.random.default_rng(0), 4000, 500, parents=100, noise=0.02, metric="cosine", kind="plain"
    )
    tables = kernels.build_tables(tables.C, tables.W, None, "cosine")
    found = leaves.build(stored(tables))
    work = pruned.PruningWork()
    pruned.topk_per_code(B, found, 10, work=work)
    assert work.pairs < 0.2 * len(B) * len(found)
    assert pruned.pairs_left(B, found, 10).sum() >= work.pairs


def test_the_bound_of_a_leaf_holds_all_its_classes():
    tables, _ = problem(
        np.random.default_rng(1), 900, 1, parents=9, noise=0.3, metric="l2", kind="scales"
    )
    found = leaves.build(stored(tables))
    for leaf in range(len(found)):
        at = found.number[found.first[leaf] : found.first[leaf + 1]]
        assert 1 <= len(at) <= 64
        W = tables.W[at].astype(np.float64) - found.centre[leaf]
        assert (np.linalg.norm(W, axis=1) <= found.radius[leaf]).all()
        assert tables.bias[at].max() == found.bias[leaf]
    assert np.linalg.norm(tables.W.astype(np.float64), axis=1).max() <= found.weight


def test_a_sample_decides_and_says_what_it_found(monkeypatch):
    tables, B = problem(
        np.random.default_rng(2),
        20_000,
        300,
        parents=450,
        noise=0.01,
        metric="cosine",
        kind="plain",
    )
    tables = kernels.build_tables(tables.C, tables.W, None, "cosine")
    score, classes = reference.topk_per_code(B, tables, 3)
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    for rows in (10, 10**9):
        group = StoredGroup(stored(tables), rows=rows)
        got = topk(B, group, 3, "cpu")
        assert (got[0] == score).all()
        assert (got[1] == classes).all()
        assert (group.leaves is not None) == (rows > 10)
    assert len(said) == 2
    assert "for 10 codes it does not pay" in said[0]
    assert said[1].endswith("they are scanned")


def test_rows_of_a_file_that_were_not_written_are_refused():
    file = RowFile(3)
    file.write(0, np.ones((2, 3), np.float32))
    assert file.read(1, 2).tolist() == [[1, 1, 1]]
    assert file.read(2, 2).shape == (0, 3)
    with pytest.raises(EOFError, match="rows 1 to 3"):
        file.read(1, 3)
