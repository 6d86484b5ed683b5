"""Backbones of learned quantizers, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator
from torch import nn

from raypq.config import Positive
from raypq.data.images import side_of
from raypq.errors import ConfigError
from raypq.methods.gradient import GradientSettings
from raypq.methods.support.cnn import DSH, VGG32, ImageNetwork
from raypq.methods.support.downloads import downloads
from raypq.methods.support.layers import Trunk
from raypq.optional_packages import require

NAMES = "mlp (features), dsh, vgg32, torchvision:NAME or timm:NAME (images)"
_LEAST_SIDE = {"dsh": 8, "vgg32": 16}  # pixels, for all poolings


class TrunkSettings(GradientSettings):
    """Settings of the backbone, for features or for images."""

    backbone: str = Field("mlp", description=NAMES)
    hidden: Positive = Field(512, description="units of the mlp")
    dropout: float = Field(0.0, ge=0, lt=1, description="in the mlp and in vgg32")
    feature_dropout: float = Field(0.0, ge=0, lt=1, description="of features, before the mlp")
    pretrained: bool = Field(False, description="start from the weights of torchvision or timm")
    augment: bool = Field(True, description="flip and shift images randomly in training")

    @model_validator(mode="before")
    @classmethod
    def _images_are_not_normalised(cls, values: Any) -> Any:
        """Images are standardised by ``ImageNetwork`` only."""
        backbone = values.get("backbone", "mlp") if isinstance(values, Mapping) else "mlp"
        if not isinstance(backbone, str) or backbone == "mlp":
            return values
        if values.get("normalise", "none") != "none":
            raise ValueError("normalise is for features; a backbone for images takes 'none'")
        return {**values, "normalise": "none"}


class LeftOut(nn.Identity):
    """Stands in the place of the classifier layer that features leave out."""


def trunk(settings: TrunkSettings, dx: int, width: int, *, pretrained: bool) -> nn.Module:
    """The network from rows [n, dx] to [n, width].

    Args:
        pretrained: load pretrained weights if the settings say so; False where other weights
        follow.

    Raises:
        ConfigError: an unknown name, a package that is not installed, rows that are no images.
    """
    name = settings.backbone
    if name == "mlp":
        return Trunk(dx, settings.hidden, width, settings.dropout, settings.feature_dropout)
    library, colon, model = name.partition(":")
    if name not in _LEAST_SIDE and not (colon and library in ("torchvision", "timm")):
        raise ConfigError(f"backbone: unknown {name!r}; expected {NAMES}")
    side = side_of(dx, where=f"backbone {name}")
    if side < _LEAST_SIDE.get(name, 1):
        raise ConfigError(
            f"backbone: {name} needs images of at least {_LEAST_SIDE[name]} pixels on a side, "
            f"found {side}"
        )
    network: nn.Module
    if name == "dsh":
        network = DSH(side, width)
    elif name == "vgg32":
        network = VGG32(width, settings.dropout)
    else:
        network = library_model(
            library, model, width, pretrained=pretrained and settings.pretrained
        )
    return ImageNetwork(side, network, augment=settings.augment)


def library_model(library: str, model: str, width: int | None, *, pretrained: bool) -> nn.Module:
    """A model of torchvision or timm with its last layer replaced by one of ``width`` outputs
    (None: removed, so that the model gives features).

    Raises:
        ConfigError: the package is not installed, or has no model of this name; or weights that
            are neither cached nor can be downloaded.
    """
    package = require(library, extra="backbones", purpose=f"backbone {library}:{model}")
    if not pretrained or model.startswith("local-dir:"):
        return _library_model(package, library, model, width, pretrained=pretrained)
    with downloads(f"{library}:{model}"):
        return _library_model(package, library, model, width, pretrained=pretrained)


def _library_model(
    package: Any, library: str, model: str, width: int | None, *, pretrained: bool
) -> nn.Module:
    try:
        if library == "timm":
            network: nn.Module = package.create_model(
                model, pretrained=pretrained, num_classes=width or 0
            )
            return network
        network = package.models.get_model(model, weights="DEFAULT" if pretrained else None)
    except OSError:  # of a download; some are a ValueError, too
        raise
    except (ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(f"backbone: {library} has no model {model!r}: {error}") from None
    return _with_head(network, f"{library}:{model}", width)


def _with_head(network: nn.Module, name: str, width: int | None) -> nn.Module:
    """Replaces the last linear layer of a network."""
    last = [key for key, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not last:
        raise ConfigError(f"backbone: {name} does not end in a linear layer")
    parent, _, key = last[-1].rpartition(".")
    old = network.get_submodule(last[-1])
    assert isinstance(old, nn.Linear)
    new = LeftOut() if width is None else nn.Linear(old.in_features, width)
    setattr(network.get_submodule(parent), key, new)
    return network
