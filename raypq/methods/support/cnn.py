"""Convolutional networks for small images, and their input normalisation.

Rows are pictures of S × S pixels as vectors of 3·S² values in 0 … 1 (``raypq.data.images``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MEAN, _STD = 0.45, 0.25  # of pixels of natural images, about


class Pictures(nn.Module):
    """Rows [n, 3·S²] to pictures [n, 3, S, S], centred and scaled, then through a network.

    In training, and where ``augment`` says so, each picture is turned left to right by chance
    and moved by up to S/8 pixels, its border repeated by reflection.
    """

    def __init__(self, side: int, network: nn.Module, *, augment: bool) -> None:
        super().__init__()
        self.side, self.augment = side, augment
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        pictures = (x.view(len(x), 3, self.side, self.side) - _MEAN) / _STD
        if self.training and self.augment:
            pictures = shifted(pictures, self.side // 8)
        found: Tensor = self.network(pictures)
        return found


def shifted(pictures: Tensor, most: int) -> Tensor:
    """Pictures [n, 3, S, S], each turned and moved by chance (torch's generator)."""
    n, _, side, _ = pictures.shape
    turned = torch.rand(n, device=pictures.device) < 0.5
    pictures = torch.where(turned[:, None, None, None], pictures.flip(3), pictures)
    if not most:
        return pictures
    padded = F.pad(pictures, [most] * 4, mode="reflect")
    start = torch.randint(0, 2 * most + 1, (n, 2), device=pictures.device)
    along = torch.arange(side, device=pictures.device)
    rows = (start[:, :1] + along)[:, None, :, None]
    columns = (start[:, 1:] + along)[:, None, None, :]
    index = torch.arange(n, device=pictures.device)[:, None, None, None]
    channel = torch.arange(3, device=pictures.device)[None, :, None, None]
    return padded[index, channel, rows, columns]


class DSH(nn.Module):
    """The network of deep supervised hashing (Liu et al., CVPR 2016), which DPQ's protocol takes:
    three 5 × 5 convolutions, each followed by pooling 3 × 3 with stride 2, and one full layer."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 32, 5, padding=2)
        self.conv3 = nn.Conv2d(32, 64, 5, padding=2)
        for _ in range(3):
            side = side // 2 + side % 2
        self.full = nn.Linear(64 * side * side, width)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [n, 3, S, S] to [n, width]."""
        x = F.relu(F.max_pool2d(self.conv1(x), 3, 2, padding=1))
        x = F.avg_pool2d(F.relu(self.conv2(x)), 3, 2, padding=1)
        x = F.avg_pool2d(F.relu(self.conv3(x)), 3, 2, padding=1)
        return self.full(x.flatten(1))


class VGG32(nn.Module):
    """A VGG for pictures of 32 × 32: four blocks of two 3 × 3 convolutions with batch norm, each
    halving the picture, then the mean over what is left and one full layer."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        depth = 3
        for channels in (64, 128, 256, 512):
            for _ in range(2):
                layers += [
                    nn.Conv2d(depth, channels, 3, padding=1, bias=False),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(),
                ]
                depth = channels
            layers.append(nn.MaxPool2d(2))
        self.blocks = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.full = nn.Linear(depth, width)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [n, 3, S, S] to [n, width]."""
        return self.full(self.dropout(self.blocks(x).mean(dim=(2, 3))))
