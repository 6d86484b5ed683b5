"""Model directories: what is read back is what was written, or an error says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from raypq.data.model_files import ModelFiles
from raypq.errors import ConfigError, ModelError
from raypq.methods import registry

CONTENT = {"method": "pq", "M": 2, "K": 3, "D": 4, "dx": 4, "da": None, "metric": "l2"}


@pytest.fixture
def files() -> ModelFiles:
    C = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    return ModelFiles(content=CONTENT, tensors={"C": C, "P": np.eye(4)}, record={"note": [1.5]})


@pytest.fixture
def saved(files, tmp_path) -> Path:
    files.save(str(tmp_path / "model"))
    return tmp_path / "model"


def test_round_trip(files, saved):
    back = ModelFiles.load(str(saved))
    assert back.content == CONTENT
    assert back.record == {"note": [1.5]}
    assert back.fingerprint == files.fingerprint
    assert {path.name for path in saved.iterdir()} == {"model.json", "model.safetensors"}
    for name, tensor in files.tensors.items():
        assert back.tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(back.tensors[name], tensor)


def test_the_record_is_no_part_of_the_fingerprint(files):
    other = ModelFiles(content=files.content, tensors=files.tensors, record={})
    assert other.fingerprint == files.fingerprint


def test_everything_else_is(files):
    def changed(**changes) -> str:
        fields = {"content": files.content, "tensors": files.tensors, "record": {}}
        return ModelFiles(**(fields | changes)).fingerprint

    C, P = files.tensors["C"], files.tensors["P"]
    found = {
        files.fingerprint,
        changed(content=CONTENT | {"metric": "dot"}),
        changed(tensors={"C": C}),
        changed(tensors={"C": C.reshape(2, 2, 3), "P": P}),
        changed(tensors={"C": C, "Q": P}),
        changed(tensors={"C": np.nextafter(C, np.float32(99)), "P": P}),
        changed(tensors={"C": C.astype(np.float64), "P": P}),
    }
    assert len(found) == 7


def test_memory_order_is_not(files):
    C = np.asfortranarray(files.tensors["C"])
    other = ModelFiles(content=CONTENT, tensors={"P": files.tensors["P"], "C": C}, record={})
    assert other.fingerprint == files.fingerprint


def test_other_storage(files):
    files.save("memory://models/m")
    assert ModelFiles.load("memory://models/m").fingerprint == files.fingerprint
    fsspec.filesystem("memory").rm("/models/m/model.safetensors")
    with pytest.raises(ModelError, match=r"no .*model\.safetensors"):
        ModelFiles.load("memory://models/m")


def test_a_tampered_tensor(saved):
    path = saved / "model.safetensors"
    tensors = dict(load_tensors(path.read_bytes()))
    tensors["C"] = tensors["C"] + 1
    path.write_bytes(save_tensors(tensors))
    written = json.loads((saved / "model.json").read_text())["fingerprint"]
    with pytest.raises(ModelError) as caught:
        ModelFiles.load(str(saved))
    assert str(saved) in str(caught.value)
    assert written[:12] in caught.value.expected
    assert "changed after training" in caught.value.found


def test_edited_settings(saved):
    path = saved / "model.json"
    document = json.loads(path.read_text())
    document["model"]["metric"] = "dot"
    path.write_text(json.dumps(document))
    with pytest.raises(ModelError, match="changed after training"):
        ModelFiles.load(str(saved))


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(ModelError, match=f"found no .*{name}"):
        ModelFiles.load(str(saved))


def test_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"model\.json"):
        ModelFiles.load(str(tmp_path / "none"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="a raypq model"):
        ModelFiles.load(str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.json", b""),
        ("model.json", b"[]"),
        ("model.json", b"\xff\xfe\x00"),
        ("model.json", b'{"format": 1}'),
        ("model.json", b"{}"),
        ("model.safetensors", b""),
        ("model.safetensors", b"\x80\x04\x95 no pickle is ever read"),
    ],
)
def test_files_of_other_content(saved, name, content):
    (saved / name).write_bytes(content)
    with pytest.raises(ModelError, match="a raypq model"):
        ModelFiles.load(str(saved))


def test_a_truncated_tensor_file(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ModelError, match="a raypq model"):
        ModelFiles.load(str(saved))


def test_another_format(saved):
    path = saved / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(ModelError, match="expected format 1, found 2"):
        ModelFiles.load(str(saved))


def test_an_unknown_method(files, tmp_path):
    other = ModelFiles(content=CONTENT | {"method": "no"}, tensors=files.tensors, record={})
    other.save(str(tmp_path / "m"))
    with pytest.raises(ModelError, match=r"a method among .*pqzsl.*, found no"):
        registry.load(str(tmp_path / "m"))


@pytest.mark.parametrize("name", registry.METHODS)
def test_a_method_has_the_name_that_the_registry_gives_it(name):
    cls = registry.find(name)
    assert (cls.name, cls.model_class.method) == (name, name)


def test_the_registry_names_its_methods():
    with pytest.raises(ConfigError, match="'nearest'; expected one of clusterable, dpq, eszsl"):
        registry.find("nearest")
    with pytest.raises(ConfigError, match="pq settings: unknown key 'Q'; allowed: K, M"):
        registry.create("pq", {"Q": 1})
