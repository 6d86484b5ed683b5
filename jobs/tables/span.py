"""Whether the codes of PQZSL gain from the axes that its scores depend on.

python jobs/tables/span.py --data cub --output work

A trained PQZSL model keeps its embeddings of images and classes; only its codes are replaced by PQ
over the axes of ``raypq.methods.subspace``, of as many bytes. Printed as Markdown: ZSL, H and the
best H of exact scores, of the model's own codes, and of codes over the axes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypq import api, console
from raypq.config import ClusterabilityJob, ClusterSettings, TrainJob
from raypq.data.classes import ClassTable
from raypq.methods.base import Corpus, Model
from raypq.methods.pq import PQ, PQSettings
from raypq.methods.subspace import Axes, mixtures
from raypq.stages.evaluate import harmonic
from raypq.stages.probe import Labelled
from raypq.stages.rehearse import fit_rows

SETTINGS = {"normalise": "unit", "ridge": 3.0, "lam": 1.0}  # of --tune on cub100
Matrix = NDArray[np.float32]
Rows = tuple[Matrix, NDArray[np.int64]]


def main(argv: list[str] | None = None) -> None:
    """Parses the command line, runs every size and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--bytes", type=int, nargs="+", default=[37, 15, 10])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args(argv)
    console.set_up()
    table = ClassTable.open(str(given.data / "classes.parquet"))
    rows = {part: _rows(given.data, part, table) for part in ("train", "test_seen", "test_unseen")}
    head = ("bytes", "exact", "own codes", "codes over the axes")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for M in given.bytes:
        found = [_run(given, table, rows, M, seed) for seed in range(given.seeds)]
        cells = []
        for kind in ("exact", "own", "axes"):
            values = np.array([one[kind] for one in found])
            pairs = zip(values.mean(axis=0), values.std(axis=0, ddof=1), strict=True)
            cells.append(", ".join(f"{mean:.3f} ± {spread:.3f}" for mean, spread in pairs))
        lines.append(f"| {M} | " + " | ".join(cells) + " |")
    print("\n".join(lines))  # noqa: T201


def _rows(data: Path, part: str, table: ClassTable) -> Rows:
    """Features and the index of each one's class in the table."""
    found = Labelled.read(ClusterabilityJob(features=[str(data / part)], space="raw"))
    place = {name: index for index, name in enumerate(table.ids.to_pylist())}
    return found.X, np.array([place[name] for name in found.names])[found.y]


def _run(
    given: argparse.Namespace, table: ClassTable, rows: dict[str, Rows], M: int, seed: int
) -> dict[str, tuple[float, ...]]:
    """ZSL, H and best H of one model by three kinds of scores."""
    assert table.seen is not None, "such data says which classes are seen"
    model = api.train(
        TrainJob(
            method="pqzsl",
            features=[str(given.data / "train")],
            classes=str(given.data / "classes.parquet"),
            output=str(given.output / f"pqzsl-{M}-{seed}"),
            settings={**SETTINGS, "M": M, "seed": seed},
            overwrite=True,
            where=ClusterSettings(cluster="none", workers=1),
        )
    ).model
    V, bias = model.prototypes(table.embeddings)
    if model.metric == "cosine":  # within one image its own length changes no order
        V = V / np.linalg.norm(V, axis=1, keepdims=True)
    coded, W = _over_axes(model, table, rows["train"][0], V, M, seed)
    kinds: dict[str, Callable[[Matrix], Any]] = {
        "exact": lambda X: _cosine(model, model.embed(X)) @ V.T,
        "own": lambda X: _cosine(model, model.decode(model.encode(X))) @ V.T,
        "axes": lambda X: coded(X) @ W.T,
    }
    tests = (rows["test_seen"], rows["test_unseen"])
    return {
        kind: _figures([(score(X) + bias, y) for X, y in tests], table.seen)
        for kind, score in kinds.items()
    }


def _cosine(model: Model, U: Matrix) -> Matrix:
    if model.metric != "cosine":
        return U
    return U / np.maximum(np.linalg.norm(U, axis=1, keepdims=True), 1e-12)


def _over_axes(
    model: Model, table: ClassTable, X: Matrix, V: Matrix, M: int, seed: int
) -> tuple[Callable[[Matrix], Matrix], Matrix]:
    """Features through the codes over the axes, and the prototypes there."""
    assert table.seen is not None, "checked before"
    A = torch.from_numpy(table.embeddings[table.seen])
    some, _ = model.prototypes(torch.cat([A, mixtures(A)]).numpy())
    some = some / np.linalg.norm(some, axis=1, keepdims=True)
    U = model.embed(X)
    axes = Axes(U.shape[1] // M * M, U.shape[1])
    axes.fit(torch.from_numpy(some), torch.from_numpy(U), M)

    def along(X: Matrix) -> Matrix:
        found: Matrix = axes(torch.from_numpy(model.embed(X))).numpy()
        return found

    u = along(X)
    settings = PQSettings(M=M, seed=seed)
    pq = fit_rows(PQ(settings), Corpus(N=len(u), dx=u.shape[1]), u, np.zeros(len(u), np.int32))
    W: Matrix = axes.prototypes(torch.from_numpy(V.astype(np.float32))).numpy()
    return (lambda X: pq.decode(pq.encode(along(X)))), W


def _figures(
    parts: list[tuple[Any, NDArray[np.int64]]], seen: NDArray[np.bool_]
) -> tuple[float, ...]:
    """ZSL, H and best H of scores [n, T] of seen and of unseen images; means over classes."""
    margins, rights, labels = [], [], []
    for (S, y), of_seen in zip(parts, (True, False), strict=True):
        best = {flag: np.where(seen == flag, S, -np.inf) for flag in (True, False)}
        margins.append(best[True].max(axis=1) - best[False].max(axis=1))
        rights.append(best[of_seen].argmax(axis=1) == y)
        labels.append(y)

    def mean(right: NDArray[np.bool_], y: NDArray[np.int64]) -> float:
        return float(np.mean([right[y == label].mean() for label in np.unique(y)]))

    def H(gamma: float) -> float:
        tr = mean(rights[0] & (margins[0] > gamma), labels[0])
        ts = mean(rights[1] & (margins[1] <= gamma), labels[1])
        return harmonic(ts, tr)

    gammas = np.quantile(np.concatenate(margins), np.linspace(0, 1, 200))
    return mean(rights[1], labels[1]), H(0.0), max(H(float(gamma)) for gamma in gammas)


if __name__ == "__main__":
    main()
