"""How long a job would take, and what it would need: rates of one worker times the work.

The rates come from ``raypq bench rates``, on the machine that the workers will be like. The work of
an image follows from the sizes alone (docs/scale.md has the formulas): features to read and to
normalise, 2·dx·D multiply-adds to project it, 2·D·K to find its codewords, and for every class the
lookups of M codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from raypq.config import Positive, Settings
from raypq.data.codes import bytes_per_code
from raypq.data.features import batch_rows
from raypq.errors import ConfigError

Rate = Annotated[float, Field(gt=0)]
Cost = Annotated[float, Field(ge=0)]

_SEED_SAMPLE, _SEED_ROUNDS, _SEED_ROWS = 16_384, 10, 16  # as raypq/methods seeds its codebooks
_MOVING, _POLISH = 10, 10  # passes that move the embedding too, and those of the codebooks alone
_LLOYD = 25  # passes of plain pq
_HOUR = 3600.0


class DeviceRates(Settings):
    """What one device computes a second.

    Attributes:
        projection: float32 operations a second of X Pᵀ. assignment: the same of finding codewords,
            counted as 2·D·K an image. scan: seconds an image and class, by number of sub-codebooks.
            rescore: dimensions a second of the exact scores that a scan ends with, k·D an image.
    """

    projection: Rate
    assignment: Rate
    rescore: Rate
    scan: dict[int, Rate] = Field(min_length=1)

    def scan_seconds(self, M: int) -> float:
        """Seconds an image and class: between two measured M on a line, beyond them in step."""
        known = sorted(self.scan)
        if known[0] >= M:
            return self.scan[known[0]]  # the rest of a scan costs as much as its first few lookups
        if known[-1] <= M:
            return self.scan[known[-1]] * M / known[-1]
        high = next(m for m in known if m >= M)
        low = known[known.index(high) - 1]
        share = (M - low) / (high - low)
        return (1 - share) * self.scan[low] + share * self.scan[high]


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


class Workload(Settings):
    """What is to be done, and by whom. Names follow the legend."""

    images: Positive
    dims: Positive = Field(2048, description="feature width dx")
    classes: Positive = Field(1000, description="candidate classes T")
    M: Positive = Field(50, description="sub-codebooks")
    K: int = Field(256, ge=1, le=256)
    method: Literal["pqzsl", "pq", "opq"] = "pqzsl"
    train_images: Positive | None = Field(None, description="default: all images")
    train_classes: Positive | None = Field(None, description="seen classes L; default: classes")
    attributes: Positive = Field(384, description="width of class embeddings")
    top_k: Positive = 10
    dtype: Literal["float32", "float16"] = "float32"
    layout: Literal["list", "binary"] = "list"
    shard_images: Positive = Field(100_000, description="images in one feature file")
    cache_bytes: Annotated[int, Field(ge=0)] = 4 << 30
    workers: Positive = 2
    gpus: Annotated[int, Field(ge=0)] = 0
    cluster: Literal["none", "ray"] = "ray"
    bandwidth: Rate | None = Field(None, description="bytes a second that storage gives a worker")
    worker_hour: Cost = Field(0.0, description="price of a worker for an hour")
    gpu_hour: Cost = Field(0.0, description="price of a GPU for an hour")

    @property
    def L(self) -> int:
        """Training classes."""
        return self.train_classes or self.classes

    @property
    def D(self) -> int:
        """Width of the common space: L (pqzsl) or dx, rounded up to a multiple of M."""
        return -(-(self.L if self.method == "pqzsl" else self.dims) // self.M) * self.M

    @property
    def feature_bytes(self) -> int:
        """Bytes of one image's features."""
        return self.dims * (4 if self.dtype == "float32" else 2)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage takes.

    Attributes:
        seconds: wall time. read, written: bytes. memory: bytes of a worker. cost: in the currency
            of the prices.
    """

    name: str
    seconds: float
    read: float
    written: float
    memory: float
    cost: float


def plan(work: Workload, rates: Rates) -> list[Stage]:
    """Train, encode and classify, one after the other.

    Raises:
        ConfigError: GPUs that the rates know nothing of; more sub-codebooks than classes.
    """
    if work.gpus and rates.gpu is None:
        raise ConfigError(
            "gpus: these rates were measured without a GPU; measure on a machine that has one "
            "(raypq bench rates --json FILE) and pass --rates FILE"
        )
    if work.method == "pqzsl" and work.L < work.M:
        raise ConfigError(f"M: {work.M} sub-codebooks are more than the {work.L} training classes")
    return [_train(work, rates), _encode(work, rates), _classify(work, rates)]


def _embed(work: Workload, rates: Rates) -> float:
    """CPU seconds to normalise and project an image."""
    projected = 0.0 if work.method == "pq" else 2 * work.dims * work.D / rates.cpu.projection
    scaled = 4 * work.dims / rates.normalise if work.method == "pqzsl" else 0.0
    return scaled + projected


def _read(work: Workload, rates: Rates) -> float:
    """Seconds to have the features of an image in memory."""
    rate = rates.read[work.layout]
    if work.bandwidth is not None:
        rate = min(rate, work.bandwidth)
    return work.feature_bytes / rate


def _train(work: Workload, rates: Rates) -> Stage:
    images, D, dx = work.train_images or work.images, work.D, work.dims
    moving = 0 if work.method == "pq" else _MOVING
    passes = _LLOYD if work.method == "pq" else _MOVING + _POLISH
    assign = _embed(work, rates) + D * (2 * work.K / rates.cpu.assignment + 1 / rates.accumulate)
    turn = 2 * D * dx / rates.gram + D / rates.accumulate
    first = 0.0 if work.method == "pq" else 2 * dx * dx / rates.gram
    # A pass of the sample, the passes of training, and a last look at 16 shards for the baseline
    # of drift, which is not counted.
    kept = images * 4 * dx <= work.workers * work.cache_bytes
    reads = 1 if kept else 1 + passes
    seconds = reads * _read(work, rates) + first + passes * assign + moving * turn
    shards = math.ceil(images / work.shard_images)
    spread = images * seconds / min(work.workers, shards) + _shards(work, rates, images) * reads
    solved = moving * _update(work) + passes * _objective(work) + _first(work)
    driver = _seeding(work, rates) + solved / rates.solve
    memory = (
        rates.worker_bytes
        + min(work.cache_bytes, images * 4 * dx / min(work.workers, shards))
        + _batches(work)
        + 8 * (dx * dx + 2 * D * dx + 2 * D * work.K)
    )
    return _stage("train", work, _start(work, rates) + spread + driver,
                  read=reads * images * work.feature_bytes, written=4.0 * D * (dx + work.K),
                  memory=memory, gpus=0)  # fmt: skip


def _seeding(work: Workload, rates: Rates) -> float:
    rows = min(_SEED_SAMPLE, work.train_images or work.images)
    assign = _SEED_ROUNDS * rows * 2 * work.D * work.K / rates.cpu.assignment
    spread = work.K * min(rows, _SEED_ROWS * work.K) * work.D / rates.seed
    return assign + spread


def _first(work: Workload) -> float:
    """Operations of the starting point: eigenvectors of the features' or the classes' moments."""
    if work.method == "pq":
        return 0.0
    n = work.D if work.method == "pqzsl" else work.dims
    return 20.0 * n**3 + 2.0 * work.dims**3


def _update(work: Workload) -> float:
    """Float64 operations of one update of the embedding: products, solutions, decompositions."""
    D, dx, da = work.D, work.dims, work.attributes
    if work.method == "opq":
        return 20.0 * D * D * dx
    products = 6.0 * D * dx * dx + 12.0 * D * work.L * dx
    return products + 2.0 / 3 * dx**3 + 9.0 * D**3 + 40.0 * work.L**3 + 9.0 * da**3


def _objective(work: Workload) -> float:
    """Float64 operations of telling the objective after a pass."""
    D, dx = work.D, work.dims
    return 6.0 * D * dx * dx + 10.0 * D * work.L * dx if work.method == "pqzsl" else 0.0


def _encode(work: Workload, rates: Rates) -> Stage:
    host = _read(work, rates) + rates.encode_image
    assign = 2 * work.D * work.K
    if rates.gpu is not None and work.gpus:
        there = (2 * work.dims * work.D) / rates.gpu.projection + assign / rates.gpu.assignment
        host += 4 * work.dims / rates.normalise
    else:
        host += _embed(work, rates) + assign / rates.cpu.assignment
        there = 0.0
    memory = rates.worker_bytes + 4 * work.D * (work.dims + work.K) + _batches(work)
    stored = bytes_per_code(work.M, work.K) + rates.code_bytes
    return _stage("encode", work, _spread(work, rates, host, there),
                  read=work.images * work.feature_bytes, written=work.images * stored,
                  memory=memory, gpus=work.gpus)  # fmt: skip


def _classify(work: Workload, rates: Rates) -> Stage:
    T = work.classes
    on_gpu = rates.gpu is not None and work.gpus
    device = rates.gpu if rates.gpu is not None and work.gpus else rates.cpu
    groups = 2 if work.L < T else 1  # seen and unseen classes are scanned apart
    scan = T * device.scan_seconds(work.M) + groups * work.top_k * work.D / device.rescore
    host = rates.classify_image * work.top_k / 10 + (0.0 if on_gpu else scan)
    # Tables of bytes, the weights that exact scores are formed from, and blocks of codes.
    tables = work.M * work.K * T + 2 * 4 * T * work.D
    block = 65_536 * (work.M + 48 * work.top_k)
    stored = bytes_per_code(work.M, work.K) + rates.code_bytes
    return _stage("classify", work, _spread(work, rates, host, scan if on_gpu else 0.0),
                  read=work.images * stored, written=work.images * work.top_k
                  * rates.prediction_bytes, memory=rates.worker_bytes + tables + block,
                  gpus=work.gpus)  # fmt: skip


def _spread(work: Workload, rates: Rates, host: float, there: float) -> float:
    """Wall seconds of a pass; a GPU computes while its workers read and write."""
    shards = math.ceil(work.images / work.shard_images)
    busy = min(work.workers, shards)  # a shard is one worker's
    seconds = work.images * max(host / busy, there / work.gpus if work.gpus else 0.0)
    return _start(work, rates) + seconds + _shards(work, rates, work.images)


def _shards(work: Workload, rates: Rates, images: int) -> float:
    shards = math.ceil(images / work.shard_images)
    return rates.shard * math.ceil(shards / work.workers)


def _start(work: Workload, rates: Rates) -> float:
    return rates.start or 0.0 if work.cluster == "ray" else 0.0


def _batches(work: Workload) -> float:
    """Feature batches in flight: one computed, one read ahead, and copies of each."""
    return 6.0 * 4 * work.dims * min(batch_rows(work.dims), work.shard_images)


def _stage(
    name: str, work: Workload, seconds: float, *, read: float, written: float, memory: float,
    gpus: int,
) -> Stage:  # fmt: skip
    price = work.workers * work.worker_hour + gpus * work.gpu_hour
    return Stage(name=name, seconds=seconds, read=read, written=written, memory=memory,
                 cost=seconds / _HOUR * price)  # fmt: skip


def total(stages: Sequence[Stage]) -> Stage:
    """All stages: times, bytes and costs added, the largest memory."""
    return Stage(
        name="in all",
        seconds=sum(stage.seconds for stage in stages),
        read=sum(stage.read for stage in stages),
        written=sum(stage.written for stage in stages),
        memory=max(stage.memory for stage in stages),
        cost=sum(stage.cost for stage in stages),
    )
