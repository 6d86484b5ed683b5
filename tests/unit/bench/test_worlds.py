"""The worlds of the classification bench have the cosines that they state; the slowest counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raypq.bench import classify, runner, worlds
from raypq.bench.clustered_data import Embedded
from raypq.bench.harness import Result
from raypq.data import synthetic
from raypq.data.classes import ClassTable
from raypq.errors import InputError
from raypq.kernels import native

T, D, N = 800, 96, 600


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> ClassTable:
    path = tmp_path_factory.mktemp("names") / "classes.parquet"
    rng = np.random.default_rng(5)
    synthetic.write_classes(
        path, synthetic.SyntheticClasses.create(classes=T, dx=8, da=64, rng=rng)
    )
    return ClassTable.open(str(path))


def cosines(data: Embedded) -> np.ndarray:
    return worlds.unit(data.U) @ worlds.unit(data.V).T


def test_every_world_has_its_shape_and_can_be_made_again(names: ClassTable) -> None:
    once, again = (dict(worlds.generate(T, D, N, names)) for _ in range(2))
    assert tuple(once) == worlds.NAMES
    for name, data in once.items():
        repeated = again[name]
        assert isinstance(data, Embedded)
        assert isinstance(repeated, Embedded)
        assert (data.U.shape, data.V.shape) == ((N, D), (T, D))
        assert data.U.dtype == data.V.dtype == np.float32
        assert (data.U == repeated.U).all()
        assert (data.V == repeated.V).all()


def test_a_rotation_keeps_the_cosines_of_real_names(names: ClassTable) -> None:
    assert names.E is not None
    data = worlds.of_classes(names.E, D, N)
    E = worlds.unit(names.E)
    np.testing.assert_allclose(data.V @ data.V.T, E @ E.T, atol=1e-5)
    best = cosines(data).max(axis=1)
    assert best.mean() == pytest.approx(0.74, abs=0.03)


def test_the_cone_has_the_cosines_of_clip() -> None:
    data = worlds.cone(4000, 384, 200)
    found = cosines(data)
    assert found.mean() == pytest.approx(0.16, abs=0.01)
    assert found.max(axis=1).mean() == pytest.approx(0.31, abs=0.02)
    assert (data.V @ data.V.T).mean() == pytest.approx(0.64, abs=0.02)
    assert (data.U @ data.U.T).mean() == pytest.approx(0.46, abs=0.02)


def test_synonyms_fill_a_top_10() -> None:
    data = worlds.synonyms(4096, 384, 200)
    group = data.V[:16] @ data.V[:16].T
    assert group[np.triu_indices(16, 1)].mean() == pytest.approx(0.98, abs=0.003)
    top = np.argsort(-cosines(data), axis=1)[:, :10] // 16
    assert (top == top[:, :1]).mean() > 0.99


@pytest.mark.parametrize("wanted", [(T + 1, D), (T, 32)])
def test_names_that_do_not_fit_are_left_out_with_the_reason(
    wanted: tuple[int, int], names: ClassTable
) -> None:
    reason = dict(worlds.generate(*wanted, N, names))["names"]
    assert isinstance(reason, str)
    assert reason.endswith("found (800, 64)")
    assert dict(worlds.generate(T, D, N, None))["names"] == "no class table is named: --classes"


def result_of(names: ClassTable | None) -> Result:
    (result,) = classify.cases(
        1, names, T=T, images=N, goals={D: {12: (1e-6, 1e9)}}, repeats=1
    )  # fmt: skip
    return result


def test_the_slowest_world_comes_first_and_goals_are_of_it(names: ClassTable) -> None:
    result = result_of(names)
    ours = [line for line in result.lines if line.ours]
    assert {line.name.partition(", ")[2] for line in ours} == set(worlds.NAMES)
    assert ours == result.lines[:4]
    assert [line.rate for line in ours] == sorted(line.rate for line in ours)
    assert result.checks["equals float ADC"] is True
    assert {goal["ours"] for goal in result.goals} == {ours[0].name}
    assert {goal["at_least"]: goal["reached"] for goal in result.goals} in (
        {1e-6: True, 1e9: False},
        {1e-6: True},  # torch fp32 is the fastest peer here
    )
    if native.available():
        left = result.checks["pairs that the filter leaves, cone"]
        assert 10 / T <= float(left.rstrip("%")) / 100 < 1
    assert "raypq codes, cone" in runner._table(result)


def test_without_a_class_table_the_other_worlds_run() -> None:
    result = result_of(None)
    assert sum(line.ours for line in result.lines) == 3
    assert "world of names (no class table is named: --classes)" in result.absent


def test_the_class_table_is_read_by_the_bench(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no such file"):
        next(classify.run(1, str(tmp_path / "none.parquet")))
