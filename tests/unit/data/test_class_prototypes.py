"""Stored classes: prototypes of embeddings as they always were, and heads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import load_file, save_file

from raypq.data.class_prototypes import ClassLayer
from raypq.errors import ModelError

IDS = ("a", "b", "c")
V = np.arange(12, dtype=np.float32).reshape(3, 4)
BIAS = np.array([0.5, -1.0, 2.0])
E = np.ones((3, 2), np.float32)


def digest_as_before_heads(E: np.ndarray) -> str:
    """The digest of a raypq that knows no heads."""
    content = "\n".join(IDS).encode() + b"".join(part.tobytes() for part in (E, V, BIAS))
    return hashlib.sha256(content).hexdigest()


def test_classes_that_were_written_before_heads_open_as_before(tmp_path: Path) -> None:
    save_file({"E": E, "V": V, "bias": BIAS}, tmp_path / "classes.safetensors")
    written = {"ids": list(IDS), "digest": digest_as_before_heads(E)}
    (tmp_path / "classes.json").write_text(json.dumps(written))
    layer = ClassLayer.load(str(tmp_path))
    assert layer is not None
    assert not layer.head
    assert layer.digest == digest_as_before_heads(E)
    (tmp_path / "again").mkdir()
    layer.save(str(tmp_path / "again"))
    assert json.loads((tmp_path / "again" / "classes.json").read_text()) == written


def test_a_head_is_read_back_and_is_strange_to_an_older_raypq(tmp_path: Path) -> None:
    head = ClassLayer.of_head(IDS, V, BIAS)
    head.save(str(tmp_path))
    found = ClassLayer.load(str(tmp_path))
    assert found is not None
    assert found.head
    assert found.digest == head.digest
    assert_array_equal(found.V, V)
    document = json.loads((tmp_path / "classes.json").read_text())
    assert document["kind"] == "head"
    stored = load_file(tmp_path / "classes.safetensors")["E"]
    assert document["digest"] != digest_as_before_heads(stored), "it would refuse the file"


def test_a_head_knows_its_classes_by_id_alone() -> None:
    head = ClassLayer.of_head(IDS, V, BIAS)
    found = head.find(["c", "a"], np.zeros((2, 7), np.float32))
    assert found is not None
    assert_array_equal(found[0], V[[2, 0]])
    assert_array_equal(found[1], BIAS[[2, 0]])
    assert head.find(["a", "d"], None) is None
    assert head.missing(["a", "d", "e"]) == ["d", "e"]


def test_a_kind_of_a_later_raypq_is_refused(tmp_path: Path) -> None:
    ClassLayer.of_head(IDS, V, BIAS).save(str(tmp_path))
    path = tmp_path / "classes.json"
    path.write_text(path.read_text().replace('"head"', '"tree"'))
    with pytest.raises(ModelError, match=r"key 'kind': expected 'head'.*'tree', .*upgrade raypq"):
        ClassLayer.load(str(tmp_path))


def test_a_head_without_its_kind_is_refused(tmp_path: Path) -> None:
    ClassLayer.of_head(IDS, V, BIAS).save(str(tmp_path))
    path = tmp_path / "classes.json"
    document = json.loads(path.read_text())
    del document["kind"]
    path.write_text(json.dumps(document))
    with pytest.raises(ModelError, match="the files were changed"):
        ClassLayer.load(str(tmp_path))
