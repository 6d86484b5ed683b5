"""Files of weights that do not fit a network: the error says what is expected and what is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision_ops
from safetensors.torch import save_file

from raypq.backbones.library_networks import library_network
from raypq.backbones.weights_file import load_weights
from raypq.config import NetworkSettings
from raypq.errors import ConfigError


def network(width: int = 3) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Linear(width, 2))


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_weights(network(), str(path), "timm:x")
    text = str(caught.value)
    assert text.startswith("weights: expected ")
    assert "timm:x" in text
    assert str(path) in text
    return text


def test_weights_are_loaded_with_the_layer_that_features_leave_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = network(), network()
    save_file({**source.state_dict(), "head.weight": torch.ones(2)}, tmp_path / "w.safetensors")
    load_weights(target, str(tmp_path / "w.safetensors"), "timm:x", left_out=["head"])
    assert all(
        torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True)
    )


@pytest.mark.parametrize("left_out", [[], ["head"]])
def test_a_larger_network(tmp_path: Path, left_out: list[str]) -> None:
    path = tmp_path / "w.safetensors"
    deeper = torch.nn.Sequential(*network(), torch.nn.Linear(2, 2))
    save_file({**deeper.state_dict(), **{f"{key}.bias": torch.ones(1) for key in left_out}}, path)
    with pytest.raises(ConfigError, match=r"found 2 more, such as 2.*of a larger architecture"):
        load_weights(network(), str(path), "timm:x", left_out=left_out)


def test_buffers_that_a_network_computes_may_be_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    module = network()
    module.register_buffer("index", torch.ones(2), persistent=False)
    save_file({**module.state_dict(), "index": torch.ones(2)}, path)
    load_weights(module, str(path), "timm:x")


@pytest.mark.parametrize("name", ["torchvision:shufflenet_v2_x0_5", "timm:test_vit"])
def test_the_classifiers_of_libraries(tmp_path: Path, name: str) -> None:
    library, _, model = name.partition(":")
    if library == "torchvision":
        torchvision_ops.require()
        network = pytest.importorskip("torchvision").models.get_model(model)
    else:
        network = pytest.importorskip("timm").create_model(model)
    path = tmp_path / "w.safetensors"
    settings = NetworkSettings(weights=str(path))
    save_file(network.state_dict(), path)
    assert library_network(name, settings, None, "cpu").width
    save_file({**network.state_dict(), "blocks.9.weight": torch.ones(2)}, path)
    with pytest.raises(ConfigError, match="found 1 more, such as blocks"):
        library_network(name, settings, None, "cpu")


def test_no_such_file(tmp_path: Path) -> None:
    assert "found no such file" in refused(tmp_path / "x.pth")


def test_a_folder(tmp_path: Path) -> None:
    assert "found a folder" in refused(tmp_path)


@pytest.mark.parametrize("old", [False, True])
def test_a_checkpoint_of_torch_is_converted_by_the_command_of_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    """The command unpacks ``state_dict`` and removes the prefix of DataParallel."""
    monkeypatch.chdir(tmp_path)
    arrays = {f"module.{key}": value for key, value in network().state_dict().items()}
    torch.save({"state_dict": arrays}, "x.pth", _use_new_zipfile_serialization=not old)
    text = refused(Path("x.pth"))
    assert "a file of torch.save" in text
    code = text.split('python -c "')[1].rstrip('"')
    exec(code, {})
    load_weights(network(), "x.safetensors", "timm:x")


@pytest.mark.parametrize("prefix", ["module.", "model.visual."])
def test_prefixes_are_named(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "w.safetensors"
    save_file({f"{prefix}{key}": value for key, value in network().state_dict().items()}, path)
    assert f"with the prefix '{prefix}', such as {prefix}0.weight" in refused(path)


def test_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"conv1.weight": torch.ones(2)}, path)
    text = refused(path)
    assert (
        "found none named 0.weight (4 missing, 0 there; one that is there is conv1.weight)" in text
    )
    assert "it is of another architecture" in text


def test_other_shapes(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(network(5).state_dict(), path)
    text = refused(path)
    assert "whose array 0.weight is [3, 4]; found [5, 4]" in text
    assert "3 of 4 arrays differ in shape" in text


def test_a_file_that_is_incomplete(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    arrays = network().state_dict()
    del arrays["1.bias"]
    save_file(arrays, path)
    assert "none named 1.bias (1 missing, 3 there): the file is incomplete" in refused(path)


def test_a_text(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_text("version https://git-lfs…")
    assert "which is none" in refused(tmp_path / "w.safetensors")
