"""Costs of training, encoding and classifying, and the plan of all stages."""

from __future__ import annotations

import math

from raypq.data.codes import bytes_per_code
from raypq.errors import ConfigError
from raypq.sizing.rates import Rates
from raypq.sizing.search import search
from raypq.sizing.stage import Stage, batches, embedding, opening, reading, stage, start
from raypq.sizing.workload import Workload

_SEED_SAMPLE, _SEED_ROUNDS, _SEED_ROWS = 16_384, 10, 16  # as raypq/methods seeds its codebooks
_MOVING, _POLISH = 10, 10  # passes that update the embedding too, and passes of the codebooks alone
_LLOYD = 25  # passes of plain pq
# As raypq/stages/classification/class_groups.py has them: bytes of tables that are held at once, of
# those of a part of the classes, and codes for which these are made; a test compares them.
_WHOLE_BYTES, _PART_BYTES, _PART_ROWS = 1 << 30, 400 << 20, 262_144
_CLASS_BYTES, _FILE_RATE = 300, 1e9  # of id, name and counts; bytes a second of a temporary file
# As raypq/stages/training/held_out_classes.py has them: rows of the sample, fewest classes, classes
# that are unseen in one training or another, fewest and most trainings, rows that each fits.
_CALIBRATED_ROWS, _FEWEST_CLASSES, _UNSEEN_IN_ALL, _TRAININGS = 50_000, 8, 60, (3, 8)
_FITTED = 0.75 * 0.8


def plan(work: Workload, rates: Rates) -> list[Stage]:
    """Train, encode and classify, one after the other; and search, if there are queries.

    Raises:
        ConfigError: GPUs or a search that the rates were measured without; more sub-codebooks than
            classes.
    """
    if work.gpus and rates.gpu is None:
        raise ConfigError(
            "gpus: these rates were measured without a GPU; measure on a machine that has one "
            "(raypq bench rates --json FILE), then raypq plan --rates FILE"
        )
    if work.method == "pqzsl" and work.L < work.M:
        raise ConfigError(f"M: {work.M} sub-codebooks are more than the {work.L} training classes")
    stages = [_train(work, rates), _encode(work, rates), _classify(work, rates)]
    return [*stages, search(work, rates)] if work.queries else stages


def _train(work: Workload, rates: Rates) -> Stage:
    images, D, dx = work.train_images or work.images, work.D, work.dims
    moving = 0 if work.method == "pq" else _MOVING
    passes = _LLOYD if work.method == "pq" else _MOVING + _POLISH
    assign = embedding(work, rates) + D * (2 * work.K / rates.cpu.assignment + 1 / rates.accumulate)
    turn = 2 * D * dx / rates.gram + D / rates.accumulate
    first = 0.0 if work.method == "pq" else 2 * dx * dx / rates.gram
    # A pass of the sample and the passes of training; the pass over 16 shards for the baseline of
    # drift is not counted.
    cached = images * 4 * dx <= work.workers * work.cache_bytes
    reads = 1 if cached else 1 + passes
    seconds = reads * reading(work, rates) + first + passes * assign + moving * turn
    shards = math.ceil(images / work.shard_images)
    parallel = images * seconds / min(work.workers, shards) + opening(work, rates, images) * reads
    solved = moving * _update(work) + passes * _objective(work) + _first(work)
    driver = _seeding(work, rates) + solved / rates.solve
    a_row = first + passes * assign + moving * turn
    calibration = _calibration(work, rates, images, a_row, driver)
    memory = (
        rates.worker_bytes
        + min(work.cache_bytes, images * 4 * dx / min(work.workers, shards))
        + batches(work)
        + 8 * (dx * dx + 2 * D * dx + 2 * D * work.K)
    )
    reads += bool(calibration)
    return stage("train", work, start(work, rates) + parallel + driver + calibration,
                  read=reads * images * work.feature_bytes, written=4.0 * D * (dx + work.K),
                  memory=memory, gpus=0)  # fmt: skip


