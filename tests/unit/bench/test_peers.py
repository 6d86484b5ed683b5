"""Peers run in processes of their own, and what is not there is listed with the reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raypq.bench import faiss_peer, peer_process, peers
from raypq.bench.worlds import unit

N, QUERIES, SIZE = 3000, 24, 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    X = unit(np.random.default_rng(0).standard_normal((N, peers.D), dtype=np.float32))
    np.save(tmp_path / "U.npy", X)
    np.save(tmp_path / "Q.npy", X[:QUERIES])
    return tmp_path


def test_a_peer_answers_from_its_own_process(folder: Path) -> None:
    pytest.importorskip("faiss")
    with peers.started("faiss", folder, 1, SIZE, sys.executable) as peer:
        assert isinstance(peer, peers.Peer)
        assert peer.rows.shape == (QUERIES, peers.TOP)
        assert (peer.rows[:, 0] == np.arange(QUERIES)).mean() > 0.9
        assert peer.about["bytes"] == SIZE
        for _ in range(2):
            peer.search()
    assert peer.process.poll() is not None


def test_the_script_needs_nothing_of_raypq() -> None:
    code = (
        "import runpy, sys\n"
        f"runpy.run_path({peer_process.__file__!r}, run_name='peer')\n"
        "assert not any(name.partition('.')[0] == 'raypq' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_peer_that_is_not_installed_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    (folder / "empty").mkdir()
    with peers.started("scann", folder, 1, SIZE, sys.executable) as peer:
        if not isinstance(peer, str):
            pytest.skip("ScaNN is installed")
        assert peer == "ModuleNotFoundError: No module named 'scann'"


def test_bytes_that_a_peer_cannot_have_are_a_reason() -> None:
    U = np.zeros((4, 128), np.float32)
    task = peer_process.Task(U=U, Q=U, threads=1, size=16, folder=Path())
    assert task.bits(1, 9) == 1
    with pytest.raises(ValueError, match="16 bytes of 128 dimensions are not 2 to 4 bits"):
        task.bits(2, 4)


def test_a_process_that_ends_leaves_its_last_line(folder: Path) -> None:
    (folder / "U.npy").write_bytes(b"no array")
    with peers.started("faiss", folder, 1, SIZE, sys.executable) as peer:
        assert isinstance(peer, str)
        assert "Error" in peer


def test_the_table_names_every_peer_or_its_absence() -> None:
    (result,) = peers.cases(1, None, N=2000, queries=16, sizes=(32,), repeats=1)
    missing = [text.partition(" (")[0] for text in result.absent]
    lines = [line.name for line in result.lines]
    assert lines[0] == "raypq codes"
    assert len(lines) + len(missing) == 1 + len(peer_process.PEERS)
    for line in result.lines[1:]:
        assert 0 < result.checks[f"recall@10 of {line.name}"] <= 1
    assert 0.2 < result.checks["recall@10 of raypq"] < 1


def test_faiss_runs_at_one_of_its_levels() -> None:
    faiss = pytest.importorskip("faiss")
    info = faiss_peer.runtime_info()
    assert info is not None
    assert info["compiled"]
    turns: list[str] = []
    checks: dict[str, object] = {}

    def work() -> None:
        turns.append(info["simd"])

    made = faiss_peer.contender(faiss, name="FAISS", run=work, work=1.0, checks=checks)
    made.run()
    assert turns
    assert checks["SIMD level of FAISS"] in [*info["levels"], info["simd"]]


class Switching:
    """A FAISS whose levels are as slow as their names say."""

    SIMDLevel_NONE, SIMDLevel_FAST, SIMDLevel_SLOW, SIMDLevel_COUNT = range(4)

    class SIMDConfig:
        level = 2

        @staticmethod
        def has_dynamic_dispatch() -> bool:
            return True

        @staticmethod
        def is_simd_level_available(level: int) -> bool:
            return level < 3

        @classmethod
        def set_level(cls, level: int) -> None:
            cls.level = level

        @classmethod
        def get_level_name(cls) -> str:
            return ("NONE", "FAST", "SLOW")[cls.level]


def test_the_fastest_level_is_used_though_another_is_the_default() -> None:
    import time

    def work() -> None:
        time.sleep(0.02 if Switching.SIMDConfig.level == Switching.SIMDLevel_SLOW else 0.0)

    run, level = faiss_peer.fastest(Switching, work)
    assert level == "FAST"
    Switching.SIMDConfig.set_level(Switching.SIMDLevel_SLOW)
    run()
    assert Switching.SIMDConfig.get_level_name() == "FAST"
