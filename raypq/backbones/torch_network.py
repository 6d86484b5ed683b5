"""Networks of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypq.backbones.backbone import Backbone, digest_of, image_input
from raypq.data.network_info import BackboneInfo
from raypq.kernels import memory

_BLOCK = {"cpu": 16, "cuda": 64}  # images of one call
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

Forward = Callable[[torch.Tensor], torch.Tensor]


class TorchNetwork(Backbone):
    """A network that takes normalised images [n, 3, S, S].

    Args:
        forward: from images to features; by default the network itself.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        info: BackboneInfo,
        device: str,
        forward: Forward | None = None,
    ) -> None:
        self.info = info
        self.image_format = image_input(info)
        self._device, self.block = device, _BLOCK[device]
        self._network = network.eval().to(device)
        self._forward = forward or self._network
        shape = (1, 3, 1, 1)
        self._mean = 255 * torch.tensor(info.mean, device=device).reshape(shape)
        self._scale = 1 / (255 * torch.tensor(info.std, device=device)).reshape(shape)

    def _block(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        found: list[NDArray[np.float32]] = []
        memory.in_parts(
            len(rows), len(rows), self._device, lambda part: found.append(self._part(rows[part]))
        )
        return np.concatenate(found)

    def _part(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        size = self.info.size
        with torch.inference_mode():
            pixels = torch.from_numpy(np.ascontiguousarray(rows)).reshape(-1, 3, size, size)
            if self._device == "cuda":
                pixels = pixels.pin_memory().to(self._device, non_blocking=True)
            images = torch.sub(pixels, self._mean).mul_(self._scale)  # to float in one pass
            lower = _DTYPES.get(self.info.precision)
            with torch.autocast(self._device, dtype=lower, enabled=lower is not None):
                features = self._forward(images)
            found: NDArray[np.float32] = features.float().reshape(len(rows), -1).cpu().numpy()
        return found


def weights_of(network: torch.nn.Module) -> str:
    """sha256 of a network's parameters and buffers."""

    def array(tensor: torch.Tensor) -> NDArray[Any]:
        tensor = tensor.detach().cpu().contiguous()
        return tensor.reshape(-1).view(torch.uint8).numpy()  # any dtype, bfloat16 too

    return digest_of((name, array(tensor)) for name, tensor in network.state_dict().items())