def _calibration(work: Workload, rates: Rates, images: int, a_row: float, driver: float) -> float:
    """Seconds in which a model with classes is calibrated: trainings on parts of a sample, one on
    each worker at a time.

    Args:
        a_row: seconds of a row in all passes. driver: seconds of the updates of a training.
    """
    rows = min(_CALIBRATED_ROWS, images // 3)
    if work.method != "pqzsl" or work.L < _FEWEST_CLASSES or rows < 2 * work.L:
        return 0.0
    unseen = max(2, round(work.L / 4))
    trainings = min(max(_UNSEEN_IN_ALL // unseen, _TRAININGS[0]), _TRAININGS[1])
    turns = math.ceil(trainings / work.workers)
    shards = math.ceil(images / work.shard_images)
    sample = images * reading(work, rates) / min(work.workers, shards)
    return sample + turns * (_FITTED * rows * a_row + driver)


def _seeding(work: Workload, rates: Rates) -> float:
    rows = min(_SEED_SAMPLE, work.train_images or work.images)
    assign = _SEED_ROUNDS * rows * 2 * work.D * work.K / rates.cpu.assignment
    seeding = work.K * min(rows, _SEED_ROWS * work.K) * work.D / rates.seed
    return assign + seeding


def _first(work: Workload) -> float:
    """Operations of the starting point: eigenvectors of a covariance of features or classes."""
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
    """Float64 operations of the objective after a pass."""
    D, dx = work.D, work.dims
    return 6.0 * D * dx * dx + 10.0 * D * work.L * dx if work.method == "pqzsl" else 0.0


def _encode(work: Workload, rates: Rates) -> Stage:
    host = reading(work, rates) + rates.encode_image
    assign = 2 * work.D * work.K
    if rates.gpu is not None and work.gpus:
        gpu = (2 * work.dims * work.D) / rates.gpu.projection + assign / rates.gpu.assignment
        host += 4 * work.dims / rates.normalise
    else:
        host += embedding(work, rates) + assign / rates.cpu.assignment
        gpu = 0.0
    memory = rates.worker_bytes + 4 * work.D * (work.dims + work.K) + batches(work)
    stored = bytes_per_code(work.M, work.K) + rates.code_bytes
    return stage("encode", work, _wall(work, rates, host, gpu),
                  read=work.images * work.feature_bytes, written=work.images * stored,
                  memory=memory, gpus=work.gpus)  # fmt: skip


def _classify(work: Workload, rates: Rates) -> Stage:
    T = work.classes
    on_gpu = rates.gpu is not None and work.gpus
    device = rates.gpu if rates.gpu is not None and work.gpus else rates.cpu
    groups = 2 if work.L < T else 1  # seen and unseen classes are scanned separately
    scan = T * device.scan_seconds(work.M) + groups * work.top_k * work.D / device.rescore
    host = rates.classify_image * work.top_k / 10 + (0.0 if on_gpu else scan)
    # Tables of bytes, the weights that exact scores are formed from, and blocks of codes.
    tables = work.M * work.K * T + 2 * 4 * T * work.D
    rows = 65_536
    if tables > _WHOLE_BYTES:  # in parts: the weights are in a file, and read for many codes
        tables, rows = _PART_BYTES + _CLASS_BYTES * T, _PART_ROWS
        passes = math.ceil(work.images / min(_PART_ROWS, work.shard_images))
        making = 2 * work.D * work.K * T / device.projection + 4 * work.D * T / _FILE_RATE
        scan += passes * making / work.images
        host += 0.0 if on_gpu else passes * making / work.images
    block = rows * (work.M + 48 * work.top_k)
    stored = bytes_per_code(work.M, work.K) + rates.code_bytes
    return stage("classify", work, _wall(work, rates, host, scan if on_gpu else 0.0),
                  read=work.images * stored, written=work.images * work.top_k
                  * rates.prediction_bytes, memory=rates.worker_bytes + tables + block,
                  gpus=work.gpus)  # fmt: skip


def _wall(work: Workload, rates: Rates, host: float, gpu: float) -> float:
    """Wall seconds of a pass over the images, by seconds per image of a worker and of a GPU."""
    shards = math.ceil(work.images / work.shard_images)
    busy = min(work.workers, shards)  # one worker processes a shard
    seconds = work.images * max(host / busy, gpu / work.gpus if work.gpus else 0.0)
    return start(work, rates) + seconds + opening(work, rates, work.images)
