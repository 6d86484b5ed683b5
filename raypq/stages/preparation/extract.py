"""Extract: features of images under a backbone, one file a shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from raypq.config import ExtractJob
from raypq.data import arrays, images
from raypq.data.features import (
    FeatureBatch,
    FeatureReader,
    FeatureStore,
    feature_schema,
    open_features,
)
from raypq.data.ids import IdRule
from raypq.data.plain_folder import refuse_others
from raypq.data.prefetch import ahead
from raypq.data.storage import exists, join, read_bytes, replacing
from raypq.errors import ConfigError, ShardFailure
from raypq.execution.executor import Executor, completed
from raypq.methods import registry
from raypq.methods.support.backbones import named
from raypq.optional_packages import require
from raypq.stages.stores.shard_task import ShardTask
from raypq.stages.stores.shard_types import check_label_column, rule_of

Backbone = Callable[[NDArray[np.float32]], NDArray[np.float32]]

_PICTURES = 64  # that go through a backbone at once


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """One shard of features: its rows, their width, and the images left out."""

    rows: int
    width: int
    left_out: int


class ExtractWorker:
    """Turns shards of images into shards of features."""

    def __init__(self, job: ExtractJob, rule: IdRule | None) -> None:
        self._columns, self._output, self._rule = job.columns, job.output, rule
        self._backbone = load_backbone(job)

    @property
    def _width(self) -> int:
        """Width of the features, by one black image: for a shard without any."""
        side = self._columns.image_size
        assert side is not None, "checked before"
        return self._backbone(np.zeros((1, images.row_width(side)), np.float32)).shape[1]

    def extract(self, task: ShardTask) -> Extracted:
        """Writes the features of a shard."""
        rule = self._rule
        with open_features(task.shard, self._columns, width=None, rule=rule) as reader:
            batches = self._batches(reader)
            first = next(batches, None)
            width = self._width if first is None else first[1].shape[1]
            schema = feature_schema(id_type=reader.id_type, label=reader.label, width=width)
            rows = 0
            with (
                replacing(join(self._output, f"{task.shard.stem}.parquet")) as sink,
                pq.ParquetWriter(
                    sink,
                    schema,
                    compression={
                        name: "NONE" if name == "feature" else "ZSTD" for name in schema.names
                    },
                    use_dictionary=[name for name in schema.names if name != "feature"],
                    write_page_checksum=True,
                ) as writer,
            ):
                for batch, F in _with(first, batches) if first else ():
                    writer.write_batch(_record(batch, F, schema))
                    rows += len(batch)
        return Extracted(rows=rows, width=width, left_out=reader.left_out)

    def _batches(self, reader: FeatureReader) -> Iterator[tuple[FeatureBatch, NDArray[np.float32]]]:
        for batch in ahead(reader.batches()):
            parts = [
                self._backbone(batch.X[start : start + _PICTURES])
                for start in range(0, len(batch), _PICTURES)
            ]
            F = np.concatenate(parts)
            yield batch, arrays.finite_float32(F, where=batch.where, ids=batch.ids, row0=batch.row)


def _with(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _record(batch: FeatureBatch, F: NDArray[np.float32], schema: pa.Schema) -> pa.RecordBatch:
    columns = [batch.ids, arrays.fixed_binary(F.view(np.uint8).reshape(len(F), -1))]
    if "label" in schema.names:
        columns.append(batch.labels)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def load_backbone(job: ExtractJob) -> Backbone:
    """What turns pictures as rows [n, 3·S²] in 0 … 1 into features [n, dx].

    Raises:
        ConfigError: an unknown name, a package or file that is not there.
        ModelError: a model directory that cannot be read.
    """
    name, device = job.backbone, job.where.device
    library, colon, model = name.partition(":")
    if colon and library in ("torchvision", "timm"):
        return _through(named(library, model, None, pretrained=True), job)
    if not exists(name):
        raise ConfigError(
            f"backbone: {name!r} is neither torchvision:NAME nor timm:NAME, and no such file or "
            "model directory is there"
        )
    if exists(join(name, "model.json")):
        return registry.load(name).embed
    if name.endswith(".onnx"):
        return _onnx(read_bytes(name), job)
    try:
        loaded = torch.jit.load(name, map_location=device)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ConfigError(
            f"backbone: {name} is no TorchScript file: {str(error).splitlines()[0]}"
        ) from None
    return _through(loaded, job)


def _pictures(X: NDArray[np.float32], job: ExtractJob) -> NDArray[np.float32]:
    """Rows as pictures [n, 3, S, S], centred and scaled channel by channel."""
    side = job.columns.image_size
    assert side is not None, "checked before"
    mean = np.asarray(job.mean, np.float32)[:, None, None]
    std = np.asarray(job.std, np.float32)[:, None, None]
    return (X.reshape(len(X), 3, side, side) - mean) / std


def _through(network: torch.nn.Module, job: ExtractJob) -> Backbone:
    network = network.eval().to(job.where.device)

    def run(X: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found = network(torch.from_numpy(_pictures(X, job)).to(job.where.device))
        return _flat(found.float().cpu().numpy())

    return run


def _onnx(content: bytes, job: ExtractJob) -> Backbone:
    runtime = require("onnxruntime", extra="backbones", purpose=f"backbone {job.backbone}")
    cuda = ["CUDAExecutionProvider"] if job.where.device == "cuda" else []
    session = runtime.InferenceSession(content, providers=[*cuda, "CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(X: NDArray[np.float32]) -> NDArray[np.float32]:
        return _flat(session.run(None, {name: _pictures(X, job)})[0])

    return run


def _flat(F: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(F.reshape(len(F), -1), dtype=np.float32)


def extract(job: ExtractJob, executor: Executor) -> dict[str, Any]:
    """Writes the features of every shard of images under ``output``, as ``<stem>.parquet``.

    Raises:
        ConfigError: no image size, a backbone that is not there, an output with other files in it.
        JobError: shards that could not be read; every good one is written.
    """
    if job.columns.image_size is None:
        raise ConfigError(
            "extract needs the size of the images: pass --image-size (columns.image_size)"
        )
    load_backbone(job)  # a wrong name is told at once, and once
    store = FeatureStore.open(job.images, job.columns)
    check_label_column(store.shards, job.columns)
    rule = rule_of(store.shards, job.columns)
    tasks = [ShardTask(shard=shard) for shard in store.shards]
    refuse_others(job.output, [f"{shard.stem}.parquet" for shard in store.shards])
    failures: list[ShardFailure] = []
    with executor.start_workers(ExtractWorker, job, rule, stage="extract") as pool:
        done = list(
            completed(
                pool.map(ExtractWorker.extract, tasks),
                total=len(tasks),
                label="extract",
                on_bad_shard=job.on_bad_shard,
                failures=failures,
                images=lambda one: one.rows,
            )
        )
    return {
        "output": job.output,
        "shards": len(done),
        "images": sum(one.rows for one in done),
        "dx": _widths(done),
        "images_left_out": sum(one.left_out for one in done),
        "quarantined": [str(failure) for failure in failures],
    }


def _widths(done: Sequence[Extracted]) -> int:
    return max((one.width for one in done), default=0)
