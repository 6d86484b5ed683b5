"""Rates of one worker, as ``raypq bench rates`` measures them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from raypq.config import Settings
from raypq.errors import ConfigError

Rate = Annotated[float, Field(gt=0)]
Cost = Annotated[float, Field(ge=0)]


class DeviceRates(Settings):
    """Compute rates of one device.

    Attributes:
        projection: float32 operations per second of X Pᵀ. assignment: operations per second of the
            nearest-codeword search, counted as 2·D·K per image. scan: seconds per image and class,
            by M. rescore: dimensions per second of the exact scores after a scan, k·D per image.
        search: seconds per query over a block of codes: by M, results k, and rows in the block.
    """

    projection: Rate
    assignment: Rate
    rescore: Rate
    scan: dict[int, Rate] = Field(min_length=1)
    search: dict[int, dict[int, dict[int, Rate]]] = Field(default_factory=dict)

    def scan_seconds(self, M: int) -> float:
        """Seconds per image and class."""
        return _for_codes(self.scan, M)

    def search_seconds(self, M: int, k: int, rows: int) -> float:
        """Seconds per query for k results from this number of rows."""
        return _for_codes(
            {
                m: _power({results: _power(by_rows, rows) for results, by_rows in by_k.items()}, k)
                for m, by_k in self.search.items()
            },
            M,
        )


def _for_codes(seconds: Mapping[int, float], M: int) -> float:
    """Seconds with M sub-codebooks: linear between measured M, proportional above the largest."""
    known = sorted(seconds)
    if known[0] >= M:
        return seconds[known[0]]  # the rest of a scan costs as much as its first few lookups
    if known[-1] <= M:
        return seconds[known[-1]] * M / known[-1]
    high = next(m for m in known if m >= M)
    low = known[known.index(high) - 1]
    share = (M - low) / (high - low)
    return (1 - share) * seconds[low] + share * seconds[high]


def _power(seconds: Mapping[int, float], at: int) -> float:
    """Power law in ``at`` through the smallest and largest measurement; proportional beyond.

    A search adds fewer and fewer rows to its best ones, so its time grows more slowly than rows and
    results do, until only the lookups remain.
    """
    low, high = min(seconds), max(seconds)
    if low == high or at >= high:
        return seconds[high] * at / high
    slope = math.log(seconds[high] / seconds[low]) / math.log(high / low)
    return seconds[low] * (at / low) ** slope


class SearchRates(Settings):
    """Costs of a search besides its lookups.

    Attributes:
        image: seconds to read a stored code and its id. partial: seconds to write, read and merge a
            result of a block. result: seconds to write a final result.
        partial_bytes, result_bytes: stored bytes of each.
    """

    image: Cost
    partial: Cost
    result: Cost
    partial_bytes: Cost
    result_bytes: Cost


class Rates(Settings):
    """Rates of one worker of one thread, while every core of the machine runs such a worker.

    Attributes:
        cpu, gpu: compute rates. read: bytes per second of features, by layout. normalise: bytes per
            second. gram: float operations per second of sums of outer products. solve: float64
            operations per second of factorisations. accumulate: values per second added up by
            codeword. seed: values per second compared with a seed of the codebooks.
        encode_image, classify_image: seconds per image besides computing: ids, packing, writing.
        shard: seconds per shard: opening, writing, its receipt. start: seconds until Ray has
            workers; None: not measured and not counted.
        code_bytes, prediction_bytes: stored bytes per image besides its code, and per prediction.
        worker_bytes: memory of an idle worker after its imports.
        search: costs of a search; None: not measured.
    """

    cpu: DeviceRates
    gpu: DeviceRates | None = None
    read: dict[Literal["list", "binary"], Rate]
    normalise: Rate
    gram: Rate
    solve: Rate
    accumulate: Rate
    seed: Rate
    encode_image: Cost
    classify_image: Cost
    shard: Cost
    start: Cost | None = None
    code_bytes: Cost
    prediction_bytes: Cost
    worker_bytes: Rate
    search: SearchRates | None = None

    @classmethod
    def of(cls, document: dict[str, Any], *, origin: str) -> Rates:
        """The rates in a result file of ``raypq bench``.

        Raises:
            ConfigError: the file has none.
        """
        if not isinstance(document.get("rates"), dict):
            raise ConfigError(
                f"{origin}: expected rates, found a file without; write one with "
                "raypq bench rates --json FILE"
            )
        return cls.parse(document["rates"], origin=f"{origin}, rates")
