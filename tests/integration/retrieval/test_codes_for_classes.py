"""Comparing images by codes that are made for scores of classes is a warning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tinystore

import raypq
from raypq import api
from raypq.config import DuplicatesJob, ExportFaissJob, RetrievalJob, SearchJob
from raypq.methods.opq import OPQModel, OPQSettings

DX, M, K = tinystore.DX, tinystore.M, tinystore.K
WARNING = "made for scores of classes"


def store(root: Path, *, aligned: bool) -> str:
    """A code store of a hand-made model, beside its features with labels."""
    C = np.random.default_rng(0).standard_normal((M, K, DX // M)).astype(np.float32)
    maps = {"P": np.eye(DX, dtype=np.float32)}
    if aligned:
        maps |= {"Q": maps["P"], "image_mean": np.zeros(DX, np.float32)}
    settings = OPQSettings(M=M, K=K, metric="dot")
    OPQModel(settings=settings, tensors={"C": C, **maps}, dx=DX).save(str(root / "model"))
    labels = pa.array(["x", "y"] * 10)
    features = tinystore.shard(
        root / "f" / "a.parquet", tinystore.vectors(20), pa.array(range(20)), labels
    )
    tinystore.encode(root, features)
    return str(root / "codes")


def search(root: Path) -> None:
    tinystore.search(root / "codes", root / "found", queries=[str(root / "f")], top_k=2)


def duplicates(root: Path) -> None:
    api.duplicates(
        DuplicatesJob(
            codes=str(root / "codes"),
            threshold=1e6,
            output=str(root / "pairs"),
            where=tinystore.ALONE,
        )
    )


def evaluate(root: Path) -> None:
    api.evaluate_retrieval(
        RetrievalJob(
            codes=str(root / "codes"), queries=[str(root / "f")], at=(1,), where=tinystore.ALONE
        )
    )


def open_index(root: Path) -> None:
    raypq.open(str(root / "codes"))


def export_faiss(root: Path) -> None:
    pytest.importorskip("faiss")
    api.export_faiss(ExportFaissJob(codes=str(root / "codes"), output=str(root / "x.faiss")))


@pytest.mark.parametrize("use", [search, duplicates, evaluate, open_index, export_faiss])
def test_every_use_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, use: Callable[[Path], None]
) -> None:
    store(tmp_path, aligned=True)
    use(tmp_path)
    assert caplog.text.count(WARNING) == 1
    assert "--rerank" in caplog.text
    assert "trained without --classes" in caplog.text


def test_a_model_without_classes_and_a_search_that_re_ranks_do_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store(tmp_path / "plain", aligned=False)
    search(tmp_path / "plain")
    codes = store(tmp_path / "aligned", aligned=True)
    features = [str(tmp_path / "aligned" / "f")]
    job = SearchJob(
        codes=codes, queries=features, top_k=2, rerank=5, features=features,
        output=str(tmp_path / "found"), where=tinystore.ALONE,
    )  # fmt: skip
    api.search(job)
    assert WARNING not in caplog.text
