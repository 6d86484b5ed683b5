"""The rates for ``raypq plan``: each part of the work, measured for one worker while equal ones
run on the other cores.

What reading, writing and Python take is not measured alone: small jobs run through the real stages,
and what their known parts do not explain is that.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypq import api, console, kernels
from raypq.bench import clustered_data, read, search_rates
from raypq.bench.harness import Line, Result
from raypq.config import ClassifyJob, ClusterSettings, Columns, EncodeJob, RepackJob
from raypq.data import synthetic
from raypq.data.features import read_batches
from raypq.data.store import snapshot
from raypq.data.store.sources import open_sources
from raypq.execution.local import LocalExecutor
from raypq.methods.pqzsl import PQZSLModel, PQZSLSettings
from raypq.methods.support import codebooks
from raypq.methods.support.matrix_product import product
from raypq.methods.support.normalisation import normalise
from raypq.methods.support.statistics import gram
from raypq.sizing import DeviceRates, Rates
from raypq.stages.preparation.repack import repack

_ROUNDS = 5
_DX, _D, _K = 512, 256, 256
_ROWS = 4096  # of a product
_CODES = 16_384
_SUB_CODEBOOKS = (10, 25, 50)
_T, _TOP = 8192, 10
_SOLVE = 384
_SMALL_ROWS, _SMALL_SHARDS, _SMALL_DX, _SMALL_M = 65_536, 4, 16, 4
_TINY_SHARDS = 32
_MEMORY = """
import pathlib, raypq.api, raypq.stages.classification.classify, raypq.stages.training.train
status = pathlib.Path("/proc/self/status")
text = status.read_text() if status.exists() else ""
print(text.partition("VmRSS:")[2].split()[0] if text else 0)
"""
_USUAL_MEMORY = 400e6  # where the system does not tell


Clock = Callable[[], float]


def run(threads: int, clock: Clock) -> Iterator[Result]:
    """The rates as a table; ``measure`` gives them as they are used."""
    # The start of Ray is waiting, which processor time does not count.
    rates = measure(threads, ray=clock is time.perf_counter, clock=clock)
    lines = [
        Line(name=name, rate=value, seconds=0.0, ours=True)
        for name, value in _flat(rates.model_dump(exclude={"gpu"}))
    ]
    yield Result(
        bench="rates",
        case=f"one worker of {threads}",
        unit="a second, or as named",
        lines=lines,
        rates=rates.model_dump(mode="json"),
    )


def measure(threads: int, *, ray: bool = True, clock: Clock = time.perf_counter) -> Rates:
    """Rates of one of ``threads`` workers that run at once; takes 20 to 40 seconds.

    Args:
        ray: also measure how long a local Ray takes to have workers.
        clock: seconds; processor time is for one thread on a busy machine.
    """
    rng = np.random.default_rng(0)
    before = torch.get_num_threads(), kernels.threads()
    kernels.set_threads(1)
    torch.set_num_threads(1)
    try:
        with console.silent():  # the small jobs log too
            return _measure(threads, ray, clock, rng)
    finally:
        torch.set_num_threads(before[0])
        kernels.set_threads(before[1])


def _measure(threads: int, ray: bool, clock: Clock, rng: np.random.Generator) -> Rates:
    cpu = _device("cpu", threads, clock, rng)
    gpu = _device("cuda", 1, time.perf_counter, rng) if torch.cuda.is_available() else None
    return _with_stages(_computing(threads, clock, rng), cpu, gpu, threads, clock, ray=ray)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name} ")
        elif value is not None:
            yield f"{prefix}{name}", float(value)


def _seconds(work: Callable[[], object], threads: int, clock: Clock) -> float:
    """What one turn takes while as many threads as there are take turns of their own."""

    def turns() -> list[float]:
        times = []
        for turn in range(_ROUNDS + 1):
            start = clock()
            work()
            if turn:
                times.append(clock() - start)
        return times

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(turns) for _ in range(threads)]
        return statistics.median(seconds for future in futures for seconds in future.result())


def _device(device: str, threads: int, clock: Clock, rng: np.random.Generator) -> DeviceRates:
    X = torch.from_numpy(rng.standard_normal((_ROWS, _DX), dtype=np.float32)).to(device)
    P = torch.from_numpy(rng.standard_normal((_D, _DX), dtype=np.float32)).to(device)

    def project() -> None:
        if device == "cpu":
            product(X.numpy(), P.numpy())
        else:
            (X @ P.T)[-1, -1].item()  # waits for it

    data = clustered_data.embedded(N=_CODES, T=_T, D=400)
    C = clustered_data.quantizer(data.U, 50, _K, rounds=1)
    part = data.U[:_ROWS]
    assign = _seconds(lambda: kernels.encode(part, C, device=device), threads, clock)
    scan, rest = {}, []
    for M in _SUB_CODEBOOKS:
        C, B = clustered_data.quantized(data.U, M)

        def spent(V: NDArray[np.float32], C: Any = C, B: Any = B) -> float:
            tables = kernels.build_tables(C, V, None, "cosine")
            scan = partial(kernels.topk_per_code, B, tables, _TOP, device=device)
            return _seconds(scan, threads, clock) / len(B)

        few, many = spent(data.V[: _T // 8]), spent(data.V)
        scan[M] = (many - few) / (_T - _T // 8)  # what does not grow with T is the exact scores
        rest.append(max(many - scan[M] * _T, 1e-9))
    return DeviceRates(
        projection=2.0 * _ROWS * _DX * _D / _seconds(project, threads, clock),
        assignment=2.0 * len(part) * part.shape[1] * _K / assign,
        scan=scan,
        rescore=_TOP * data.U.shape[1] / statistics.median(rest),
        search=search_rates.lookups(device, partial(_seconds, threads=threads, clock=clock), rng),
    )


def _computing(threads: int, clock: Clock, rng: np.random.Generator) -> dict[str, float]:
    """Rates of the work that only CPUs do."""
    X = rng.standard_normal((_ROWS, _DX), dtype=np.float32)
    U = np.ascontiguousarray(X[:, :_D])
    C = rng.standard_normal((32, _K, _D // 32)).astype(np.float32)
    B = rng.integers(0, _K, (_ROWS, 32)).astype(np.uint8)
    S = rng.standard_normal((_SOLVE, _SOLVE))
    S = S @ S.T
    return {
        "normalise": X.nbytes / _seconds(lambda: normalise(X, "unit"), threads, clock),
        "gram": 2.0 * _ROWS * _DX * _DX / _seconds(lambda: gram(X), threads, clock),
        "accumulate": U.size / _seconds(lambda: kernels.codeword_sums(U, B, C), threads, clock),
        "seed": float(_K) * U.size / _seconds(partial(_seed, U), threads, clock),
        "solve": 9.0 * _SOLVE**3 / _seconds(lambda: np.linalg.eigh(S), 1, clock),
    }


def _seed(U: NDArray[np.float32]) -> None:
    codebooks.seed(U, 16, _K, np.random.default_rng(0), rounds=0)


def _with_stages(
    computing: dict[str, float],
    cpu: DeviceRates,
    gpu: DeviceRates | None,
    threads: int,
    clock: Clock,
    *,
    ray: bool,
) -> Rates:
    """The other rates, from small jobs through the real stages."""
    with tempfile.TemporaryDirectory(prefix="raypq-rates-") as folder:
        root = Path(folder)
        reading = _reading(root / "read", threads, clock)
        rest, codes = _small_jobs(root, threads, clock, cpu, reading)
        search = search_rates.beside(
            root / "search",
            codes,
            snapshot.read(codes),
            partial(_seconds, threads=threads, clock=clock),
            np.random.default_rng(2),
        )
    return Rates(
        cpu=cpu,
        gpu=gpu,
        read=reading,
        start=_start() if ray else None,
        worker_bytes=_memory(),
        search=search,
        **computing,
        **rest,
    )


def _reading(root: Path, threads: int, clock: Clock) -> dict[str, float]:
    rows = 4 * _ROWS
    read.write_list(root / "list", rows=rows, dx=_DX)
    repack(RepackJob(features=[str(root / "list")], output=str(root / "binary")), LocalExecutor())

    def all_of(layout: str) -> None:
        for shard in open_sources([str(root / layout)]).shards:
            for _ in read_batches(shard, Columns(), width=None):
                pass

    return {
        layout: 4.0 * rows * _DX / _seconds(partial(all_of, layout), threads, clock)
        for layout in ("list", "binary")
    }


def _small_jobs(
    root: Path, threads: int, clock: Clock, cpu: DeviceRates, reading: dict[str, float]
) -> tuple[dict[str, float], str]:
    """What encode and classify take beside what is known, an image and a shard, and stored bytes;
    with the larger code store."""
    rng = np.random.default_rng(1)
    made = synthetic.SyntheticClasses.create(classes=64, dx=_SMALL_DX, da=8, rng=rng)
    synthetic.write_classes(root / "classes.parquet", made)
    every = np.arange(64)
    for name, images, shards in (
        ("many", threads * _SMALL_ROWS, threads * _SMALL_SHARDS),
        ("tiny", threads * _TINY_SHARDS, threads * _TINY_SHARDS),
    ):
        synthetic.write_features(
            root / name, made, classes=every, images=images, shards=shards, name=name, rng=rng
        )
    model = _model(made, rng)
    model.save(str(root / "model"))
    encode: dict[str, float] = {}
    classify: dict[str, float] = {}
    stored: dict[str, float] = {}
    for name in ("tiny", "many"):
        seconds, sizes = zip(
            *(_one(root, name, turn, threads, clock) for turn in range(3)), strict=True
        )
        encode[name], classify[name] = (
            statistics.median(values) for values in zip(*seconds, strict=True)
        )
        stored = sizes[0]
    shard = statistics.fmean([encode["tiny"], classify["tiny"]]) / _TINY_SHARDS
    known = 4 * _SMALL_DX / reading["list"] + 2 * _SMALL_DX * _SMALL_M * _K / _SMALL_M * (
        1 / cpu.assignment
    )
    own = {
        "encode_image": (encode["many"] - _SMALL_SHARDS * shard) / _SMALL_ROWS - known,
        "classify_image": (classify["many"] - _SMALL_SHARDS * shard) / _SMALL_ROWS
        - 64 * cpu.scan_seconds(_SMALL_M),
    }
    rest = {**{name: max(value, 0.0) for name, value in own.items()}, "shard": shard, **stored}
    return rest, str(root / "codes-many-0")


def _one(
    root: Path, name: str, turn: int, threads: int, clock: Clock
) -> tuple[tuple[float, float], dict[str, float]]:
    """Seconds of encoding and of classifying a small store, and the bytes that were stored."""
    where = ClusterSettings(cluster="none", workers=threads)
    codes, answers = str(root / f"codes-{name}-{turn}"), str(root / f"answers-{name}-{turn}")
    start = clock()
    encoded = api.encode(
        EncodeJob(model=str(root / "model"), features=[str(root / name)], output=codes, where=where)
    )
    between = clock()
    classified = api.classify(
        ClassifyJob(codes=codes, classes=str(root / "classes.parquet"), output=answers, where=where)
    )
    return (between - start, clock() - between), {
        "code_bytes": max(0.0, _bytes(encoded) - _SMALL_M),
        "prediction_bytes": _bytes(classified) / _TOP,
    }


def _bytes(version: snapshot.Snapshot) -> float:
    return version.shards.totals.bytes / version.rows


def _model(made: synthetic.SyntheticClasses, rng: np.random.Generator) -> PQZSLModel:
    C = rng.standard_normal((_SMALL_M, _K, _SMALL_DX // _SMALL_M)).astype(np.float32)
    Q: NDArray[np.float32] = rng.standard_normal((_SMALL_DX, made.E.shape[1])).astype(np.float32)
    settings = PQZSLSettings(M=_SMALL_M, K=_K, normalise="unit", attributes="none")
    P = np.eye(_SMALL_DX, dtype=np.float32)
    tensors = {"C": C, "P": P, "Q": Q}
    return PQZSLModel(settings=settings, tensors=tensors, dx=_SMALL_DX, da=made.E.shape[1])


class _Nothing:
    name = "nothing"


class _Idle:
    """An idle worker with the imports of all workers."""

    def do_nothing(self, task: _Nothing) -> None:
        from raypq.stages.classification import classify  # noqa: F401


def _start() -> float:
    """Seconds until a local Ray has answered for the first time."""
    start = time.perf_counter()
    where = ClusterSettings(cluster="local", workers=1)
    with (
        api.open_executor(where) as executor,
        executor.start_workers(_Idle, stage="nothing") as pool,
    ):
        for _ in pool.map(_Idle.do_nothing, [_Nothing()]):
            pass
    return time.perf_counter() - start


def _memory() -> float:
    done = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, check=False)  # noqa: S603
    text = done.stdout.decode().strip()
    return 1024.0 * int(text) if text.isdigit() and int(text) else _USUAL_MEMORY
