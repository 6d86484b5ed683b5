"""Loading a backbone by its name or file, with the preprocessing of its training."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from raypq.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, first_line
from raypq.backbones.model_network import ModelNetwork
from raypq.backbones.onnx_network import OnnxNetwork, OnnxSession
from raypq.backbones.torch_network import Forward, TorchNetwork, weights_of
from raypq.config import EncodeJob, ExtractJob, Interpolation, NetworkSettings, ReindexJob
from raypq.config.places import is_library_model
from raypq.data.network_info import BackboneInfo
from raypq.data.storage import exists, join, read_named
from raypq.errors import ConfigError
from raypq.methods.support.backbones import library_model
from raypq.optional_packages import require


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Preprocessing of a network, where it is known."""

    size: int | None = None
    resize: int | None = None
    interpolation: Interpolation = "bilinear"
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
            mean=_three(network.mean or self.mean),
            std=_three(network.std or self.std),
        )


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def backbone_of(job: EncodeJob | ExtractJob | ReindexJob) -> Backbone:
    """The backbone of a job, which names one; see ``load_backbone``."""
    assert job.backbone is not None, "the job names images"
    return load_backbone(
        job.backbone, job.network, size=job.columns.image_size, device=job.where.device
    )


def load_backbone(
    name: str, network: NetworkSettings, *, size: int | None, device: str
) -> Backbone:
    """A backbone by its name or file.

    Args:
        size: pixels on a side of its input; None for its preset.

    Raises:
        ConfigError: an unknown name, a missing package or file, no size that is known, or one that
            the network does not take.
        ModelError: a model directory that cannot be read.
    """
    backbone = _load(name, network, size, device)
    try:
        backbone.width  # noqa: B018
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise ConfigError(
            f"backbone: {name} cannot compute features of an image of {backbone.info.size} pixels: "
            f"{first_line(error)}"
        ) from None
    return backbone


def _load(name: str, network: NetworkSettings, size: int | None, device: str) -> Backbone:
    if is_library_model(name):
        return _library_network(name, network, size, device)
    if network.weights is not None:
        raise ConfigError(
            f"weights: for networks of a library (timm:NAME); {name} has its own weights"
        )
    if not exists(name):
        raise ConfigError(
            f"backbone: {name!r} is neither torchvision:NAME, timm:NAME nor open_clip:NAME, and no "
            "such file or model directory is there"
        )
    if exists(join(name, "model.json")):
        return _model_network(name, network, size)
    content = read_named(name, expected="a network in TorchScript or ONNX")
    if name.lower().endswith(".onnx"):
        return _onnx_network(name, content, network, size, device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript itself
            loaded = torch.jit.load(io.BytesIO(content), map_location=device)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ConfigError(
            f"backbone: {name} is not a TorchScript file: {first_line(error)}"
        ) from None
    return TorchNetwork(loaded, _info(name, _sha256(content), Preset(), network, size), device)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _onnx_network(
    name: str, content: bytes, network: NetworkSettings, size: int | None, device: str
) -> Backbone:
    if network.precision != "fp32":
        raise ConfigError(
            f"network precision: an ONNX file has its own, found {network.precision} for {name}"
        )
    session = OnnxSession(content, name, device)
    if session.size and size not in (None, session.size):
        raise ConfigError(f"image size: {name} takes {session.size} pixels, found {size}")
    info = _info(name, _sha256(content), Preset(size=session.size), network, size)
    return OnnxNetwork(session, info)


def _info(
    name: str, weights: str, preset: Preset, network: NetworkSettings, size: int | None
) -> BackboneInfo:
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
        mean=preset.mean,
        std=preset.std,
        precision=network.precision,
    )


def _model_network(name: str, network: NetworkSettings, size: int | None) -> Backbone:
    backbone = ModelNetwork(name)
    if network != NetworkSettings() or size not in (None, backbone.info.size):
        raise ConfigError(
            f"backbone: {name} is a model of raypq for images of {backbone.info.size} pixels with "
            "preprocessing of its own; leave out other sizes and the settings of the network"
        )
    return backbone


