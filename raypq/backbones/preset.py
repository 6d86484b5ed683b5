"""Preprocessing of a network for images: its preset, and what a job changes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from raypq.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from raypq.config import Interpolation, NetworkSettings, Scaling
from raypq.data.network_info import BackboneInfo
from raypq.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Preprocessing of a network, where it is known."""

    size: int | None = None
    resize: int | None = None
    interpolation: Interpolation = "bilinear"
    scaling: Scaling = "shortest"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def changed(self, network: NetworkSettings, size: int | None) -> Preset:
        """With what a job sets; another size scales the preset's ``resize``."""
        resize = self.resize
        if size is not None and size != self.size:
            resize = round(resize * size / self.size) if resize and self.size else None
        return replace(
            self,
            size=size or self.size,
            resize=network.resize or resize,
            interpolation=network.interpolation or self.interpolation,
            scaling=network.scaling or self.scaling,
            mean=three(network.mean or self.mean),
            std=three(network.std or self.std),
        )


def three(values: Any) -> tuple[float, float, float]:
    """Values of red, green and blue."""
    red, green, blue = values
    return float(red), float(green), float(blue)


def network_info(
    name: str, weights: str, preset: Preset, network: NetworkSettings, size: int | None
) -> BackboneInfo:
    """The identity of a network under its preset and the settings of a job.

    Raises:
        ConfigError: no size of its input is known, or a smaller ``resize``.
    """
    preset = preset.changed(network, size)
    if preset.size is None:
        raise ConfigError(
            f"image size: {name} does not say what size of images it takes: pass --image-size "
            "(columns.image_size)"
        )
    resize = preset.resize or preset.size
    if resize < preset.size:
        raise ConfigError(f"resize: expected at least the image size {preset.size}, found {resize}")
    return BackboneInfo(
        name=name,
        weights=weights,
        size=preset.size,
        resize=resize,
        interpolation=preset.interpolation,
        scaling=preset.scaling,
        mean=preset.mean,
        std=preset.std,
        precision=network.precision,
    )
