"""The forest of all near-duplicates of a store, and its division into parts of whole groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.data import intermediate
from raypq.kernels.forest import Forest, lowest_nodes
from raypq.stages.retrieval.duplicates.group_edges import EDGES

PART_ROWS = 1 << 20  # images of groups that are ordered at once, at about 200 bytes each
_STEPS = 10  # thresholds at which images are counted
MEMBERS = pa.schema([("row", pa.uint32()), ("root", pa.uint32()), ("part", pa.uint16())])

Thresholds = list[list[float]]


@dataclass(frozen=True, kw_only=True)
class ForestTask:
    """The edges of all tasks, to be made one forest.

    Attributes:
        paths: of the edges. rows: of the store. starts: number of the first row of each block of
            files whose images are gathered by one task.
    """

    paths: Sequence[str]
    rows: int
    starts: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name for errors and logs."""
        return "groups of near-duplicates"


@dataclass(frozen=True, kw_only=True)
class Grown:
    """The forest, in intermediate files.

    Attributes:
        members: images of groups (schema ``MEMBERS``), partitioned by block of files.
        edges: partitioned by part. parts: number of parts, each of whole groups.
        images: of groups. dropped_at: ten thresholds, and how many images groups at each would
            drop.
    """

    members: str
    edges: str
    parts: int
    images: int
    dropped_at: Thresholds


def grow(store: str, task: ForestTask, metric: str, threshold: float) -> Grown:
    """Connects the rows by all edges, and divides the groups into parts of about ``PART_ROWS``."""
    forest = Forest(task.rows)
    for path in task.paths:
        found = intermediate.read(store, path)
        edges = np.stack([found["a"].to_numpy(), found["b"].to_numpy()], 1)
        forest.add(edges, found["weight"].to_numpy())
    edges, weight = forest.edges, forest.weight
    lowest = lowest_nodes(task.rows, edges)
    connected = lowest != np.arange(task.rows, dtype=np.uint32)
    connected[lowest[connected]] = True
    row = np.flatnonzero(connected)
    root = lowest[row]
    part = np.zeros(0, np.int64)
    if len(row):
        roots, size = np.unique(root, return_counts=True)
        part_of_root = (np.cumsum(size) - 1) // PART_ROWS
        part = part_of_root[np.searchsorted(roots, root)]
    parts = int(part.max(initial=0)) + 1
    block = np.searchsorted(np.array(task.starts), row, side="right") - 1
    with intermediate.partitioned(store, MEMBERS, len(task.starts)) as file:
        columns = [row.astype(np.uint32), root, part.astype(np.uint16)]
        file.write(pa.table(columns, schema=MEMBERS), block)
        members = file.path
    with intermediate.partitioned(store, EDGES, parts) as file:
        of_edge = part[np.searchsorted(row, edges[:, 0])] if len(row) else part
        file.write(pa.table([*edges.T, weight], schema=EDGES), of_edge)
        path = file.path
    return Grown(
        members=members,
        edges=path,
        parts=parts,
        images=len(row),
        dropped_at=_dropped_at(weight, metric, threshold),
    )


def _dropped_at(weight: NDArray[np.float32], metric: str, threshold: float) -> Thresholds:
    """Ten thresholds up to the job's, and the edges [e] within each: all images of a tree but one
    would be dropped."""
    if metric == "l2":
        steps = [threshold * step / _STEPS for step in range(1, _STEPS + 1)]
        limits = steps
    else:
        best = float(-weight.min(initial=-threshold))
        steps = [best + (threshold - best) * step / _STEPS for step in range(1, _STEPS + 1)]
        limits = [-step for step in steps]
    found = [int(np.count_nonzero(weight <= np.float32(limit))) for limit in limits]
    found[-1] = len(weight)
    return [[step, count] for step, count in zip(steps, found, strict=True)]
