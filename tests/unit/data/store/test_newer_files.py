"""Files that a newer raypq wrote are told as such, with what is new in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq.data import arrays, codes, predictions
from raypq.data.classes import ClassTable
from raypq.data.codes import CodeFile
from raypq.data.model_files import ModelFiles
from raypq.data.store import lease
from raypq.errors import InputError, ModelError
from raypq.methods import registry

NEWER = "written by a newer raypq: upgrade raypq"


def noted(path: Path, table: pa.Table, **metadata: str) -> str:
    held = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    pq.write_table(table.replace_schema_metadata(held | metadata), path)
    return str(path)


def test_code_files(tmp_path: Path) -> None:
    schema = codes.schema(fingerprint="f", M=2, K=16, id_type=pa.string(), label=False)
    table = pa.table({"id": ["a"], "code": arrays.fixed_binary(np.zeros((1, 1), np.uint8))})
    table = table.cast(schema)
    assert CodeFile.open(noted(tmp_path / "a", table)).M == 2
    with pytest.raises(InputError, match=f"a code file of format 1, found 2, {NEWER}"):
        CodeFile.open(noted(tmp_path / "b", table, **{"raypq.format": "2"}))
    with pytest.raises(InputError, match=r"a code file of format 1, found x$"):
        CodeFile.open(noted(tmp_path / "c", table, **{"raypq.format": "x"}))


def test_prediction_files(tmp_path: Path, world: Any) -> None:
    table = ClassTable.open(world.classes)
    schema = predictions.schema(id_type=pa.string(), label=False, groups=False, metadata={})
    rows = pa.table({"id": ["a"], "class_id": [["c00"]], "score": [[1.0]]}).cast(schema)
    assert len(list(predictions.read(noted(tmp_path / "a", rows), table))) == 1
    with pytest.raises(InputError, match=f"a prediction file of format 1, found 2, {NEWER}"):
        next(predictions.read(noted(tmp_path / "b", rows, **{"raypq.format": "2"}), table))


@pytest.fixture
def model(tmp_path: Path) -> str:
    method = registry.find("pq")
    made = method.model_class(
        settings=method.settings_class(M=2, K=4), tensors={"C": np.ones((2, 4, 3), np.float32)},
        dx=6,
    )  # fmt: skip
    made.save(str(tmp_path / "model"))
    return str(tmp_path / "model")


@pytest.mark.parametrize(
    ("place", "key", "says"),
    [
        ((), "format", "expected format 1, found 2"),
        ((), "codec", "key 'codec'"),
        (("model",), "axes", "key 'model.axes'"),
        (("model", "settings"), "rotation", "key 'rotation'"),
    ],
)
def test_models(model: str, place: tuple[str, ...], key: str, says: str) -> None:
    path = Path(model, "model.json")
    document = json.loads(path.read_text())
    inner = document
    for part in place:
        inner = inner[part]
    inner[key] = 2
    files = ModelFiles(content=document["model"], tensors=ModelFiles.load(model).tensors, record={})
    path.write_text(json.dumps(document | {"fingerprint": files.fingerprint}))
    with pytest.raises(ModelError, match=says) as caught:
        registry.load(model)
    assert NEWER in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"model": []}, {"record": 3}, {"model": {"method": "pq"}}, {"format": None},
        {"model": {"method": "pq", "settings": []}},
        {"model": {"method": "pq", "settings": {"M": "many"}}},
    ],
)  # fmt: skip
def test_a_model_that_makes_no_sense(model: str, change: dict[str, Any]) -> None:
    path = Path(model, "model.json")
    document = json.loads(path.read_text()) | change
    if isinstance(document["model"], dict):
        tensors = ModelFiles.load(model).tensors
        files = ModelFiles(content=document["model"], tensors=tensors, record={})
        document["fingerprint"] = files.fingerprint
    path.write_text(json.dumps(document))
    with pytest.raises(ModelError):
        registry.load(model)


def test_a_lease_keeps_what_is_known_of_it(tmp_path: Path) -> None:
    """A newer raypq at work is waited for as long as it asks."""
    held = lease.Lease(store=str(tmp_path), seconds=0.3)
    held.take()
    (name,) = (tmp_path / "lease").iterdir()
    name.write_text(json.dumps(json.loads(name.read_text()) | {"gpu": 1}))
    other = lease.Lease(store=str(tmp_path), seconds=60)
    other.take()  # after 0.3 s, not after 60
    assert other.term == 2
