"""FAISS exchange: a code store as an index, a trained index as a model.

In FAISS's terms a linear model is a chain of transforms before an ``IndexPQ``:

    z-scoring       x → (x − mean) / std           LinearTransform, with bias
    unit length     x → x / ‖x‖                    NormalizationTransform
    projection      x → P x                        LinearTransform

Both have the same codebooks and codes, so no vector is encoded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypq.config import ExportFaissJob, ImportFaissJob, Metric
from raypq.data import codes
from raypq.data.model_files import check_vacant
from raypq.data.storage import read_named, write_bytes
from raypq.errors import ConfigError, InputError, ModelError
from raypq.methods.base import Array, Model, Normalise
from raypq.methods.opq import OPQModel, OPQSettings
from raypq.methods.pq import PQModel, PQSettings
from raypq.methods.support.linear_model import LinearModel
from raypq.optional_packages import require
from raypq.stages.retrieval.code_blocks import CodeBlock, by_id, read_block
from raypq.stages.stores.code_store import (
    id_type_of,
    metric_of,
    models_for,
    open_store,
    warn_of_codes_for_classes,
)
from raypq.stages.stores.shard_task import stored_shards

_BIAS_TOLERANCE = 1e-4  # largest relative error of a bias that is expressed by a mean


def export_faiss(job: ExportFaissJob) -> dict[str, Any]:
    """Writes a version of a code store as a FAISS index, with rows in the order of their ids.

    The index is an ``IndexIDMap`` over an ``IndexPQ``, with an ``IndexPreTransform`` between them
    if the model transforms features. FAISS's ids are int64: those of the store, or for a store
    with text ids row numbers; ``<output>.ids.parquet`` then has the id of each row.

    Raises:
        ConfigError: the metric is cosine, for which FAISS needs the norms of codes; or FAISS is
            not installed.
        ModelError: several models made the codes, or one that is not linear.
    """
    faiss = require("faiss", extra="faiss")
    version = open_store(job.codes, job.version)
    models = models_for(job.codes, version, job.model)
    if len(models) > 1:
        raise ModelError(job.codes, expected="codes of one model", found=f"{len(models)} models")
    (model,) = models.values()
    metric = metric_of(models, job.metric)
    warn_of_codes_for_classes(job.codes, models)
    if metric == "cosine":
        raise ConfigError("metric: FAISS's IndexPQ has no cosine for codes; name l2 or dot")
    index = inner = _pq_index(faiss, model, metric)
    if chain := _transforms(faiss, model):
        index = faiss.IndexPreTransform(inner)
        for transform in reversed(chain):
            index.prepend_transform(transform)
    named = faiss.IndexIDMap(index)  # before rows are added: it takes empty indexes only
    id_type = id_type_of(job.codes, version)
    block = CodeBlock.join(
        [read_block(shard, models, id_type) for shard in stored_shards(job.codes, version)]
    )
    block = block.take(by_id(block.ids))
    ids_file = None
    numbers = np.arange(len(block.B))
    if pa.types.is_int64(block.ids.type):
        numbers = block.ids.to_numpy()
    else:
        ids_file = f"{job.output}.ids.parquet"
        _write_ids(ids_file, block.ids)
    faiss.copy_array_to_vector(codes.pack(block.B, model.K).reshape(-1), inner.codes)
    faiss.copy_array_to_vector(numbers.astype(np.int64), named.id_map)
    for level in (inner, index, named):
        level.ntotal = len(block.B)
    content = faiss.serialize_index(named).tobytes()
    write_bytes(job.output, content)
    return {
        "index": job.output,
        "ids": ids_file,
        "rows": len(block.B),
        "bytes": len(content),
        "codes_version": version.version,
        "model": model.fingerprint,
        "metric": metric,
    }


def _pq_index(faiss: Any, model: Model, metric: Metric) -> Any:
    """An empty ``IndexPQ`` with the model's codebooks."""
    bits = 4 if model.K <= 16 else 8  # as the codes are stored
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexPQ(model.D, model.M, bits, kind)
    # FAISS needs 2^bits codewords, so the last one is repeated. Stored codes never use the copies;
    # FAISS may for vectors that are added later, with the same meaning.
    words = np.minimum(np.arange(1 << bits), model.K - 1)
    faiss.copy_array_to_vector(model.C[:, words].astype(np.float32).ravel(), index.pq.centroids)
    index.is_trained = True
    return index


