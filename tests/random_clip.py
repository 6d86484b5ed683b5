"""A CLIP model of open_clip with random weights, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision_ops
from safetensors.torch import save_file

NAME = "ViT-S-32-alt"


def save(folder: Path) -> tuple[Any, str]:
    """The network, and the file of its weights; skips a test where open_clip is not installed."""
    torchvision_ops.require()
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(5)
    network, _, _ = open_clip.create_model_and_transforms(NAME, load_weights=False)
    weights = str(folder / "weights.safetensors")
    save_file(network.state_dict(), weights)
    return network, weights
