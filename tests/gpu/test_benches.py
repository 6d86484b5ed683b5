"""The benches of ``make gpu`` run on the CPU, with small sizes."""

from __future__ import annotations

import pytest

from raypq.bench import gpu
from raypq.bench.harness import Result
from raypq.kernels.device import REHEARSAL


def check(result: Result) -> None:
    (goal,) = result.goals
    assert goal["ratio"] > 0
    assert result.lines[0].ours


def test_every_case_is_measured_beside_its_ceiling() -> None:
    for case in gpu.CASES[:-1]:
        check(case(REHEARSAL, gpu.SMALL))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_training_steps_are_measured_compiled_and_not() -> None:
    last = gpu.CASES[-1](REHEARSAL, gpu.SMALL)
    assert {line.name for line in last.lines} == {"eager", "compiled"}
    check(last)