def _library_network(
    name: str, network: NetworkSettings, size: int | None, device: str
) -> Backbone:
    library, _, model = name.partition(":")
    forward: Forward | None = None
    if library == "open_clip":
        module, preset = open_clip_network(name, model, network)
        forward = module.encode_image
    else:
        with downloads(name):
            module = library_model(library, model, None, pretrained=network.weights is None)
        preset = _torchvision_preset(model) if library == "torchvision" else _timm_preset(module)
        if network.weights is not None:
            _load_weights(module, network.weights, name)
    return TorchNetwork(
        module, _info(name, weights_of(module), preset, network, size), device, forward
    )


@contextmanager
def downloads(name: str) -> Iterator[None]:
    """Names the remedy in errors of a library that downloads weights."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"backbone: the weights of {name} cannot be downloaded ({first_line(error)}); "
            "download them elsewhere and name the file (--weights, network.weights)"
        ) from None


def _load_weights(module: torch.nn.Module, uri: str, name: str) -> None:
    """Loads a state dict; the layer that the features leave out may be in it.

    Raises:
        ConfigError: it is none, or does not fit the network.
    """
    content = read_named(uri, expected="a state dict (.safetensors)")
    try:
        missing, _ = module.load_state_dict(load_tensors(content), strict=False)
    except (SafetensorError, RuntimeError) as error:
        raise ConfigError(
            f"weights: expected a state dict of {name} (.safetensors), found {uri}: "
            f"{first_line(error)}"
        ) from None
    if missing:
        raise ConfigError(
            f"weights: expected all {len(module.state_dict())} arrays of {name} in {uri}, found "
            f"none named {missing[0]} ({len(missing)} missing)"
        )


def _torchvision_preset(model: str) -> Preset:
    torchvision = require("torchvision", extra="backbones")
    weights = torchvision.models.get_model_weights(model).DEFAULT
    transform = weights.transforms()
    return Preset(
        size=int(transform.crop_size[0]),
        resize=int(transform.resize_size[0]),
        interpolation=transform.interpolation.value,
        mean=_three(transform.mean),
        std=_three(transform.std),
    )


def _timm_preset(module: torch.nn.Module) -> Preset:
    timm = require("timm", extra="backbones")
    config = timm.data.resolve_model_data_config(module)
    size = int(config["input_size"][-1])
    return Preset(
        size=size,
        resize=int(size / config["crop_pct"]),
        interpolation="bilinear"
        if config["interpolation"] == "random"
        else config["interpolation"],
        mean=_three(config["mean"]),
        std=_three(config["std"]),
    )


def open_clip_network(name: str, model: str, network: NetworkSettings) -> tuple[Any, Preset]:
    """A CLIP model with its preprocessing.

    Raises:
        ConfigError: an unknown name, or weights that cannot be had.
    """
    open_clip = require("open_clip", extra="backbones", purpose=f"backbone {name}")
    hub = model.startswith(("hf-hub:", "local-dir:"))
    architecture, _, tag = (model, "", "") if hub else model.partition("/")
    if not hub and architecture not in open_clip.list_models():
        raise ConfigError(
            f"backbone: open_clip has no model {architecture!r} (open_clip.list_models() has the "
            "names)"
        )
    if not hub and not tag and network.weights is None:
        raise ConfigError(
            f"backbone: expected open_clip:{architecture}/PRETRAINED, such as "
            f"open_clip:{architecture}/openai, or the weights as a file (--weights); found neither"
        )
    with downloads(name):
        try:
            module = open_clip.create_model(
                architecture, pretrained=tag or None, load_weights=network.weights is None
            )
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"backbone: {name}: {first_line(error)}") from None
    if network.weights is not None:
        _load_weights(module, network.weights, name)
    config = module.visual.preprocess_cfg
    size = config["size"]
    side = int(size[0] if isinstance(size, list | tuple) else size)
    return module, Preset(
        size=side,
        resize=side,
        interpolation=config["interpolation"],
        mean=_three(config["mean"]),
        std=_three(config["std"]),
    )
