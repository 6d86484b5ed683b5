"""Work on a device beside its bare ceiling: the products and copies that cannot be left out.

``tests/gpu/prove.py`` runs it, with the tests, on a machine with a GPU (docs/gpu.md).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypq import api, kernels
from raypq.bench.harness import Contender, Goal, Result, rounds
from raypq.config import ClusterSettings, Columns, EncodeJob
from raypq.data.features import batch_rows, feature_schema, read_batches
from raypq.data.prefetch import in_flight
from raypq.data.store.sources import open_sources
from raypq.kernels.device import BATCHES_IN_FLIGHT, on_device, own_stream, synchronise
from raypq.methods import registry
from raypq.methods.base import ReductionMethod, State, Stats, TrainBatch, TrainingSetInfo
from raypq.methods.gradient import Batch, GradientMethod
from raypq.methods.pqzsl import PQZSLModel, PQZSLSettings
from raypq.methods.support.device_rows import Parameters
from raypq.stages.training.device_reduction import accumulate_on_device
from raypq.stages.training.trainer import begin_phase, train_epoch

Features = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the cases.

    Attributes:
        dx, D, M: of features and codes. train, encode, parquet: rows. classes, classified: of
            classification. queries, searched: of a search by M_search sub-codebooks of 8
            dimensions. steps, precision: of the training of a network.
    """

    dx: int = 2048
    D: int = 1000
    M: int = 50
    train: int = 1_280_000
    encode: int = 500_000
    parquet: int = 200_000
    classes: int = 21_841
    classified: int = 65_536
    queries: int = 1024
    searched: int = 10_000_000
    M_search: int = 16
    steps: int = 100
    precision: str = "bf16"
    repeats: int = 3


FULL = Sizes()
SMALL = Sizes(
    dx=64, D=40, M=10, train=4_000, encode=4_000, parquet=2_000, classes=300, classified=500,
    queries=20, searched=5_000, M_search=4, steps=2, precision="fp32", repeats=1,
)  # fmt: skip


def _features(sizes: Sizes) -> list[Features]:
    """Batches of float16 features, which are repeated to make up any number of rows."""
    rng = np.random.default_rng(0)
    rows = batch_rows(sizes.dx, for_device=True)
    return [
        rng.standard_normal((rows, sizes.dx), dtype=np.float32).astype(np.float16) for _ in range(4)
    ]  # float16 where features are float32, as readers give it for devices


def _batches(features: list[Features], rows: int) -> Iterator[Features]:
    size = len(features[0])
    for number, start in enumerate(range(0, rows, size)):
        yield features[number % len(features)][: min(size, rows - start)]


