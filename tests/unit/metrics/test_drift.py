"""Shards like the training data raise no alarm; shifted ones do, and say by what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from raypq import kernels
from raypq.config import DriftLimits
from raypq.data.store.shard_stats import Baseline, ShardStats
from raypq.methods import registry
from raypq.methods.base import Model
from raypq.methods.pq import PQModel
from raypq.metrics.drift import (
    Drifted,
    Gauge,
    baseline_of,
    detect_drift,
    known_baseline,
    reason_not_judged,
)

DX, M, K = 24, 6, 16
MIX = np.random.default_rng(1).standard_normal((DX, DX))


def rows(n: int, seed: int) -> np.ndarray:
    """A mixture of normals with unequal axes: nothing a codebook was made for."""
    rng = np.random.default_rng([5, seed])
    centres = np.random.default_rng(6).standard_normal((9, DX)) * 1.5
    return (centres[rng.integers(9, size=n)] + rng.standard_normal((n, DX)) @ MIX / 4).astype(
        np.float32
    )


def measure(model: Model, X: np.ndarray, batch: int = 64) -> ShardStats:
    gauge = Gauge(model, len(X))
    for row in range(0, len(X), batch):
        part = X[row : row + batch]
        gauge.add(part, model.encode(part), row)
    found = gauge.read()
    assert found is not None
    return found


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    kernels.set_threads(1)  # tiny products: more threads only wait for each other


@pytest.fixture(scope="module", params=["pq", "opq"])
def model(request: pytest.FixtureRequest, fit: Callable[..., Model]) -> Model:
    return fit(registry.create(request.param, {"M": M, "K": K}), rows(2000, 0))


@pytest.fixture(scope="module")
def baseline(model: Model) -> Baseline:
    training = np.split(rows(2000, 0), 4)
    found = baseline_of([measure(model, part) for part in training], images=2000, K=K)
    assert found is not None
    return found


@pytest.fixture
def alarm(model: Model, baseline: Baseline) -> Callable[..., Drifted | None]:
    def alarm(X: np.ndarray, **limits: float) -> Drifted | None:
        return detect_drift("s", measure(model, X), baseline, DriftLimits(**limits), K=K)

    return alarm


@pytest.mark.parametrize("n", [20, 64, 100, 1000])
def test_equal_shards_raise_no_alarm(alarm: Any, n: int) -> None:
    raised = [alarm(rows(n, seed)) for seed in range(1, 101)]
    assert [str(item) for item in raised if item] == []


@pytest.mark.parametrize("per_codeword", [1, 2, 5, 10, 23, 40])
def test_few_training_rows_raise_no_false_alarm(
    fit: Callable[..., Model], per_codeword: int
) -> None:
    """With as many rows as codewords, the training error is 0, and new rows have more."""
    X = rows(per_codeword * K, 0)
    model = fit(registry.create("pq", {"M": M, "K": K}), X)
    baseline = baseline_of([measure(model, X)], images=len(X), K=K)
    assert baseline is not None
    if per_codeword == 1:
        assert baseline.error.mean < 1e-6
    limits = DriftLimits()
    new = [measure(model, rows(600, seed)) for seed in range(1, 21)]
    assert not any(detect_drift("s", stats, baseline, limits, K=K) for stats in new)
    shifted = detect_drift("s", measure(model, rows(600, 1) * 3), baseline, limits, K=K)
    assert shifted is not None
    assert "feature norm" in str(shifted)
    reason = reason_not_judged(baseline, K=K)
    assert (reason is None) == (per_codeword >= 23)
    given = f"{'at most ' if per_codeword < 6 else ''}{max(per_codeword, 6) * K} rows"
    assert reason is None or (f"{given} for its {K} codewords" in reason)
    assert reason is None or f"it takes {23 * K})" in reason


def test_the_last_row_that_is_missing_is_told(fit: Callable[..., Model]) -> None:
    """Rows in all, and not for each codeword: rounded, those would be as many as it takes."""
    X = rows(23 * K - 1, 0)
    model = fit(registry.create("pq", {"M": M, "K": K}), X)
    baseline = baseline_of([measure(model, X)], images=len(X), K=K)
    assert baseline is not None
    reason = reason_not_judged(baseline, K=K)
    assert reason is not None
    assert f"trained on {23 * K - 1} rows" in reason


@pytest.mark.parametrize(
    ("shift", "says"),
    [
        (lambda X: X * 3, "feature norm"),
        (lambda X: X * 0.5, "feature norm"),
        (lambda X: X + 4, "quantization error|feature norm"),
        (lambda X: X[:, ::-1].copy(), "quantization error"),
        (lambda X: np.random.default_rng(0).standard_normal(X.shape, np.float32) * 3, "error"),
        (lambda X: np.repeat(X[:4], len(X) // 4, axis=0), "entropy"),
        (lambda X: np.zeros_like(X), "feature norm"),
    ],
)
def test_shifted_shards_are_told_apart(alarm: Any, shift: Any, says: str) -> None:
    for seed in range(1, 11):
        raised = alarm(shift(rows(600, seed)))
        assert raised is not None
        assert any(part in str(raised) for part in says.split("|")), raised


def test_the_message_says_how_far_off(alarm: Any) -> None:
    raised = str(alarm(rows(600, 1) * 3))
    assert raised.startswith("s: ")
    assert "200% above" in raised or "199% above" in raised or "above the" in raised
    assert "of training" in raised


def test_limits_are_settings(alarm: Any) -> None:
    X = rows(600, 1) * 1.6
    assert alarm(X)
    assert alarm(X, norm=9.0, error=99.0, entropy=9.0) is None


def test_batches_do_not_change_the_figures(model: Model) -> None:
    X = rows(5000, 2)
    assert measure(model, X, batch=64) == measure(model, X, batch=5000)


def test_the_sample_is_bounded_and_fair(model: Model) -> None:
    X = rows(20_000, 3)
    found = measure(model, X, batch=8192)
    assert (found.rows, found.coded) == (156, 2048)
    # Sorted data is sampled throughout: the mean of the sample is that of the rows.
    X = X[np.argsort(np.linalg.norm(X, axis=1))]
    norms = np.linalg.norm(X, axis=1)
    assert measure(model, X).norm.mean == pytest.approx(norms.mean(), rel=0.06)


def test_encoding_only_the_sample_gives_the_same(model: Model) -> None:
    X = rows(300, 4)
    gauge = Gauge(model, len(X))
    for row in range(0, 300, 100):
        gauge.add_features(X[row : row + 100], row)
    assert gauge.read() == measure(model, X)


def test_figures_are_those_of_the_definition(model: Model) -> None:
    X = rows(60, 5)  # fewer than the least: all rows are measured
    found = measure(model, X)
    U, B = model.embed(X).astype(np.float64), model.encode(X)
    error = ((U - model.decode(B)) ** 2).sum(axis=1) / (U**2).sum(axis=1).mean()
    assert found.rows == 60
    assert found.error.mean == pytest.approx(error.mean(), rel=1e-5)
    assert found.error.q95 == pytest.approx(np.quantile(error, 0.95), rel=1e-5)
    assert found.norm.q50 == pytest.approx(np.median(np.linalg.norm(X, axis=1)), rel=1e-5)
    assert 0 < found.entropy <= np.log2(K)


def test_an_empty_shard_has_no_figures(model: Model) -> None:
    assert Gauge(model, 0).read() is None


def test_few_rows_say_nothing_of_entropy(alarm: Any) -> None:
    assert alarm(np.repeat(rows(4, 1), 15, axis=0)) is None
    assert "entropy" in str(alarm(np.repeat(rows(4, 1), 40, axis=0)))


def test_an_older_model_is_measured_by_its_earlier_shards(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert known_baseline(model, []) is None
    found = known_baseline(model, [measure(model, rows(500, seed)) for seed in range(20, 30)])
    assert found is not None
    assert found.optimism == pytest.approx(1.0)
    assert detect_drift("s", measure(model, rows(500, 31)), found, DriftLimits(), K=K) is None
    assert detect_drift("s", measure(model, rows(500, 31) * 2), found, DriftLimits(), K=K)


def test_codes_of_classes_are_compared_with_earlier_shards(model: Model) -> None:
    """The training rows of a network with labels have a lower error than any new rows."""

    class Probabilities(PQModel):
        stores_classes = True

    training = [measure(model, 0.1 * rows(500, seed)) for seed in range(3)]
    record = {"baseline": baseline_of(training, images=50_000, K=K).model_dump(mode="json")}
    surer = Probabilities(
        settings=model.settings, tensors=model.tensors, dx=model.dx, record=record
    )
    first = known_baseline(surer, [])
    assert first is not None
    assert "class probabilities" in str(reason_not_judged(first, K=K))
    later = known_baseline(surer, [measure(model, rows(500, seed)) for seed in range(20, 30)])
    assert later is not None
    assert later.norm == Baseline(**record["baseline"]).norm
    assert later.optimism == pytest.approx(1.0)
    assert reason_not_judged(later, K=K) is None


def test_a_damaged_baseline_is_told(
    model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(model.record, "baseline", {"shards": "many"})
    with caplog.at_level("WARNING", logger="raypq"):
        assert known_baseline(model, []) is None
    assert "cannot be read" in caplog.text
