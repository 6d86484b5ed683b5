"""The torch kernels and models give the oracle's answers on the device (``devices.DEVICE``)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from devices import DEVICE

from raypq.errors import InputError, ModelError
from raypq.kernels import build_tables, reference
from raypq.kernels import torch as fast
from raypq.methods.base import Normalise
from raypq.methods.pqzsl import PQZSLModel, PQZSLSettings

rng = np.random.default_rng(0)
C = rng.standard_normal((7, 256, 5), dtype=np.float32)
U = rng.standard_normal((2000, 35), dtype=np.float32)
V = rng.standard_normal((501, 35), dtype=np.float32)


def test_codes() -> None:
    expected = reference.encode(U, C)
    np.testing.assert_array_equal(fast.encode(U, C, device=DEVICE), expected)
    there = torch.from_numpy(U).to(DEVICE)
    np.testing.assert_array_equal(fast.encode(there, C, device=DEVICE), expected)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_classification_and_search(metric: str) -> None:
    B = reference.encode(U, C)
    tables = build_tables(C, V, rng.standard_normal(len(V)), metric)
    for name, given in (("topk_per_code", B), ("topk_per_query", B), ("topk_per_vector", U)):
        expected = getattr(reference, name)(given, tables, 10)
        found = getattr(fast, name)(given, tables, 10, device=DEVICE)
        for ours, oracle in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, oracle)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("normalise", ["none", "unit", "zscore-unit"])
def test_features_to_codes_on_the_device(normalise: Normalise, dtype: str) -> None:
    """A product on another device rounds otherwise; hardly any code may change."""
    X = rng.standard_normal((20_000, 64)).astype(dtype)
    tensors = {
        "C": C / 8 if normalise != "none" else C,
        "P": rng.standard_normal((35, 64), dtype=np.float32),
        "mean": X.astype(np.float32).mean(0),
        "inverse_std": 1 / X.astype(np.float32).std(0),
    }
    settings = PQZSLSettings(M=7, normalise=normalise)
    model = PQZSLModel(settings=settings, tensors=tensors, dx=64, da=None)
    expected = model.encode(X)
    assert (model.encode(X, device=DEVICE) != expected).mean() < 1e-3
    assert model.encode(X[:0], device=DEVICE).shape == (0, 7)
    for part in (X, X[::2], X[1:, :]):
        again = model.encode(part, device=DEVICE)
        np.testing.assert_array_equal(model.encode(part, device=DEVICE), again)


def test_wrong_features_are_refused() -> None:
    settings = PQZSLSettings(M=7, normalise="none")
    model = PQZSLModel(settings=settings, tensors={"C": C}, dx=35, da=None)
    X = U.copy()
    X[7, 3] = np.nan
    with pytest.raises(InputError, match="row 7"):
        model.encode(X, device=DEVICE)
    with pytest.raises(ModelError, match="width 35"):
        model.encode(X[:, :34], device=DEVICE)
    with pytest.raises(InputError):
        model.encode(np.full((3, 35), 3e38, np.float32), device=DEVICE)
