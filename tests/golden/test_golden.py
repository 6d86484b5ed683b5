"""Stored models still give the stored codes, byte for byte, whatever has changed since.

``pytest tests/golden --regenerate-golden`` trains them anew: only when a change of the numbers is
meant, and then with a line in the changelog, because codes on disk depend on it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raypq import kernels
from raypq.errors import ConfigError
from raypq.methods import registry
from raypq.methods.base import Model

FOLDER = Path(__file__).parent
METHODS = sorted(registry.METHODS)
N, DX, L, T, DA = 256, 16, 8, 12, 6


def pattern(n: int, width: int, a: int, b: int) -> np.ndarray:
    """Numbers without pattern to the eye, multiples of 1/8 within ±2: no generator to depend on."""
    i, j = np.arange(n)[:, None], np.arange(width)[None, :]
    return (((a * i + b * j + i * i * (j + 3) + (i * j) % 11) % 33 - 16) / 8).astype(np.float32)


E = pattern(T, DA, 5, 7)
Y = np.arange(N) % L
X = (pattern(N, DX, 7, 13) / 4 + pattern(L, DX, 11, 3)[Y]).astype(np.float32)


def train(fit: Any, name: str) -> Model:
    """A tiny model, its tensors rounded so that few products are inexact."""
    cls = registry.find(name)
    sizes = {"iterations": 5, "epochs": 30, "batch": 32, "hidden": 16, "width": 16}
    least = {key: value for key, value in sizes.items() if key in cls.settings_class.model_fields}
    settings = {"M": 4, "K": 16, "seed": 3, **least}
    try:
        method = registry.create(name, settings)
    except ConfigError:  # a method whose M is fixed
        del settings["M"]
        method = registry.create(name, settings)
    model = fit(method, X, y=Y, A=E[:L])
    rounded = {
        key: (np.round(tensor * 64) / 64).astype(np.float32)
        for key, tensor in model.tensors.items()
    }
    return replace(model, tensors=rounded, record={})


def answers(model: Model) -> dict[str, Any]:
    """What must stay: codes, and the best classes of each metric with their scores."""
    B = model.encode(X)
    V, bias = model.prototypes(X[:T] if model.da is None else E)
    found: dict[str, Any] = {
        "fingerprint": model.fingerprint,
        "codes": [row.tobytes().hex() for row in B],
        "prototypes": V.tolist(),
    }
    for metric in ("l2", "cosine", "dot"):
        score, index = kernels.topk_per_code(B[:32], model.tables(V, bias, metric), 3)
        found[metric] = {"classes": index.tolist(), "scores": score.tolist()}
    return found


@pytest.fixture
def stored(request: pytest.FixtureRequest, fit: Any, name: str) -> tuple[Model, dict[str, Any]]:
    folder = FOLDER / name
    if request.config.getoption("--regenerate-golden"):
        model = train(fit, name)
        model.save(str(folder))
        text = json.dumps(answers(model), indent=1)
        (folder / "answers.json").write_text(text + "\n", encoding="utf-8")
    assert folder.is_dir(), f"no golden files of {name}: run pytest with --regenerate-golden"
    wanted = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    return registry.load(str(folder)), wanted


@pytest.mark.parametrize("name", METHODS)
def test_codes_are_as_stored(stored):
    model, wanted = stored
    assert [row.tobytes().hex() for row in model.encode(X)] == wanted["codes"]
    assert len(set(wanted["codes"])) > 12, "an answer worth keeping"


@pytest.mark.parametrize("name", METHODS)
def test_the_fingerprint_is_as_stored(stored):
    """Codes on disk name it, so a loaded model must never get another one."""
    model, wanted = stored
    assert model.fingerprint == wanted["fingerprint"]


# What training magnifies of a last bit, where prototypes are trained anew each time and so may
# differ between machines: in parts of the largest value.
MAGNIFIED = 0.01


@pytest.mark.parametrize("name", METHODS)
def test_prototypes_and_predictions_are_as_stored(stored):
    model, wanted = stored
    found = answers(model)

    def close(one: Any, other: Any) -> None:
        atol = MAGNIFIED * np.abs(other).max() if model.joint_classes else 1e-6
        np.testing.assert_allclose(one, other, rtol=0 if model.joint_classes else 1e-5, atol=atol)

    close(found["prototypes"], wanted["prototypes"])
    compared = []
    for metric in ("l2", "cosine", "dot"):
        score = np.array(wanted[metric]["scores"])
        close(found[metric]["scores"], score)
        same = np.array(found[metric]["classes"]) == np.array(wanted[metric]["classes"])
        sure = np.ones_like(same)
        if model.joint_classes:  # those that no such difference can move to another place
            sure[:, :-1] = score[:, :-1] - score[:, 1:] > 2 * MAGNIFIED * np.abs(score).max()
            sure[:, 1:] &= sure[:, :-1]
            sure[:, -1] = False  # what would come next is not stored
        assert same[sure].all(), metric
        compared.append(sure[:, 0].mean())
    assert max(compared) > 0.5, "few answers are told apart by more than their tolerance"


def test_every_stored_model_is_of_a_method():
    assert sorted(path.name for path in FOLDER.iterdir() if (path / "model.json").exists()) == (
        METHODS
    )


def test_a_gpq_model_without_the_later_settings_asks_as_it_was_taught():
    written = json.loads((FOLDER / "gpq" / "model.json").read_text(encoding="utf-8"))
    assert "query" not in written["model"]["settings"], "trained by the published losses alone"
    model = registry.load(str(FOLDER / "gpq"))
    np.testing.assert_array_equal(model.queries(X), model.embed(X))


@pytest.mark.parametrize("name", ["dpq", "gpq"])
def test_codes_of_classes_from_before_the_temperature_was_a_tensor(name):
    """Unscaled features, codewords one after another; never trained anew."""
    folder = FOLDER / "early" / name
    model = registry.load(str(folder))
    wanted = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    assert model.stores_classes
    assert model.fingerprint == wanted["fingerprint"]
    B = model.encode(X)
    assert [row.tobytes().hex() for row in B] == wanted["codes"]
    V, bias = model.class_prototypes(list(model.classes or ()))
    np.testing.assert_allclose(model.decode(B[:16]) @ V.T + bias, wanted["scores"], atol=1e-5)
    np.testing.assert_allclose(model.queries(X[:4]), wanted["queries"], atol=1e-5)
    np.testing.assert_allclose(model.code_queries(B[:4]), wanted["code_queries"], atol=1e-5)
