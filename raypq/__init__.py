"""raypq: compress image features into product-quantization codes and classify straight from them.

    import raypq

    raypq.train(raypq.TrainJob(method="pqzsl", features=[…], classes=…, output=…))
    scores, ids = raypq.open("codes").search(X, 10)

Everything is imported on first use, so that ``import raypq`` and ``raypq --help`` are fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raypq._version import __version__ as __version__

if TYPE_CHECKING:
    from raypq.api import (
        classify,
        cluster,
        deduplicate,
        duplicates,
        encode,
        evaluate,
        evaluate_retrieval,
        extract,
        neighbors,
        reindex,
        report,
        search,
        train,
    )
    from raypq.config import (
        ClassifyJob,
        ClusterJob,
        ClusterSettings,
        Columns,
        DeduplicateJob,
        DuplicatesJob,
        EncodeJob,
        EvaluateJob,
        ExtractJob,
        NeighborsJob,
        NetworkSettings,
        ReindexJob,
        RetrievalJob,
        SearchJob,
        TrainJob,
    )
    from raypq.methods.registry import load as load_model
    from raypq.stages.retrieval.index import Index
    from raypq.stages.retrieval.index import open_index as open  # noqa: A004 - raypq.open, as gzip.open

_MODULES = {
    **dict.fromkeys(
        (
            "train",
            "encode",
            "classify",
            "search",
            "duplicates",
            "deduplicate",
            "neighbors",
            "cluster",
            "evaluate",
            "evaluate_retrieval",
            "extract",
            "reindex",
            "report",
        ),
        "raypq.api",
    ),
    **dict.fromkeys(
        (
            "TrainJob",
            "DuplicatesJob",
            "DeduplicateJob",
            "NeighborsJob",
            "ClusterJob",
            "EncodeJob",
            "ClassifyJob",
            "EvaluateJob",
            "ExtractJob",
            "NetworkSettings",
            "ReindexJob",
            "RetrievalJob",
            "SearchJob",
            "ClusterSettings",
            "Columns",
        ),
        "raypq.config",
    ),
    "Index": "raypq.stages.retrieval.index",
    "load_model": "raypq.methods.registry",
    "open": "raypq.stages.retrieval.index",
}
_ATTRIBUTES = {"load_model": "load", "open": "open_index"}  # names in their modules

__all__ = [
    "ClassifyJob",
    "ClusterJob",
    "ClusterSettings",
    "Columns",
    "DeduplicateJob",
    "DuplicatesJob",
    "EncodeJob",
    "EvaluateJob",
    "ExtractJob",
    "Index",
    "NeighborsJob",
    "NetworkSettings",
    "ReindexJob",
    "RetrievalJob",
    "SearchJob",
    "TrainJob",
    "classify",
    "cluster",
    "deduplicate",
    "duplicates",
    "encode",
    "evaluate",
    "evaluate_retrieval",
    "extract",
    "load_model",
    "neighbors",
    "open",
    "reindex",
    "report",
    "search",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'raypq' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), _ATTRIBUTES.get(name, name))
