"""Convolutional networks for small images, and their input normalisation.

Rows are images of S × S pixels as vectors of 3·S² values in 0 … 1 (``raypq.data.images``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MEAN, _STD = 0.45, 0.25  # of pixels of natural images, roughly


class ImageNetwork(nn.Module):
    """Reshapes rows [n, 3·S²] to images [n, 3, S, S], standardises them, and applies a network.

    With ``augment``, training images are randomly flipped left to right and shifted by up to S/8
    pixels, with reflection at the border.
    """

    def __init__(self, side: int, network: nn.Module, *, augment: bool) -> None:
        super().__init__()
        self.side, self.augment = side, augment
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        images = (x.view(len(x), 3, self.side, self.side) - _MEAN) / _STD
        if self.training and self.augment:
            images = augmented(images, self.side // 8)
        output: Tensor = self.network(images)
        return output


def augmented(images: Tensor, most: int) -> Tensor:
    """Images [n, 3, S, S], each randomly flipped, and shifted by up to ``most`` pixels."""
    n, _, side, _ = images.shape
    flipped = torch.rand(n, device=images.device) < 0.5
    images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    if not most:
        return images
    padded = F.pad(images, [most] * 4, mode="reflect")
    start = torch.randint(0, 2 * most + 1, (n, 2), device=images.device)
    pixels = torch.arange(side, device=images.device)
    rows = (start[:, :1] + pixels)[:, None, :, None]
    columns = (start[:, 1:] + pixels)[:, None, None, :]
    index = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(3, device=images.device)[None, :, None, None]
    return padded[index, channel, rows, columns]


class DSH(nn.Module):
    """The network of deep supervised hashing (Liu et al., CVPR 2016), as in DPQ's experiments:
    three 5 × 5 convolutions, each with 3 × 3 pooling of stride 2, and one fully connected layer."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 32, 5, padding=2)
        self.conv3 = nn.Conv2d(32, 64, 5, padding=2)
        for _ in range(3):
            side = side // 2 + side % 2
        self.full = nn.Linear(64 * side * side, width)

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, 3, S, S] to [n, width]."""
        x = F.relu(F.max_pool2d(self.conv1(x), 3, 2, padding=1))
        x = F.avg_pool2d(F.relu(self.conv2(x)), 3, 2, padding=1)
        x = F.avg_pool2d(F.relu(self.conv3(x)), 3, 2, padding=1)
        return self.full(x.flatten(1))


class VGG32(nn.Module):
    """A VGG for images of 32 × 32: four blocks of two 3 × 3 convolutions with batch norm and
    pooling by 2, then the mean over pixels and one fully connected layer."""

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
        """Images [n, 3, S, S] to [n, width]."""
        return self.full(self.dropout(self.blocks(x).mean(dim=(2, 3))))
