"""Batches that are kept in memory as far as they fit."""

from __future__ import annotations

from raypq.stages.stores.batch_cache import BatchCache


def cache(free: int) -> BatchCache[str]:
    return BatchCache(free, len)


def test_batches_take_the_place_of_others() -> None:
    kept = cache(6)
    kept.add("a", ["123", "45"])
    kept.replace("a", "b", ["1", "2"])
    assert kept.get("a") is None
    assert kept.get("b") == ["1", "2"]
    kept.add("c", ["1234"])
    assert kept.get("c") == ["1234"], "the rest is free again"


def test_batches_that_do_not_fit_leave_those_that_do() -> None:
    kept = cache(6)
    kept.add("a", ["123", "45"])
    kept.replace("a", "b", ["1234567"])
    assert kept.get("a") == ["123", "45"]
    assert kept.get("b") is None
    kept.replace("a", "b", ["123456"])
    assert kept.get("b") == ["123456"]


def test_what_is_not_kept_is_not_replaced() -> None:
    kept = cache(6)
    kept.replace("a", "b", ["1"])
    assert kept.get("b") is None
