"""Settings of jobs that compute features of images with a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from raypq.config.job import MonitoredJob
from raypq.config.option import Option
from raypq.config.places import InputFile, MaybePaths, Reads, Uri
from raypq.config.settings import Positive, UserSettings

_IMAGE = "image"  # column of an image store
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Scaling = Literal["shortest", "squash"]
NetworkPrecision = Literal["fp32", "bf16", "fp16"]
BACKBONE = (
    "network for images: torchvision:NAME, timm:NAME, open_clip:NAME/PRETRAINED, a TorchScript "
    "(.pt) or ONNX (.onnx) file, or a model directory"
)
Backbone = Annotated[Annotated[Uri, Reads("backbone")] | None, Field(description=BACKBONE)]
Images = Annotated[
    MaybePaths,
    Field(
        description="images: folders of image files, tar files, or Parquet; may be repeated",
    ),
]


Features = Annotated[
    MaybePaths, Field(description="feature store: folder, file or glob; may be repeated")
]
ImagesInstead = Annotated[
    MaybePaths,
    Field(
        description="images instead of features, of which --backbone makes features: folders of "
        "image files, tar files, or Parquet; may be repeated",
    ),
]


class NetworkSettings(UserSettings):
    """Weights and preprocessing of a network for images; by default the network's own."""

    weights: InputFile | None = Field(
        None,
        description="state dict of the network (.safetensors); default: the library's, which it "
        "downloads",
    )
    resize: Positive | None = Field(
        None,
        description="pixels of an image's shorter side, before a square of --image-size is cut "
        "from its middle; default: the network's preset, or the image size",
    )
    interpolation: Interpolation | None = Field(
        None, description="filter for scaling images; default: the network's preset, or bilinear"
    )
    scaling: Scaling | None = Field(
        None,
        description="how an image is scaled: by its shorter side, keeping its shape (shortest), or "
        "by both sides, as SigLIP does (squash); default: the network's preset, or shortest",
    )
    mean: Annotated[list[float], Field(min_length=3, max_length=3)] | None = Field(
        None,
        description="mean of red, green and blue, subtracted from an image; default: the network's "
        "preset, or that of ImageNet",
    )
    std: (
        Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)] | None
    ) = Field(
        None,
        description="standard deviation of red, green and blue, by which they are divided; "
        "default: as for the mean",
    )
    precision: Annotated[NetworkPrecision, Option(names=("--network-precision",))] = Field(
        "fp32", description="precision of the network; lower ones are faster on GPUs"
    )


def with_image_column(values: Any) -> Any:
    """Settings with the feature column ``image``, if they name images and no column."""
    if not isinstance(values, Mapping):
        return values
    images = values.get("images")
    if images is None or (isinstance(images, list | tuple) and not images):
        return values
    columns = values.get("columns", {})
    if not isinstance(columns, Mapping):
        return values
    return {**values, "columns": {"feature": _IMAGE, **columns}}


class ImageSource(MonitoredJob):
    """A job whose source is features, or images and the network that makes features of them."""

    if TYPE_CHECKING:  # fields of the jobs, which list them in the order of their help
        features: list[str]
        images: list[str]
        backbone: str | None
        network: NetworkSettings

    @property
    def source(self) -> list[str]:
        """The features or images."""
        return [*(self.images or self.features)]

    @property
    def source_kind(self) -> Literal["features", "images"]:
        """What the source holds."""
        return "images" if self.images else "features"

    @model_validator(mode="before")
    @classmethod
    def _image_column(cls, values: Any) -> Any:
        return with_image_column(values)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.features and self.images:
            raise ValueError("features, images: expected one of them, found both")
        if not self.features and not self.images:
            raise ValueError(
                "features: expected at least one path, or images and a backbone, found neither"
            )
        if self.images and self.backbone is None:
            raise ValueError(
                "backbone: expected the network that makes features of the images, found none (a "
                "model that reads images itself takes them as features: --features)"
            )
        if self.features and (self.backbone or self.network != NetworkSettings()):
            raise ValueError("backbone: networks are for images (--images, images), found features")
        return self
