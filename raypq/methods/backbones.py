"""What stands below the quantizer of a learned method."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from raypq.config import Positive
from raypq.methods.gradient import GradientSettings
from raypq.methods.layers import Trunk


class TrunkSettings(GradientSettings):
    """The part below the quantizer, from features or from images."""

    backbone: str = Field("mlp", description="mlp (features); dsh, vgg32, torchvision:… (images)")
    hidden: Positive = Field(512, description="units of the mlp")
    dropout: float = Field(0.0, ge=0, lt=1, description="in the mlp and in vgg32")


def trunk(settings: TrunkSettings, dx: int, width: int) -> nn.Module:
    """The network from rows [n, dx] to [n, width]."""
    return Trunk(dx, settings.hidden, width, settings.dropout)
