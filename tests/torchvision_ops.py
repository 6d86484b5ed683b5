"""torchvision from PyPI is built for CUDA: with a torch for CPUs, its operators cannot be loaded.

Networks for classification use none of them, so it is enough to declare those that its import
registers.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

_DECLARED: list[torch.library.Library] = []  # a library's operators live as long as it does


def require() -> None:
    """Skips a test where torchvision is not installed; makes it importable where it is."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    mend()


def mend() -> None:
    """Makes torchvision importable if it is installed: transformers imports it, too."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        _DECLARED.append(library)
        import torchvision  # noqa: F401
