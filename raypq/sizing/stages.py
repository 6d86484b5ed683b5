"""Costs of encoding and classifying, and the plan of all stages."""

from __future__ import annotations

import math

from raypq.data.codes import bytes_per_code
from raypq.errors import ConfigError
from raypq.sizing.rates import Rates
from raypq.sizing.search import search
from raypq.sizing.stage import Stage, batches, embedding, opening, reading, stage, start
from raypq.sizing.training import train
from raypq.sizing.workload import Workload

# As raypq/stages/classification/class_groups.py has them: bytes of tables that are held at once, of
# those of a part of the classes, and codes for which these are made; a test compares them.
_WHOLE_BYTES, _PART_BYTES, _PART_ROWS = 1 << 30, 400 << 20, 262_144
_CLASS_BYTES, _FILE_RATE = 300, 1e9  # of id, name and counts; bytes a second of a temporary file


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
    stages = [train(work, rates), _encode(work, rates), _classify(work, rates)]
    return [*stages, search(work, rates)] if work.queries else stages


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
