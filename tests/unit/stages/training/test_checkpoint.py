"""Checkpoints: what is read is what was written, and only for the same training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raypq.errors import ConfigError, InputError
from raypq.stages.training.checkpoint import (
    Checkpoint,
    Checkpoints,
    Progress,
    moments_of,
    restore_moments,
)

IDENTITY = {"method": "dpq", "M": 4, "rate": 0.001}


@pytest.fixture
def trained() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
    return module, optimizer


def written(folder: Path, trained: tuple[torch.nn.Linear, torch.optim.Optimizer]) -> Checkpoints:
    module, optimizer = trained
    checkpoints = Checkpoints(str(folder), IDENTITY)
    progress = Progress(
        phase=1, epoch=3, history=[{"loss": 0.5}], best=0.7, epochs_without_improvement=2
    )
    checkpoints.write(
        Checkpoint(progress=progress, weights=module.state_dict(), moments=moments_of(optimizer))
    )
    return checkpoints


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path, trained):
    module, optimizer = trained
    back = written(tmp_path, trained).read()
    assert back is not None
    assert back.progress == Progress(
        phase=1, epoch=3, history=[{"loss": 0.5}], best=0.7, epochs_without_improvement=2
    )
    keys = {"phase", "epoch", "history", "best", "stale"}
    assert back.progress.as_json().keys() == keys, "the keys of earlier checkpoint files"
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(back.weights)
    again = torch.optim.AdamW(other.parameters())
    restore_moments(again, back.moments)
    for one, its in ((module, optimizer), (other, again)):
        its.zero_grad()
        one(torch.ones(4, 3)).square().sum().backward()
        its.step()
    assert torch.equal(module.weight, other.weight)


def test_no_checkpoint_and_none_any_more(tmp_path, trained):
    checkpoints = Checkpoints(str(tmp_path / "none"), IDENTITY)
    assert checkpoints.read() is None
    checkpoints = written(tmp_path, trained)
    checkpoints.clear()
    assert checkpoints.read() is None
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_config(tmp_path, trained):
    written(tmp_path, trained)
    other = Checkpoints(str(tmp_path), {**IDENTITY, "M": 8, "epochs": 3})
    with pytest.raises(ConfigError, match="M was 4 and is 8; epochs was None and is 3"):
        other.read()


@pytest.mark.parametrize("damage", [b"", b"no safetensors at all", None])
def test_a_damaged_checkpoint(tmp_path, trained, damage):
    written(tmp_path, trained)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage is None else damage)
    with pytest.raises(InputError, match="expected a raypq checkpoint"):
        Checkpoints(str(tmp_path), IDENTITY).read()


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path, trained):
    written(tmp_path, trained)
    (file,) = tmp_path.iterdir()
    assert file.suffix == ".safetensors"