def _waited(device: str, work: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        work()
        synchronise(device)

    return run


def _in_flight(work: Callable[[Features], object], batches: Iterator[Features]) -> None:
    """Does the work of every batch, several at a time, as workers do."""
    for _ in in_flight(work, batches, BATCHES_IN_FLIGHT):
        pass


def _pass(
    method: ReductionMethod, state: State, batches: Iterator[Features], L: int, device: str
) -> Stats:
    """A pass over batches, with rows of L classes in turn."""
    labelled = (TrainBatch(X=X, y=np.arange(len(X), dtype=np.int32) % L, row=0) for X in batches)
    return accumulate_on_device(method, state, labelled, Parameters(device))


def _measured(
    bench: str, case: str, unit: str, contenders: list[Contender], goal: Goal, sizes: Sizes
) -> Result:
    lines = rounds(contenders, sizes.repeats)
    return Result(bench=bench, case=case, unit=unit, lines=lines).with_goals([goal])


def _training(device: str, sizes: Sizes) -> Result:
    """A pass of pqzsl that also updates the projection."""
    features, L = _features(sizes), sizes.D
    rng = np.random.default_rng(1)
    A = rng.standard_normal((L, 300), dtype=np.float32)
    method = registry.create_reduction("pqzsl", {"M": sizes.M, "iterations": 2})
    first = features[0][: max(4 * L, 256)]
    info = TrainingSetInfo(N=len(first), dx=sizes.dx, A=A)
    state = method.begin(info)
    state = method.update(state, _pass(method, state, iter([first]), L, device))
    P = torch.from_numpy(state.arrays["P"]).to(device)

    def bare() -> None:
        def products(X: Features) -> Tensor:
            with own_stream(device):
                x = on_device(X, device).float()
                return (x @ P.T).T @ x  # as large as Σ q(u) xᵀ

        _in_flight(products, _batches(features, sizes.train))

    resident = on_device(features[0], device).float()

    def products_alone() -> None:
        for X in _batches(features, sizes.train):
            x = resident[: len(X)]
            _ = (x @ P.T).T @ x

    contenders = [
        Contender(
            name="raypq pass",
            run=lambda: _pass(method, state, _batches(features, sizes.train), L, device),
            work=sizes.train,
            ours=True,
        ),
        Contender(name="copies and bare products", run=bare, work=sizes.train),
        Contender(name="bare products", run=_waited(device, products_alone), work=sizes.train),
    ]
    goal = Goal(ours="raypq pass", peer="bare products", at_least=0.6)
    return _measured(
        "gpu train",
        f"pqzsl, one pass over {sizes.train:,} × {sizes.dx} float16 from memory",
        "images/s",
        contenders,
        goal,
        sizes,
    )


def _model(sizes: Sizes) -> PQZSLModel:
    rng = np.random.default_rng(2)
    P = rng.standard_normal((sizes.D, sizes.dx), dtype=np.float32) / np.float32(sizes.dx**0.5)
    C = rng.standard_normal((sizes.M, 256, sizes.D // sizes.M), dtype=np.float32)
    settings = PQZSLSettings(M=sizes.M, normalise="none")
    return PQZSLModel(settings=settings, tensors={"P": P, "C": C}, dx=sizes.dx, da=None)


def _encoding(device: str, sizes: Sizes) -> Result:
    features, model = _features(sizes), _model(sizes)
    P = torch.from_numpy(model.tensors["P"]).to(device)
    bf16 = P.bfloat16()

    def ours(precision: Any) -> None:
        def codes(X: Features) -> NDArray[np.uint8]:
            return model.encode(X, device=device, precision=precision)

        _in_flight(codes, _batches(features, sizes.encode))

    def projection(multiply: Callable[[Tensor], Tensor]) -> None:
        def of_batch(X: Features) -> Tensor:
            with own_stream(device):
                return multiply(on_device(X, device))

        _in_flight(of_batch, _batches(features, sizes.encode))

    n = sizes.encode
    contenders = [
        Contender(name="raypq encode, bf16", run=lambda: ours("bf16"), work=n, ours=True),
        Contender(name="raypq encode, fp32", run=lambda: ours("fp32"), work=n, ours=True),
        Contender(
            name="copies and bare bf16 projection",
            run=lambda: projection(lambda x: x.bfloat16() @ bf16.T),
            work=n,
        ),
        Contender(
            name="copies and bare fp32 projection",
            run=lambda: projection(lambda x: x.float() @ P.T),
            work=n,
        ),
    ]
    goal = Goal(ours="raypq encode, bf16", peer="copies and bare bf16 projection", at_least=0.8)
    return _measured(
        "gpu encode",
        f"{sizes.dx} → {sizes.D}, M={sizes.M}, float16 from memory",
        "images/s",
        contenders,
        goal,
        sizes,
    )


def _encoding_parquet(device: str, sizes: Sizes) -> Result:
    model = _model(sizes)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        file = root / "features" / "0.parquet"
        file.parent.mkdir()
        _write(file, sizes)
        model.save(str(root / "model"))
        where = ClusterSettings(cluster="none", workers=1).model_copy(update={"device": device})
        runs = iter(range(1 << 30))

        def ours() -> None:
            job = EncodeJob(
                model=str(root / "model"), features=[str(root / "features")],
                output=str(root / f"codes-{next(runs)}"), precision="bf16", where=where,
            )  # fmt: skip
            api.encode(job)

        (shard,) = open_sources([str(root / "features")], Columns()).shards

        def bare() -> None:
            def copy(X: Features) -> Tensor:
                with own_stream(device):
                    return on_device(X, device)

            batches = read_batches(shard, Columns(), width=sizes.dx, for_device=True)
            _in_flight(copy, (batch.X for batch in batches))

        contenders = [
            Contender(name="raypq encode job", run=ours, work=sizes.parquet, ours=True),
            Contender(name="reading and copying", run=bare, work=sizes.parquet),
        ]
        goal = Goal(ours="raypq encode job", peer="reading and copying", at_least=0.8)
        return _measured(
            "gpu encode from Parquet",
            f"{sizes.parquet:,} × {sizes.dx} float16, fixed_size_binary",
            "images/s",
            contenders,
            goal,
            sizes,
        )


def _write(file: Path, sizes: Sizes) -> None:
    """A shard in the fastest layout."""
    schema = feature_schema(id_type=pa.int64(), label=False, width=sizes.dx, itemsize=2)
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        row = 0
        for X in _batches(_features(sizes), sizes.parquet):
            values = pa.py_buffer(np.ascontiguousarray(X).view(np.uint8))
            column = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(2 * sizes.dx), len(X), [None, values]
            )
            ids = pa.array(np.arange(row, row + len(X)))
            writer.write_table(pa.Table.from_arrays([ids, column], schema=schema))
            row += len(X)


def _classification(device: str, sizes: Sizes) -> Result:
    rng = np.random.default_rng(3)
    model = _model(sizes)
    V = rng.standard_normal((sizes.classes, sizes.D), dtype=np.float32)
    B = rng.integers(0, 256, (sizes.classified, sizes.M), dtype=np.uint8)
    tables = kernels.build_tables(model.C, V, None, "dot")
    q = torch.from_numpy(kernels.decode(B, model.C)).to(device).bfloat16()
    W = torch.from_numpy(V).to(device).bfloat16()

    def bare() -> None:
        for part in torch.split(q, 4096):
            (part @ W.T).topk(10)

    contenders = [
        Contender(
            name="raypq classify, exact",
            run=lambda: kernels.topk_per_code(B, tables, 10, device=device),
            work=sizes.classified,
            ours=True,
        ),
        Contender(
            name="bare bf16 product and top 10",
            run=_waited(device, bare),
            work=sizes.classified,
        ),
    ]
    goal = Goal(ours="raypq classify, exact", peer="bare bf16 product and top 10", at_least=0.6)
    return _measured(
        "gpu classify",
        f"{sizes.classes:,} classes, D={sizes.D}, M={sizes.M}, top 10",
        "images/s",
        contenders,
        goal,
        sizes,
    )


def _search(device: str, sizes: Sizes) -> Result:
    rng = np.random.default_rng(4)
    M, d = sizes.M_search, 8
    C = rng.standard_normal((M, 256, d), dtype=np.float32)
    queries = rng.standard_normal((sizes.queries, M * d), dtype=np.float32)
    B = rng.integers(0, 256, (sizes.searched, M), dtype=np.uint8)
    tables = kernels.build_tables(C, queries, None, "l2")
    W = torch.from_numpy(tables.W).to(device).bfloat16()
    step = min(1 << 18, sizes.searched)
    q = torch.from_numpy(kernels.decode(B[:step], C)).to(device).bfloat16()
    k = min(100, step)

    def bare() -> None:
        for start in range(0, sizes.searched, step):
            part = q[: min(step, sizes.searched - start)]
            (W @ part.T).topk(min(k, len(part)))

    contenders = [
        Contender(
            name="raypq search, exact",
            run=lambda: kernels.topk_per_query(B, tables, k, device=device),
            work=sizes.queries,
            ours=True,
        ),
        Contender(
            name="bare bf16 product and top k", run=_waited(device, bare), work=sizes.queries
        ),
    ]
    goal = Goal(ours="raypq search, exact", peer="bare bf16 product and top k", at_least=0.5)
    return _measured(
        "gpu search",
        f"{sizes.queries:,} queries × {sizes.searched:,} codes, M={M}, k={k}",
        "queries/s",
        contenders,
        goal,
        sizes,
    )


def _network(device: str, sizes: Sizes) -> Result:
    """Steps of DPQ's training from pictures of 32 × 32: whether ``torch.compile`` would pay."""
    method = registry.create("dpq", {"M": 6, "backbone": "dsh", "precision": sizes.precision})
    assert isinstance(method, GradientMethod)
    settings = method.settings
    info = TrainingSetInfo(N=50_000, dx=3072, names=tuple(map(str, range(10))))
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(settings.batch, 3072, generator=generator).to(device)
    y = torch.randint(10, (settings.batch,), generator=generator).to(device)
    (phase, *_) = method.phases(sizes.steps)

    def steps(compiled: bool) -> Callable[[], None]:
        network = method.network(info).to(device)
        optimizer = begin_phase(network, settings, phase, 0)
        module: Any = torch.compile(network) if compiled else network

        def run() -> None:
            train_epoch(
                network, module, optimizer, phase, [Batch(x=x, y=y)] * sizes.steps,
                settings=settings, position=(0, 0, 0), steps=sizes.steps, device=device,
            )  # fmt: skip

        return run

    contenders = [
        Contender(name="eager", run=steps(False), work=sizes.steps, ours=True),
        Contender(name="compiled", run=steps(True), work=sizes.steps),
    ]
    goal = Goal(ours="eager", peer="compiled", at_least=0.8)
    return _measured(
        "gpu network",
        f"dpq from pictures, batches of {settings.batch}",
        "steps/s",
        contenders,
        goal,
        sizes,
    )


CASES: Sequence[Callable[[str, Sizes], Result]] = (
    _training,
    _encoding,
    _encoding_parquet,
    _classification,
    _search,
    _network,
)
"""Every case, given a device and sizes."""
