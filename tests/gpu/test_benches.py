"""The benches of ``make gpu`` run on the CPU, with small sizes."""

from __future__ import annotations

from raypq.bench import gpu
from raypq.kernels.device import REHEARSAL


def test_every_case_is_measured_beside_its_ceiling() -> None:
    results = list(gpu.run(REHEARSAL, gpu.SMALL))
    assert len(results) == 5
    for result in results:
        (goal,) = result.goals
        assert goal["ratio"] > 0
        assert result.lines[0].ours
