"""Arguments of models and of an index in memory: what is refused, and in which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tinystore import DX, K, M, encode, quantizer, shard, vectors

import raypq
from raypq.errors import ConfigError, InputError
from raypq.methods.pq import PQModel, PQSettings


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        ([[K, 0, 0, 0]], r"row 0, sub-codebook 0: expected a code from 0 to 15.* found 16"),
        ([[0, 0, 0, 0], [0, 0, 0, 255]], r"row 1, sub-codebook 3: .* found 255"),
        ([[0, -1, 0, 0]], r"sub-codebook 1: .* found -1"),
        ([[0, 0, 0]], r"expected whole numbers \[n, 4\].*\[1, 3\]"),
        ([0, 0, 0, 0], r"found the shape \[4\]"),
        ([[0.0, 0, 0, 0]], r"found float64"),
        ([[True] * M], r"found bool"),
        ([[0, 0, 0, 0], [0]], "rows of several lengths"),
    ],
)
def test_codes_that_name_no_codeword_are_refused(codes: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        quantizer().decode(codes)


def test_codes_of_every_integer_type_are_decoded() -> None:
    model = quantizer()
    B = model.encode(vectors(5))
    expected = model.decode(B)
    for kind in ("i8", "u2", "i8"):
        np.testing.assert_array_equal(model.decode(B.astype(kind)), expected)
    np.testing.assert_array_equal(model.decode(B.tolist()), expected)
    assert model.decode(B[:0]).shape == (0, DX)
    C = np.zeros((M, 256, 3), np.float32)
    full = PQModel(settings=PQSettings(M=M, K=256), tensors={"C": C}, dx=DX)
    assert full.decode(np.full((1, M), 255, np.uint8)).shape == (1, DX)


@pytest.mark.parametrize("method", ["encode", "embed", "queries", "mapped", "prototypes"])
def test_rows_that_are_none_are_refused(method: str) -> None:
    model = quantizer()
    call = getattr(model, method)
    X = vectors(3)
    for values, says in (
        (X[0], r"found the shape \[12\]"),
        (X[None], r"found the shape \[1, 3, 12\]"),
        ([[1.0], [1.0, 2.0]], "rows of several lengths"),
        ([["a"] * DX], "expected numbers"),
        (X[:, :5], "of width 12"),
    ):
        with pytest.raises(InputError, match=says):
            call(values)
    for bad in (np.nan, np.inf):
        X[1, 3] = bad
        with pytest.raises(InputError, match=r"features, row 1: expected finite values, found NaN"):
            call(X)


def test_lists_and_other_types_are_rows_too() -> None:
    model, X = quantizer(), vectors(3)
    expected = model.encode(X)
    for values in (X.tolist(), X.astype("f8"), np.asfortranarray(X)):
        np.testing.assert_array_equal(model.encode(values), expected)
    assert model.encode(np.ones((2, DX), int)).shape == (2, M)


def test_too_long_rows_are_called_so() -> None:
    with pytest.raises(InputError, match=r"rows no longer than 1\.8e\+19"):
        quantizer().encode(np.full((1, DX), 1e30, np.float32))


@pytest.mark.parametrize("k", [0, -1, 3.0, True, "3", None, 2**40, 10**30])
def test_a_number_of_results_is_checked(tmp_path: Path, k: Any) -> None:
    features = shard(tmp_path / "f" / "a.parquet", vectors(5), pa.array(range(5)))
    encode(tmp_path, features)
    index = raypq.open(str(tmp_path / "codes"))
    with pytest.raises(ConfigError, match=r"^k: "):
        index.search(vectors(2), k)
    assert index.search(vectors(2).tolist(), np.int64(8))[0].shape == (2, 8)


@pytest.mark.parametrize("key", ["calibration", "model_calibration"])
@pytest.mark.parametrize("value", ["x", [1], True, float("inf")])
def test_an_edited_calibration_is_named(tmp_path: Path, key: str, value: Any) -> None:
    from raypq.data.store import snapshot
    from raypq.stages.classification.evaluate import of_models

    features = shard(tmp_path / "f" / "a.parquet", vectors(5), pa.array(range(5)))
    version = encode(tmp_path, features)
    store = str(tmp_path / "codes")
    place = tmp_path / "codes" / "snapshots" / f"{1:020d}.json"
    document = json.loads(place.read_text())
    name = version.shards[0].model
    document["summary"]["models"] = {name: {key: value}}
    place.write_text(json.dumps(document))
    with pytest.raises(InputError, match=rf"'summary\.models\.{name}\.{key}': expected a finite"):
        of_models(store, snapshot.read(store), key)
