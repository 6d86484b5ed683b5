"""Whole commands from stored files: encode with one worker, classify on a local Ray."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from raypq import api, kernels
from raypq.bench import clustered_data, read
from raypq.bench import encode as encode_bench
from raypq.bench.harness import Contender, Goal, Line, Result, rounds
from raypq.config import ClassifyJob, ClusterSettings, EncodeJob, RepackJob
from raypq.data import codes, synthetic
from raypq.data.classes import ClassTable
from raypq.data.storage import Shard
from raypq.data.store import shard_writer, snapshot
from raypq.execution.local import LocalExecutor
from raypq.methods.base import Model
from raypq.methods.pq import PQModel, PQSettings
from raypq.methods.pqzsl import PQZSLModel, PQZSLSettings
from raypq.stages.preparation.repack import repack

_ENCODE_ROWS = 65_536
_STORED, _SHARDS, _M = 1_000_000, 16, 50
_GROWTH = (10_000, 30_000, 100_000, 300_000, 1_000_000)
_RAY_REPEATS = 3
_TINY_SHARDS, _TINY_ROWS, _TINY_DX = 2000, 64, 32


def run(threads: int, classes: str | None = None) -> Iterator[Result]:
    """Encode from Parquet; classify a million stored codes; how the cost grows with N; what a
    second worker brings; what Ray costs where shards are tiny. Needs two cores.

    Args:
        classes: a class table to classify against (generated if None); 21,841 classes make the
            figure comparable.
    """
    with tempfile.TemporaryDirectory(prefix="raypq-bench-") as folder:
        yield _encode(Path(folder), threads)
        yield from _classify(Path(folder), threads, classes)
        yield from _workers(Path(folder), classes)
        yield _tiny(Path(folder))


def _encode(root: Path, threads: int) -> Result:
    model, _ = encode_bench.model()
    model.save(str(root / "model"))
    read.write_list(root / "list", rows=_ENCODE_ROWS, dx=model.dx)
    fast = root / "features"
    repack(RepackJob(features=[str(root / "list")], output=str(fast)), LocalExecutor())
    P = torch.from_numpy(model.tensors["P"])
    x = torch.randn(4096, model.dx)
    where = ClusterSettings(cluster="none", workers=1, threads=threads)
    job = EncodeJob(
        model=str(root / "model"), features=[str(fast)], output=str(root / "codes"), where=where
    )
    fresh = (  # into the same store a second run would find nothing to do
        job.model_copy(update={"output": str(root / f"codes-{turn}")}) for turn in count()
    )
    lines = rounds(
        [
            Contender(
                name="raypq encode",
                run=lambda: api.encode(next(fresh)),
                work=_ENCODE_ROWS,
                ours=True,
            ),
            Contender(name="bare reading", run=lambda: read.bare(fast), work=_ENCODE_ROWS),
            Contender(
                name="bare projection",
                run=lambda: [x @ P.T for _ in range(_ENCODE_ROWS // len(x))],
                work=_ENCODE_ROWS,
            ),
        ]
    )
    slower = min(lines[1:], key=lambda line: line.rate).name
    result = Result(
        bench="pipeline",
        case=f"encode {_ENCODE_ROWS:,} × {model.dx} from Parquet, one worker of {threads} threads",
        unit="images/s",
        lines=lines,
    )
    return result.with_goals([Goal(ours="raypq encode", peer=slower, at_least=0.8)])


def _classify(root: Path, threads: int, classes: str | None) -> Iterator[Result]:
    if classes is None:
        classes = str(root / "classes.parquet")
        rng = np.random.default_rng(0)
        synthetic.write_classes(
            Path(classes), synthetic.SyntheticClasses.create(classes=21_841, dx=16, da=384, rng=rng)
        )
    table = ClassTable.open(classes)
    model, B = _coded(table)
    model.save(str(root / "classifier"))
    store = str(root / "stored")
    write_codes(store, model, B)
    V, bias = model.prototypes(table.embeddings)
    tables = model.tables(V, bias)
    kernels.set_threads(threads)
    kernel = rounds(
        [
            Contender(
                name="kernel alone",
                run=lambda: kernels.topk_per_code(B[: _STORED // 4], tables, 10),
                work=_STORED // 4,
            )
        ]
    )
    where = ClusterSettings(cluster="local", workers=threads, threads=1)
    job = ClassifyJob(
        model=str(root / "classifier"),
        codes=store,
        classes=classes,
        output=str(root / "predictions"),
        where=where,
    )
    seconds, peak = [], 0.0
    with api.open_executor(where):
        for turn in range(_RAY_REPEATS):
            again = job.model_copy(update={"output": f"{job.output}-{turn}"})
            with Memory() as memory:
                version = api.classify(again)
            seconds.append(float(version.summary["seconds"]))
            peak = max(peak, memory.peak)
    spent = statistics.median(seconds)
    ours = Line(name="raypq classify on Ray", rate=_STORED / spent, seconds=spent, ours=True)
    result = Result(
        bench="pipeline",
        case=f"classify {_STORED:,} stored codes M={_M} T={len(table):,}, {threads} workers",
        unit="images/s",
        lines=[ours, *kernel],
        checks={"peak memory of a worker, GB": peak / 1e9},
    )
    yield result.with_goals([Goal(ours=ours.name, peer="kernel alone", at_least=0.6)])
    yield _growth(B, tables)


def _workers(root: Path, classes: str | None) -> Iterator[Result]:
    """Encode and classify on a local Ray by one worker of one thread, and by two; the stores are
    those of the other cases."""
    stored = sorted((root / "features").glob("*.parquet"))
    many = root / "many"
    many.mkdir()
    for part in range(_SHARDS // len(stored)):
        for path in stored:
            (many / f"{part:02d}-{path.name}").hardlink_to(path)
    jobs: dict[str, EncodeJob | ClassifyJob] = {
        "encode": EncodeJob(
            model=str(root / "model"),
            features=[str(many)],
            output="",
            duplicate_ids="ignore",
        ),
        "classify": ClassifyJob(
            codes=str(root / "stored"),
            model=str(root / "classifier"),
            classes=classes or str(root / "classes.parquet"),
            output="",
        ),
    }
    for stage, job in jobs.items():
        lines = [_by(workers, job, str(root / f"scaled-{stage}")) for workers in (1, 2)]
        result = Result(
            bench="pipeline", case=f"{stage} by one worker and by two", unit="images/s", lines=lines
        )
        yield result.with_goals([Goal(ours=lines[1].name, peer=lines[0].name, at_least=1.7)])


def _tiny(root: Path) -> Result:
    """Encode thousands of tiny shards in a loop, and on a local Ray from its start to its end."""
    X = np.random.default_rng(0).standard_normal((4096, _TINY_DX), dtype=np.float32)
    C = clustered_data.quantizer(X, 8, 256)
    PQModel(settings=PQSettings(M=8), tensors={"C": C}, dx=_TINY_DX).save(str(root / "tiny-model"))
    read.write_list(root / "one", rows=_TINY_ROWS, dx=_TINY_DX, shards=1)
    (one,) = (root / "one").glob("*.parquet")
    tiny = root / "tiny"
    tiny.mkdir()
    for shard in range(_TINY_SHARDS):
        (tiny / f"{shard:04d}.parquet").hardlink_to(one)
    lines = []
    for name, where in (
        ("plain loop", ClusterSettings(cluster="none", workers=1)),
        ("2 workers, with Ray's start", ClusterSettings(cluster="local", workers=2)),
    ):
        job = EncodeJob(
            model=str(root / "tiny-model"),
            features=[str(tiny)],
            duplicate_ids="ignore",
            output=str(root / f"tiny-codes-{where.cluster}"),
            where=where,
        )
        start = time.perf_counter()
        api.encode(job)
        seconds = time.perf_counter() - start
        ours = where.cluster == "local"
        lines.append(Line(name=name, rate=_TINY_SHARDS / seconds, seconds=seconds, ours=ours))
    return Result(
        bench="pipeline",
        case=f"encode {_TINY_SHARDS:,} shards of {_TINY_ROWS} images",
        unit="shards/s",
        lines=lines,
        checks={"seconds beyond the plain loop": lines[1].seconds - lines[0].seconds},
    )


def _by(workers: int, job: EncodeJob | ClassifyJob, place: str) -> Line:
    """The rate of one run, once all workers have started."""
    where = ClusterSettings(cluster="local", workers=workers, threads=1)
    again = job.model_copy(update={"output": f"{place}-{workers}", "where": where})
    with api.open_executor(where):
        version = api.encode(again) if isinstance(again, EncodeJob) else api.classify(again)
    images, seconds = _steady(version.summary["run"]["timeline"])
    name = f"{workers} worker{'s' if workers > 1 else ''}"
    return Line(name=name, rate=images / seconds, seconds=seconds, ours=workers > 1)


def _steady(timeline: list[tuple[float, int]]) -> tuple[int, float]:
    """Images and seconds of a run after its first quarter, by when all workers have started."""
    total = timeline[-1][1]
    begin, before = next(point for point in timeline if point[1] >= total / 4)
    end = next(time for time, images in timeline if images == total)
    return total - before, end - begin


def _coded(table: ClassTable) -> tuple[PQZSLModel, NDArray[np.uint8]]:
    """A model whose class projection is random, and codes of images around its prototypes."""
    rng = np.random.default_rng(1)
    da, D = table.embeddings.shape[1], 1000
    Q = (rng.standard_normal((D, da)) / np.sqrt(da)).astype(np.float32)
    V = table.embeddings @ Q.T
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    U = V[rng.integers(len(V), size=_STORED // 8)]
    U += np.float32(0.7 / np.sqrt(D)) * rng.standard_normal(U.shape, dtype=np.float32)
    C = clustered_data.quantizer(U[:8192], _M, 256)
    B = np.tile(kernels.encode(U, C), (8, 1))
    P = np.zeros((D, 16), np.float32)
    settings = PQZSLSettings(M=_M, attributes="none")
    return PQZSLModel(settings=settings, tensors={"C": C, "P": P, "Q": Q}, dx=16, da=da), B


def write_codes(store: str, model: Model, B: NDArray[np.uint8], *, shards: int = _SHARDS) -> None:
    """A version of a code store with so many more shards, written and committed as ``encode`` does;
    ids are the numbers of rows."""
    import pyarrow as pa

    schema = codes.schema(
        fingerprint=model.fingerprint, M=model.M, K=model.K, id_type=pa.int64(), label=False
    )
    receipts = list(snapshot.read(store).shards) if snapshot.versions(store) else []
    first = sum(receipt.rows for receipt in receipts)
    for rows in np.array_split(np.arange(len(B)), shards):
        stem = f"part-{len(receipts):05d}"
        batch = codes.record_batch(
            schema, ids=pa.array(first + rows), stored=codes.pack(B[rows], model.K), labels=None
        )
        receipts.append(
            shard_writer.write_shard(
                store,
                Shard(index=len(receipts), uri=stem, stem=stem, size=0, modified=""),
                model=model.fingerprint,
                work="bench",
                schema=schema,
                batches=[batch],
                options=codes.WRITE_OPTIONS,
            )
        )
    snapshot.commit(
        store,
        kind="codes",
        run_id=f"bench-{len(receipts)}",
        expected=[receipt.shard for receipt in receipts],
        receipts=receipts,
    )


def _growth(B: NDArray[np.uint8], tables: kernels.Tables) -> Result:
    lines = []
    for n in _GROWTH:
        start = time.perf_counter()
        kernels.topk_per_code(B[:n], tables, 10)
        seconds = time.perf_counter() - start
        lines.append(Line(name=f"N = {n:,}", rate=n / seconds, seconds=seconds, ours=True))
    return Result(
        bench="pipeline", case="kernel alone, how the cost grows", unit="images/s", lines=lines
    )


class Memory:
    """The largest resident size of any Ray worker while the context is open."""

    def __enter__(self) -> Memory:
        self.peak = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        from raypq.distributed.worker_actor import PROCESS_TITLE

        title = PROCESS_TITLE.encode()
        while not self._stop.wait(0.1):
            for process in Path("/proc").glob("[0-9]*"):
                self.peak = max(self.peak, _resident(process, title))


def _resident(process: Path, title: bytes) -> float:
    """Bytes of a Ray worker's resident memory, 0 for any other process."""
    try:
        if not (process / "cmdline").read_bytes().startswith(title):
            return 0.0
        status = (process / "status").read_text(encoding="ascii")
    except OSError:  # it ended meanwhile
        return 0.0
    return 1024.0 * int(status.partition("VmRSS:")[2].split()[0]) if "VmRSS:" in status else 0.0
