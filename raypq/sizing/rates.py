"""What one worker does a second, as ``raypq bench rates`` measures it."""

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
    """What one device computes a second.

    Attributes:
        projection: float32 operations a second of X Pᵀ. assignment: the same of finding codewords,
            counted as 2·D·K an image. scan: seconds an image and class, by number of sub-codebooks.
            rescore: dimensions a second of the exact scores that a scan ends with, k·D an image.
        search: seconds that a query takes over a block of codes: by number of sub-codebooks, of
            results that it wants, and of rows in the block.
    """

    projection: Rate
    assignment: Rate
    rescore: Rate
    scan: dict[int, Rate] = Field(min_length=1)
    search: dict[int, dict[int, dict[int, Rate]]] = Field(default_factory=dict)

    def scan_seconds(self, M: int) -> float:
        """Seconds an image and class."""
        return _for_codes(self.scan, M)

    def search_seconds(self, M: int, k: int, rows: int) -> float:
        """Seconds a query that wants k of some rows."""
        return _for_codes(
            {
                m: _power({of: _power(by_rows, rows) for of, by_rows in by_k.items()}, k)
                for m, by_k in self.search.items()
            },
            M,
        )


def _for_codes(seconds: Mapping[int, float], M: int) -> float:
    """Seconds with M sub-codebooks: between two measured M on a line, beyond them in step."""
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
    """A power of ``at`` through the least and the largest that was measured; beyond that, in step.

    A search adds fewer and fewer rows to its best ones, so its time grows more slowly than rows and
    results do, until the lookups are all that is left.
    """
    low, high = min(seconds), max(seconds)
    if low == high or at >= high:
        return seconds[high] * at / high
    slope = math.log(seconds[high] / seconds[low]) / math.log(high / low)
    return seconds[low] * (at / low) ** slope


class SearchRates(Settings):
    """What a search takes beside its lookups.

    Attributes:
        image: seconds to read a stored code and its id. partial: seconds that a result of a block
            takes to be written, read and merged. result: seconds to write one of the last ones.
        partial_bytes, result_bytes: stored bytes of each.
    """

    image: Cost
    partial: Cost
    result: Cost
    partial_bytes: Cost
    result_bytes: Cost


class Rates(Settings):
    """What one worker (of one thread) does while as many as the machine has cores work beside it.

    Attributes:
        cpu, gpu: computing. read: bytes a second of features, by layout. normalise: bytes a second.
        gram: float operations a second of sums of outer products. solve: of float64
            factorisations. accumulate: values a second that are added up by codeword.
        seed: values a second that are compared with a seed of the codebooks.
        encode_image, classify_image: seconds an image beside the computing: ids, packing, writing.
        shard: seconds a shard: opening, writing, its receipt. start: seconds until Ray has workers;
            None was not measured and is not counted.
        code_bytes, prediction_bytes: stored bytes an image beside its code, and an answer.
        worker_bytes: memory of a worker that has imported everything and has no work yet.
        search: of searches; None was not measured.
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
