"""Loading a backbone by its name or file."""

from __future__ import annotations

import hashlib
import io
import warnings

import torch

from raypq.backbones.backbone import Backbone, first_line
from raypq.backbones.library_networks import library_network
from raypq.backbones.model_network import ModelNetwork
from raypq.backbones.onnx_network import OnnxNetwork, OnnxSession
from raypq.backbones.preset import Preset, network_info
from raypq.backbones.torch_network import TorchNetwork
from raypq.config import (
    EncodeJob,
    ExtractJob,
    NetworkSettings,
    ReindexJob,
)
from raypq.config.places import is_library_model
from raypq.data.storage import exists, join, read_named
from raypq.errors import ConfigError


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
        return library_network(name, network, size, device)
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
    return TorchNetwork(
        loaded, network_info(name, _sha256(content), Preset(), network, size), device
    )


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
    info = network_info(name, _sha256(content), Preset(size=session.size), network, size)
    return OnnxNetwork(session, info)


def _model_network(name: str, network: NetworkSettings, size: int | None) -> Backbone:
    backbone = ModelNetwork(name)
    if network != NetworkSettings() or size not in (None, backbone.info.size):
        raise ConfigError(
            f"backbone: {name} is a model of raypq for images of {backbone.info.size} pixels with "
            "preprocessing of its own; leave out other sizes and the settings of the network"
        )
    return backbone
