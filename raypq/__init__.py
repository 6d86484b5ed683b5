"""raypq: compress image features into product-quantization codes and classify straight from them.

    import raypq

    raypq.train(raypq.TrainJob(method="pqzsl", features=[…], classes=…, output=…))

Everything is imported on first use, so that ``import raypq`` and ``raypq --help`` cost nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raypq.api import classify, encode, evaluate, reindex, train
    from raypq.config import (
        ClassifyJob,
        ClusterSettings,
        Columns,
        EncodeJob,
        EvaluateJob,
        ReindexJob,
        TrainJob,
    )
    from raypq.methods.registry import load as load_model

__version__ = "0.1.0"

_PLACES = {
    **dict.fromkeys(("train", "encode", "classify", "evaluate", "reindex"), "raypq.api"),
    **dict.fromkeys(
        (
            "TrainJob",
            "EncodeJob",
            "ClassifyJob",
            "EvaluateJob",
            "ReindexJob",
            "ClusterSettings",
            "Columns",
        ),
        "raypq.config",
    ),
    "load_model": "raypq.methods.registry",
}

__all__ = [
    "ClassifyJob",
    "ClusterSettings",
    "Columns",
    "EncodeJob",
    "EvaluateJob",
    "ReindexJob",
    "TrainJob",
    "classify",
    "encode",
    "evaluate",
    "load_model",
    "reindex",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'raypq' has no attribute {name!r}")
    module = importlib.import_module(_PLACES[name])
    return getattr(module, "load" if name == "load_model" else name)
