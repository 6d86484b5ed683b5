"""The torch path on a CUDA device gives the oracle's answers; skipped where there is none.

The same code runs on the CPU here, so that what is particular to CUDA is only the device.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raypq.kernels import build_tables, reference
from raypq.kernels import torch as fast
from raypq.methods.pqzsl import PQZSLModel, PQZSLSettings
from raypq.methods.support.linear_model import encode_on

cuda = pytest.param(
    "cuda",
    marks=[
        pytest.mark.cuda,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ],
)
DEVICES = ["cpu", cuda]
rng = np.random.default_rng(0)
C = rng.standard_normal((7, 256, 5), dtype=np.float32)
U = rng.standard_normal((2000, 35), dtype=np.float32)
V = rng.standard_normal((501, 35), dtype=np.float32)


@pytest.mark.parametrize("device", DEVICES)
def test_codes(device: str) -> None:
    expected = reference.encode(U, C)
    np.testing.assert_array_equal(fast.encode(U, C, device=device), expected)
    there = torch.from_numpy(U).to(device)
    np.testing.assert_array_equal(fast.encode(there, C, device=device), expected)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("device", DEVICES)
def test_classification_and_search(device: str, metric: str) -> None:
    B = reference.encode(U, C)
    tables = build_tables(C, V, rng.standard_normal(len(V)), metric)
    for name, given in (("topk_per_code", B), ("topk_per_query", B), ("topk_per_vector", U)):
        expected = getattr(reference, name)(given, tables, 10)
        found = getattr(fast, name)(given, tables, 10, device=device)
        for ours, oracle in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, oracle)


@pytest.mark.parametrize("device", DEVICES)
def test_features_to_codes_on_the_device(device: str) -> None:
    """A product on another device rounds otherwise; hardly any code may change."""
    P = rng.standard_normal((35, 64), dtype=np.float32)
    X = rng.standard_normal((2000, 64), dtype=np.float32)
    settings = PQZSLSettings(M=7, normalise="unit")
    model = PQZSLModel(settings=settings, tensors={"C": C, "P": P}, dx=64, da=None)
    expected = model.encode(X)
    there = torch.from_numpy(P).to(device)
    found = encode_on(device, model._normalised(X), there, C, "fp32")
    assert (found != expected).mean() < 1e-3
    assert encode_on(device, X[:0], there, C, "fp32").shape == (0, 7)
    if device == "cuda":
        assert (model.encode(X, device=device) != expected).mean() < 1e-3