def _transforms(faiss: Any, model: Model) -> list[Any]:
    """The transforms of the model as those of FAISS."""
    if not isinstance(model, LinearModel):
        raise ModelError(
            f"{model.method} model",
            expected="a linear one: FAISS has no networks",
            found=model.method,
        )
    chain = []
    normalise, tensors = model.settings.normalise, model.tensors
    if normalise.startswith("zscore"):
        inverse = tensors["inverse_std"].astype(np.float64)
        bias = -tensors["mean"] * inverse
        if not np.abs(bias).max() < np.finfo(np.float32).max:
            raise ModelError(
                f"{model.method} model",
                expected="mean/std within the range of float32, as in FAISS",
                found=f"{np.abs(bias).max():.3g}; scale the features, or train with normalise=unit",
            )
        chain.append(_linear(faiss, np.diag(inverse), bias))
    if normalise.endswith("unit"):
        chain.append(faiss.NormalizationTransform(model.dx, 2.0))
    if "P" in tensors:
        chain.append(_linear(faiss, tensors["P"], None))
    return chain


def _linear(faiss: Any, A: NDArray[np.floating], b: NDArray[np.floating] | None) -> Any:
    """x → A x + b for A [out, in]."""
    transform = faiss.LinearTransform(A.shape[1], A.shape[0], b is not None)
    faiss.copy_array_to_vector(np.ascontiguousarray(A, np.float32).ravel(), transform.A)
    if b is not None:
        faiss.copy_array_to_vector(np.ascontiguousarray(b, np.float32), transform.b)
    transform.is_trained = True
    return transform


def _write_ids(uri: str, ids: pa.Array) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ids}), sink, compression="zstd", write_page_checksum=True)
    write_bytes(uri, sink.getvalue().to_pybytes())


def import_faiss(job: ImportFaissJob) -> dict[str, Any]:
    """Makes a model from a trained FAISS ``IndexPQ``, alone or behind transforms and id maps.

    The vectors in the index are not imported: ``raypq encode`` encodes the features. FAISS reads
    the file and trusts it: import only files that you would load there.

    Raises:
        InputError: not a FAISS index, or one of another kind.
        ModelError: transforms that a linear model cannot have.
    """
    check_vacant(job.output, overwrite=job.overwrite)
    faiss = require("faiss", extra="faiss")
    index = whole = _read(faiss, job.index)  # owns all parts that are reached from it
    transforms: list[Any] = []
    while not isinstance(index, faiss.IndexPQ):
        if isinstance(index, faiss.IndexPreTransform):
            chain = index.chain
            transforms += [faiss.downcast_VectorTransform(chain.at(i)) for i in range(chain.size())]
        elif not isinstance(index, faiss.IndexIDMap):
            raise InputError(
                job.index, expected="an IndexPQ, or transforms before one", found=_kind(index)
            )
        index = faiss.downcast_index(index.index)
    if not index.is_trained:
        raise InputError(job.index, expected="a trained index", found="an untrained one")
    kinds = {faiss.METRIC_L2: "l2", faiss.METRIC_INNER_PRODUCT: "dot"}
    if index.metric_type not in kinds:
        raise InputError(
            job.index,
            expected="the metric L2 or inner product",
            found=f"FAISS's metric {index.metric_type}",
        )
    quantizer = index.pq
    if quantizer.nbits > 8:
        raise InputError(
            job.index, expected="at most 8 bits a sub-codebook", found=str(quantizer.nbits)
        )
    C = faiss.vector_to_array(quantizer.centroids)
    C = C.reshape(quantizer.M, quantizer.ksub, quantizer.dsub)
    model = _model(faiss, job.index, transforms, C, kinds[index.metric_type])
    del whole
    fingerprint = model.save(job.output)
    return {
        "model": job.output,
        "method": model.method,
        "fingerprint": fingerprint,
        **{name: getattr(model, name) for name in ("dx", "D", "M", "K", "metric")},
    }


