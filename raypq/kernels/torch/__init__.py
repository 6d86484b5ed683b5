"""The kernels on any torch device: products of low precision filter, what is left gets exact
scores."""

from __future__ import annotations

from raypq.kernels.torch.best import topk_per_code, topk_per_query, topk_per_vector
from raypq.kernels.torch.classes import topk_of_classes
from raypq.kernels.torch.codebooks import Codebooks, encode
from raypq.kernels.torch.ranges import range_search, scores

__all__ = [
    "Codebooks",
    "encode",
    "range_search",
    "scores",
    "topk_of_classes",
    "topk_per_code",
    "topk_per_query",
    "topk_per_vector",
]
