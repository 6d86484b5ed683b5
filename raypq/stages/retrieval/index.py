"""A code store in memory, with the interface of a FAISS index.

    index = raypq.open("codes")
    scores, ids = index.search(X, 10)

For stores whose codes fit in memory (M bytes a row, and the ids). ``raypq search`` has no such
limit and gives the same results.
"""

from __future__ import annotations

import os
from numbers import Integral
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.config import Distance, Metric
from raypq.config.places import path_of
from raypq.data import search_results
from raypq.data.search_results import SearchResults
from raypq.errors import ConfigError, InputError
from raypq.methods.base import Model
from raypq.methods.model import array_of_rows
from raypq.stages.retrieval.code_blocks import CodeBlock, by_id, read_block, topk
from raypq.stages.retrieval.query_vectors import vectors
from raypq.stages.stores.code_store import (
    id_type_of,
    metric_of,
    models_for,
    open_store,
    warn_of_codes_for_classes,
)
from raypq.stages.stores.shard_task import stored_shards

_BATCH_QUERIES = 4096
_MAX_PADDED = 1 << 27  # results of a search that asks for more than there are rows


class Index:
    """The codes of one version of a store, read-only.

    Attributes:
        models: by fingerprint. metric: of scores (l2: squared distances).
        ids: of all rows, ascending; int64, or object for strings. version: of the store.
    """

    def __init__(
        self,
        codes: str | os.PathLike[str],
        *,
        version: int | None = None,
        metric: Metric | None = None,
    ):
        codes = path_of(codes)
        opened = open_store(codes, version)
        self.version = opened.version
        self.models = models_for(codes, opened, None)
        self.metric = metric_of(self.models, metric)
        warn_of_codes_for_classes(codes, self.models)
        by_model: dict[str, list[CodeBlock]] = {}
        self._id_type = id_type_of(codes, opened)
        for shard in stored_shards(codes, opened):
            block = read_block(shard, self.models, self._id_type)
            by_model.setdefault(block.fingerprint, []).append(block)
        # Sorted by id: the kernel breaks ties by row.
        joined = [CodeBlock.join(blocks) for blocks in by_model.values()]
        self._blocks = [block.take(by_id(block.ids)) for block in joined]
        ids = pa.concat_arrays([block.ids for block in self._blocks])
        self.ids = _plain(ids.take(pa.array(by_id(ids))))

    @property
    def ntotal(self) -> int:
        """Rows in the index."""
        return len(self.ids)

    @property
    def d(self) -> int:
        """Width of queries, dx."""
        return next(iter(self.models.values())).dx

    @property
    def model(self) -> Model:
        """The model of all codes.

        Raises:
            ConfigError: there are several.
        """
        if len(self.models) > 1:
            raise ConfigError(f"the store has {len(self.models)} models; see Index.models")
        return next(iter(self.models.values()))

    def search(
        self, X: NDArray[Any], k: int, *, distance: Distance = "adc"
    ) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """The k nearest rows of each query.

        Args:
            X: queries [n, d], any float type. k: results of each.

        Returns:
            Scores [n, k] float32 (l2: squared distances, ascending; cosine, dot: descending), and
            ids [n, k], int64 or object. If the index has fewer than k rows, the rest of the scores
            is inf (l2) or −inf, and the rest of the ids is −1 (or None), as in faiss.

        Raises:
            InputError: queries of another shape, or NaN or Inf in them, naming the row.
            ConfigError: k is not a whole number from one on, or far more than there are rows, or
                the distance is unknown.
        """
        if distance not in ("adc", "sdc"):
            raise ConfigError(f"distance: must be adc or sdc, found {distance!r}")
        X = self._checked(X)
        k = self._checked_k(k, len(X))
        scores = np.full((len(X), k), np.inf if self.metric == "l2" else -np.inf, np.float32)
        strings = pa.types.is_string(self._id_type)
        ids = np.full((len(X), k), None if strings else -1, object if strings else np.int64)
        for start in range(0, len(X), _BATCH_QUERIES):
            rows = slice(start, start + _BATCH_QUERIES)
            best = search_results.merge(
                [self._scan(block, X[rows], k, distance) for block in self._blocks], k
            )
            scores[rows, : best.k] = search_results.in_metric(best.score, self.metric)
            ids[rows, : best.k] = _plain(best.ids).reshape(best.score.shape)
        return scores, ids

    def _scan(
        self, block: CodeBlock, X: NDArray[np.float32], k: int, distance: Distance
    ) -> SearchResults:
        model = self.models[block.fingerprint]
        V = vectors(model, X, distance)
        return topk(block, model.tables(V, None, self.metric), k)

    def _checked_k(self, k: Any, n: int) -> int:
        if not isinstance(k, Integral) or isinstance(k, bool):
            raise ConfigError(f"k: expected a whole number of at least 1, found {k!r}")
        k = int(k)
        if k < 1:
            raise ConfigError(f"k: must be at least 1, found {k}")
        if k > self.ntotal and n * k > _MAX_PADDED:
            raise ConfigError(
                f"k: {k} results of each of {n} queries are mostly padding, as the index has "
                f"{self.ntotal} rows, and take {12 * n * k / 1e9:.3g} GB; k = {self.ntotal} gives "
                "all rows"
            )
        return k

    def _checked(self, X: Any) -> NDArray[np.float32]:
        X = array_of_rows(X, "queries", f"an array [n, {self.d}]")
        if X.shape[1] != self.d:
            raise InputError("queries", expected=f"an array [n, {self.d}]", found=str(X.shape))
        if not np.issubdtype(X.dtype, np.floating):
            raise InputError("queries", expected="floating point values", found=str(X.dtype))
        X = np.ascontiguousarray(X, np.float32)
        bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
        if len(bad):
            raise InputError(
                f"queries, row {bad[0]}",
                expected="finite values",
                found=f"NaN or Inf ({len(bad)} such row(s))",
            )
        return X


def _plain(ids: pa.Array) -> NDArray[Any]:
    return ids.to_numpy(zero_copy_only=False)


def open_index(
    codes: str | os.PathLike[str], *, version: int | None = None, metric: Metric | None = None
) -> Index:
    """Reads all codes of a store, with its models (``raypq.open``).

    Raises:
        InputError: no such store, an empty one, or a damaged file.
        ModelError: a model is missing.
        ConfigError: the metrics of the models differ and none was requested.
    """
    return Index(codes, version=version, metric=metric)