def _read(faiss: Any, uri: str) -> Any:
    content = read_named(uri, expected="a FAISS index")
    try:
        return faiss.deserialize_index(np.frombuffer(content, np.uint8))
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        raise InputError(uri, expected="a FAISS index", found=last) from None


def _kind(part: Any) -> str:
    return type(part).__name__


def _model(
    faiss: Any, uri: str, transforms: Sequence[Any], C: NDArray[np.float32], metric: str
) -> Model:
    """The linear model with these transforms, in order, and codebooks C [M, K, d]."""
    M, K, d = C.shape
    dx = transforms[0].d_in if transforms else M * d
    tensors: dict[str, Array] = {"C": C}
    unit = False
    A, b = None, np.zeros(dx)
    for transform in transforms:
        if isinstance(transform, faiss.LinearTransform):
            weights = faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in)
            A = weights.astype(np.float64) if A is None else weights @ A
            b = weights @ b
            if transform.have_bias:
                b = b + faiss.vector_to_array(transform.b)
        elif isinstance(transform, faiss.NormalizationTransform) and transform.norm == 2.0:
            if unit or (A is not None and not _diagonal(A)):
                raise _no_model(uri, transforms)
            if A is not None:
                tensors |= _scaling(uri, transforms, A, b)
                A, b = None, np.zeros(dx)
            unit = True
        else:
            raise _no_model(uri, transforms)
    scored = "mean" in tensors
    if A is not None:
        tensors["P"] = A.astype(np.float32)
        if b.any():
            if unit or scored:
                raise _no_model(uri, transforms)
            # P x + b = P (x − mean), if such a mean exists.
            mean, *_ = np.linalg.lstsq(A, -b, rcond=None)
            if np.abs(A @ mean + b).max() > _BIAS_TOLERANCE * np.abs(b).max():
                raise _no_model(uri, transforms)
            tensors |= {"mean": mean.astype(np.float32), "inverse_std": np.ones(dx, np.float32)}
            scored = True
    names: dict[tuple[bool, bool], Normalise] = {
        (False, False): "none",
        (False, True): "unit",
        (True, False): "zscore",
        (True, True): "zscore-unit",
    }
    shared: dict[str, Any] = {"M": M, "K": K, "metric": metric, "normalise": names[scored, unit]}
    record = {"imported": "faiss"}
    if A is None:
        return PQModel(settings=PQSettings(**shared), tensors=tensors, dx=dx, record=record)
    settings = OPQSettings(D=M * d, **shared)
    return OPQModel(settings=settings, tensors=tensors, dx=dx, record=record)


def _diagonal(A: NDArray[np.float64]) -> bool:
    return A.shape[0] == A.shape[1] and not np.any(A - np.diag(np.diagonal(A)))


def _scaling(
    uri: str, transforms: Sequence[Any], A: NDArray[np.float64], b: NDArray[np.float64]
) -> dict[str, Array]:
    """Mean and 1/std of a diagonal transform."""
    inverse = np.diagonal(A)
    if not inverse.all():
        raise _no_model(uri, transforms)
    mean = -b / inverse
    for name, values in (("mean", mean), ("1/std", inverse)):
        if not np.abs(values).max() < np.finfo(np.float32).max:
            raise ModelError(
                uri,
                expected=f"a scaling whose {name} is within the range of float32",
                found=f"{np.abs(values).max():.3g}",
            )
    return {"mean": mean.astype(np.float32), "inverse_std": inverse.astype(np.float32)}


def _no_model(uri: str, transforms: Sequence[Any]) -> ModelError:
    return ModelError(
        uri,
        expected="transforms of a linear model: z-scoring, unit length, then one projection",
        found=" → ".join(map(_kind, transforms)),
    )
