"""Extract: features of images by a backbone, one file for each shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from raypq.config import ExtractJob
from raypq.config.places import is_library_model
from raypq.data import arrays, images
from raypq.data.features import (
    FeatureBatch,
    FeatureReader,
    FeatureStore,
    feature_schema,
    open_features,
)
from raypq.data.ids import IdRule
from raypq.data.plain_folder import refuse_others, remove_left_out
from raypq.data.prefetch import prefetch
from raypq.data.storage import atomic_write, exists, join, read_bytes
from raypq.errors import ConfigError, ShardFailure
from raypq.execution.executor import Executor, completed
from raypq.methods import registry
from raypq.methods.support.backbones import library_model
from raypq.optional_packages import require
from raypq.stages.stores.shard_task import ShardTask
from raypq.stages.stores.shard_types import check_label_column, rule_of

Backbone = Callable[[NDArray[np.float32]], NDArray[np.float32]]

_BATCH_IMAGES = 64  # of one call of a backbone


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """One shard of features: rows, width, and number of images that could not be decoded."""

    rows: int
    width: int
    left_out: int


class ExtractWorker:
    """Computes shards of features from shards of images."""

    def __init__(self, job: ExtractJob, rule: IdRule | None) -> None:
        self._columns, self._output, self._rule = job.columns, job.output, rule
        self._backbone = load_backbone(job)

    @property
    def _width(self) -> int:
        """Width of the features, from one black image; for a shard without images."""
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
                atomic_write(join(self._output, f"{task.shard.stem}.parquet")) as sink,
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
                for batch, F in chain([first], batches) if first else ():
                    writer.write_batch(_record(batch, F, schema))
                    rows += len(batch)
        return Extracted(rows=rows, width=width, left_out=reader.left_out)

    def _batches(self, reader: FeatureReader) -> Iterator[tuple[FeatureBatch, NDArray[np.float32]]]:
        for batch in prefetch(reader.batches()):
            parts = [
                self._backbone(batch.X[start : start + _BATCH_IMAGES])
                for start in range(0, len(batch), _BATCH_IMAGES)
            ]
            F = np.concatenate(parts)
            yield batch, arrays.finite_float32(F, where=batch.where, ids=batch.ids, row0=batch.row)


def _record(batch: FeatureBatch, F: NDArray[np.float32], schema: pa.Schema) -> pa.RecordBatch:
    columns = [batch.ids, arrays.fixed_binary(F.view(np.uint8).reshape(len(F), -1))]
    if "label" in schema.names:
        columns.append(batch.labels)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def load_backbone(job: ExtractJob) -> Backbone:
    """The function from images [n, 3·S²] in 0 … 1 to features [n, dx].

    Raises:
        ConfigError: an unknown name, a missing package or file.
        ModelError: a model directory that cannot be read.
    """
    name, device = job.backbone, job.where.device
    if is_library_model(name):
        library, _, model = name.partition(":")
        return _torch(library_model(library, model, None, pretrained=True), job)
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
            f"backbone: {name} is not a TorchScript file: {str(error).splitlines()[0]}"
        ) from None
    return _torch(loaded, job)


def _images(X: NDArray[np.float32], job: ExtractJob) -> NDArray[np.float32]:
    """Rows as images [n, 3, S, S], with mean and std of each channel applied."""
    side = job.columns.image_size
    assert side is not None, "checked before"
    mean = np.asarray(job.mean, np.float32)[:, None, None]
    std = np.asarray(job.std, np.float32)[:, None, None]
    return (X.reshape(len(X), 3, side, side) - mean) / std


def _torch(network: torch.nn.Module, job: ExtractJob) -> Backbone:
    network = network.eval().to(job.where.device)

    def run(X: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            features = network(torch.from_numpy(_images(X, job)).to(job.where.device))
        return _flat(features.float().cpu().numpy())

    return run


def _onnx(content: bytes, job: ExtractJob) -> Backbone:
    runtime = require("onnxruntime", extra="backbones", purpose=f"backbone {job.backbone}")
    cuda = ["CUDAExecutionProvider"] if job.where.device == "cuda" else []
    session = runtime.InferenceSession(content, providers=[*cuda, "CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(X: NDArray[np.float32]) -> NDArray[np.float32]:
        return _flat(session.run(None, {name: _images(X, job)})[0])

    return run


def _flat(F: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(F.reshape(len(F), -1), dtype=np.float32)


def extract(job: ExtractJob, executor: Executor) -> dict[str, Any]:
    """Writes the features of every shard of images to ``<output>/<stem>.parquet``.

    Raises:
        ConfigError: no image size, an unknown backbone, or other files in the output folder.
        JobError: some shards could not be read; all others are written.
    """
    if job.columns.image_size is None:
        raise ConfigError(
            "extract needs the size of the images: pass --image-size (columns.image_size)"
        )
    load_backbone(job)  # raises before any worker starts
    store = FeatureStore.open(job.images, job.columns)
    check_label_column(store.shards, job.columns)
    rule = rule_of(store.shards, job.columns)
    tasks = [ShardTask(shard=shard) for shard in store.shards]
    refuse_others(job.output, [f"{shard.stem}.parquet" for shard in store.shards])
    failures: list[ShardFailure] = []
    with executor.start_workers(ExtractWorker, job, rule, stage="extract") as pool:
        shards = list(
            completed(
                pool.map(ExtractWorker.extract, tasks),
                total=len(tasks),
                label="extract",
                on_bad_shard=job.on_bad_shard,
                failures=failures,
                images=lambda shard: shard.rows,
            )
        )
    remove_left_out(job.output, store.shards, failures)
    return {
        "output": job.output,
        "shards": len(shards),
        "images": sum(shard.rows for shard in shards),
        "dx": max((shard.width for shard in shards), default=0),
        "images_left_out": sum(shard.left_out for shard in shards),
        "quarantined": [str(failure) for failure in failures],
    }
