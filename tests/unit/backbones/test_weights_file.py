"""Files of weights that do not fit a network: the error says what is expected and what is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from raypq.backbones.weights_file import load_weights
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


def test_weights_are_loaded_with_further_arrays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = network(), network()
    save_file({**source.state_dict(), "head.weight": torch.ones(2)}, tmp_path / "w.safetensors")
    load_weights(target, str(tmp_path / "w.safetensors"), "timm:x")
    assert all(
        torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True)
    )


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
