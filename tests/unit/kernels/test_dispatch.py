"""Kernel dispatch: instruction sets, refused inputs, missing native kernels, thread limits."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import pytest
import torch

from raypq import kernels
from raypq.kernels import native

built = pytest.mark.skipif(not native.available(), reason="the native kernels are not built")


def tables(K: int = 16) -> kernels.Tables:
    C = np.zeros((2, K, 3), np.float32)
    return kernels.build_tables(C, np.zeros((4, 6), np.float32), None, "dot")


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
def test_a_compiler_means_native_kernels() -> None:
    assert native.available()


@built
def test_isa_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in native.isas():
        monkeypatch.setenv("RAYPQ_ISA", name)
        assert kernels.runtime_info()["isa"] == name
    monkeypatch.setenv("RAYPQ_ISA", "avx1024")
    with pytest.raises(ValueError, match=r"avx1024.*there are:.*baseline"):
        kernels.encode(np.zeros((1, 6), np.float32), tables().C)


@built
def test_codes_beyond_the_codebook_are_refused() -> None:
    B = np.full((3, 2), 16, np.uint8)
    with pytest.raises(ValueError, match="not below K"):
        kernels.topk_per_code(B, tables(), 1)
    with pytest.raises(ValueError, match="must be"):
        kernels.topk_per_query(np.zeros((3, 5), np.uint8), tables(), 1)


@built
def test_tables_are_made_once() -> None:
    t = tables()
    assert native.prepare(t, across_rows=True) is native.prepare(t, across_rows=True)
    assert native.prepare(t, across_rows=True) is not native.prepare(t, across_rows=False)


def test_values_that_are_not_finite_are_refused() -> None:
    C = np.zeros((2, 4, 3), np.float32)
    V = np.zeros((4, 6), np.float32)
    V[2, 1] = np.inf
    with pytest.raises(ValueError, match="V must be finite"):
        kernels.build_tables(C, V, None, "dot")


def test_without_native_kernels_torch_is_used_with_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    U, C = rng.standard_normal((50, 6)).astype(np.float32), tables().C + 1
    expected = kernels.encode(U, C)
    assert kernels.runtime_info()["native_missing"] == native.missing_reason()
    monkeypatch.setattr(native, "_native", None)
    kernels._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="the torch kernels are used"):
        np.testing.assert_array_equal(kernels.encode(U, C), expected)
    np.testing.assert_array_equal(kernels.encode(U, C), expected)  # without another warning
    info = kernels.runtime_info()
    assert info["kernels"] == "torch"
    assert info["native_missing"] == native.missing_reason()
    kernels._warn_once.cache_clear()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("native.py", r"installed without a C\+\+ compiler"),
        ("cpp/module.cpp", r"source tree .* is not built.*pip install -e"),
        (f"_native{EXTENSION_SUFFIXES[0]}", r"_native\..* cannot be loaded: no symbol.*reinstall"),
    ],
)
def test_why_native_kernels_are_missing(content: str, reason: str, tmp_path: Path) -> None:
    package = tmp_path / "raypq" / "kernels"
    path = package / content
    path.parent.mkdir(parents=True)
    path.touch()
    assert re.search(reason, native.explain_missing(package, [package], "no symbol"))


def test_set_threads() -> None:
    before = kernels.threads()
    kernels.set_threads(1)
    assert kernels.threads() == kernels.runtime_info()["threads"] == 1
    kernels.set_threads(before)


def test_a_new_thread_keeps_to_the_thread_limit() -> None:
    """Measured by processor time: without a limit other threads share the work of a product."""

    X = torch.ones(1536, 1536)

    def own_share_of_a_product() -> float:
        everyone, own = time.process_time(), time.thread_time()
        assert (X @ X)[0, 0] == len(X)
        return (time.thread_time() - own) / (time.process_time() - everyone)

    before = kernels.threads()
    kernels.set_threads(1)
    try:
        with ThreadPoolExecutor(1, "test", kernels.apply_thread_limit) as pool:
            assert pool.submit(own_share_of_a_product).result() > 0.8
    finally:
        kernels.set_threads(before)


def test_native_threads_limits_the_calling_thread_only() -> None:
    before = kernels.threads()
    with kernels.native_threads(before + 3):
        assert kernels.threads() == before + 3
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(kernels.threads).result() == before
        with kernels.native_threads(1):
            assert kernels.threads() == 1
        assert kernels.threads() == before + 3
    assert kernels.threads() == before


def test_threads_that_are_older_than_the_import_of_torch_have_the_limit() -> None:
    """In a fresh process, where torch is imported by the first product."""
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np

from raypq import kernels
from raypq.methods.support.matrix_product import product

meet = Barrier(2)

def multiply(_):
    meet.wait()
    product(np.ones((4, 8), np.float32), np.ones((2, 8), np.float32))
    return sys.modules["torch"].get_num_threads()

kernels.set_threads(1)
with ThreadPoolExecutor(2, "test", kernels.apply_thread_limit) as pool:
    list(pool.map(lambda _: meet.wait(), range(2)))
    assert "torch" not in sys.modules
    assert list(pool.map(multiply, range(2))) == [1, 1]
kernels.apply_thread_limit()
assert sys.modules["torch"].get_num_threads() == 1
kernels.set_threads(2)
assert sys.modules["torch"].get_num_threads() == 2
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_limit_of_another_thread_does_not_change_that_of_this_one() -> None:
    """Torch's first call in a thread takes the limit that was set last, by whatever thread."""
    before = kernels.threads()
    kernels.set_threads(2)
    try:
        with (
            ThreadPoolExecutor(1, "first", kernels.apply_thread_limit) as first,
            ThreadPoolExecutor(1, "second", kernels.apply_thread_limit) as second,
        ):
            first.submit(int).result()  # has started, and has not used torch
            limited = kernels.thread_limit(1)
            second.submit(limited.__enter__).result()
            assert second.submit(torch.get_num_threads).result() == 1
            assert first.submit(torch.get_num_threads).result() == 2
            second.submit(limited.__exit__, None, None, None).result()
            assert second.submit(torch.get_num_threads).result() == 2
    finally:
        kernels.set_threads(before)


def test_limits_within_each_other() -> None:
    before = kernels.threads()
    with kernels.thread_limit(before + 2):
        with kernels.thread_limit(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == before + 2
    assert kernels.threads() == before
