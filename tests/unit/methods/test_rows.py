"""Rows on a device: the sums of rows on the CPU, up to the rounding of float32 products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from devices import DEVICE
from numpy.typing import NDArray

from raypq.errors import InputError
from raypq.methods.base import Array, Normalise, Rows, Sums
from raypq.methods.support.device_rows import DeviceRows, Parameters
from raypq.methods.support.rows import HostRows

N, DX, L, M, K = 5000, 24, 7, 4, 16
SCHEMES: list[Normalise] = ["none", "unit", "zscore", "zscore-unit"]


def _features(dtype: str = "float32", seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, DX)).astype(np.float32)
    X[17] = 0.0
    return X.astype(dtype)


def _device(X: NDArray[np.float32], device: str = DEVICE) -> DeviceRows:
    return DeviceRows.of(X, Parameters(device))


def _array(value: Sums) -> Array:
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else value


def _sums(rows: Rows) -> dict[str, Array]:
    rng = np.random.default_rng(5)
    y = rng.integers(0, L - 1, len(rows)).astype(np.int32)  # the last class has no rows
    C = rng.standard_normal((M, K, DX // M)).astype(np.float32)
    C[:, -1] = 100.0  # a codeword without rows
    B = rows.codes(C)
    count, total, error = rows.codeword_sums(B, C)
    return {
        name: _array(value)
        for name, value in {
            "total": rows.total(),
            "squares": rows.squares(),
            "gram": rows.gram(),
            "class sums": rows.class_sums(y, L),
            "codes": B,
            "count": count,
            "codeword totals": total,
            "error": error,
            "product": rows.reconstruction_product(B, C),
        }.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_sums_of_a_device_are_those_of_the_cpu(scheme: Normalise, dtype: str) -> None:
    X = _features(dtype)
    mean, inverse = X.mean(0, dtype=np.float32), 1 / X.astype(np.float32).std(0)
    wide = HostRows(X.astype(np.float32)).normalised(scheme, mean, inverse)
    device = _device(X).normalised(scheme, mean, inverse)
    everything = np.arange(N)
    np.testing.assert_allclose(device.chosen(everything), wide.chosen(everything), atol=2e-6)
    ours, theirs = _sums(device), _sums(wide)
    assert (ours.pop("codes") != theirs.pop("codes")).mean() < 1e-3
    for name, value in theirs.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(ours[name] / scale, value / scale, atol=2e-4, err_msg=name)
    assert not ours["count"][:, -1].any()
    assert not ours["class sums"][:, -1].any()


def test_projection_and_repeated_sums() -> None:
    """The second time gives the same bits."""
    X, P = _features(), np.random.default_rng(1).standard_normal((DX, DX)).astype(np.float32)
    np.testing.assert_allclose(
        _device(X).projected(P).chosen(np.arange(N)), X @ P.T, rtol=1e-5, atol=1e-5
    )
    for name, value in _sums(_device(X).projected(P)).items():
        np.testing.assert_array_equal(value, _sums(_device(X).projected(P))[name], err_msg=name)


@pytest.mark.parametrize("size", [1e-35, 1e-22, 1e17])
@pytest.mark.parametrize("scheme", ["unit", "zscore-unit"])
def test_rows_of_extreme_length_become_unit_vectors(scheme: Normalise, size: float) -> None:
    X = (_features()[:40] * size).astype(np.float32)
    zero, one = np.zeros(DX, np.float32), np.ones(DX, np.float32)
    ours = _device(X).normalised(scheme, zero, one).chosen(np.arange(40))
    theirs = HostRows(X).normalised(scheme, zero, one).chosen(np.arange(40))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_values_that_float32_cannot_square_are_refused(value: float) -> None:
    X = _features()
    X[3, 2] = value
    with pytest.raises(InputError) as host:
        HostRows(X).normalised("none", None, None)
    with pytest.raises(InputError) as device:
        _device(X).normalised("none", None, None)
    assert device.value.expected == host.value.expected


def test_no_rows() -> None:
    for name, value in _sums(_device(_features()[:0])).items():
        assert name == "codes" or not value.any()


def test_sums_beyond_float32() -> None:
    """A product of float32 that overflows is computed again in float64."""
    X = (_features()[:2000] * 1e18).astype(np.float32)
    np.testing.assert_allclose(_array(_device(X).gram()), HostRows(X).gram(), rtol=1e-5, atol=1e33)
