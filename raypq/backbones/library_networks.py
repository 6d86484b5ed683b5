"""Networks of torchvision, timm and open_clip, with the preprocessing of their training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch

from raypq.backbones.backbone import Backbone, first_line
from raypq.backbones.preset import Preset, network_info, three
from raypq.backbones.torch_network import Forward, TorchNetwork, weights_of
from raypq.backbones.weights_file import load_weights
from raypq.config import NetworkSettings
from raypq.errors import ConfigError
from raypq.methods.support.backbones import LeftOut, library_model
from raypq.methods.support.downloads import downloads
from raypq.optional_packages import require


def library_network(name: str, network: NetworkSettings, size: int | None, device: str) -> Backbone:
    """A network of a library, with the weights of a file or its own.

    Raises:
        ConfigError: an unknown name, or weights that cannot be had.
    """
    library, _, model = name.partition(":")
    forward: Forward | None = None
    if library == "open_clip":
        module, preset = open_clip_network(name, model, network)
        forward = module.encode_image
    else:
        module = library_model(library, model, None, pretrained=network.weights is None)
        preset = _torchvision_preset(model) if library == "torchvision" else timm_preset(module)
        if network.weights is not None:
            load_weights(module, network.weights, name, left_out=_left_out(library, module))
    return TorchNetwork(
        module, network_info(name, weights_of(module), preset, network, size), device, forward
    )


def _left_out(library: str, module: torch.nn.Module) -> list[str]:
    """The layers that a file of weights has and the features leave out: the classifier."""
    layers = {key: layer for key, layer in module.named_modules() if key}
    if library == "torchvision":
        return [key for key, layer in layers.items() if isinstance(layer, LeftOut)]
    classifier = getattr(module, "pretrained_cfg", {}).get("classifier") or ()
    names = [classifier] if isinstance(classifier, str) else classifier
    # A head of several layers is left out as a whole: an identity stands above its last one.
    parts = [name.split(".") for name in names]
    above = {".".join(part[:n]) for part in parts for n in range(1, len(part))}
    return [*names, *(key for key in above if isinstance(layers.get(key), torch.nn.Identity))]


def _torchvision_preset(model: str) -> Preset:
    torchvision = require("torchvision", extra="backbones")
    weights = torchvision.models.get_model_weights(model).DEFAULT
    transform = weights.transforms()
    return Preset(
        size=int(transform.crop_size[0]),
        resize=int(transform.resize_size[0]),
        interpolation=transform.interpolation.value,
        mean=three(transform.mean),
        std=three(transform.std),
    )


def timm_preset(module: torch.nn.Module) -> Preset:
    """The preprocessing of a network of timm.

    Raises:
        ConfigError: one that is not square, or pads images.
    """
    timm = require("timm", extra="backbones")
    config = timm.data.resolve_model_data_config(module)
    channels, height, width = config["input_size"]
    mode = config.get("crop_mode") or "center"
    if channels != 3 or height != width or mode not in ("center", "squash"):
        raise ConfigError(
            f"backbone: expected a network for square images of 3 channels, cut from their middle, "
            f"found one for {config['input_size']} with crop_mode {mode!r}"
        )
    return Preset(
        size=int(height),
        resize=int(height / config["crop_pct"]),
        interpolation="bilinear"
        if config["interpolation"] == "random"
        else config["interpolation"],
        scaling="squash" if mode == "squash" else "shortest",
        mean=three(config["mean"]),
        std=three(config["std"]),
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
    known = [] if hub else open_clip.list_pretrained_tags_by_model(architecture)
    if not hub and not tag and (network.weights is None or known):
        raise ConfigError(
            f"backbone: expected open_clip:{architecture}/PRETRAINED, which also names the "
            f"preprocessing, such as open_clip:{architecture}/{known[0] if known else 'openai'}, "
            "found no /PRETRAINED"
        )
    if tag and tag not in known:
        raise ConfigError(
            f"backbone: expected one of {', '.join(known)} after open_clip:{architecture}/, found "
            f"{tag!r}"
        )
    # Weights of a file: the tag names the preprocessing alone, and nothing is downloaded.
    pretrained = tag if tag and network.weights is None else None
    local = network.weights is not None or model.startswith("local-dir:")
    with nullcontext() if local else downloads(name):
        try:
            module = open_clip.create_model(
                architecture, pretrained=pretrained, load_weights=network.weights is None
            )
        except OSError:  # some are a ValueError, too
            raise
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"backbone: {name}: {first_line(error)}; if its weights cannot be downloaded here, "
                "name them as a file (--weights, network.weights)"
            ) from None
    config = dict(module.visual.preprocess_cfg)
    if network.weights is not None:
        load_weights(module, network.weights, name)
        if tag:
            given = open_clip.get_pretrained_cfg(architecture, tag)
            config |= {key: given[key] for key in config if given.get(key) is not None}
    return module, _open_clip_preset(config, name)


def _open_clip_preset(config: Mapping[str, Any], name: str) -> Preset:
    size = config["size"]
    height, width = size if isinstance(size, list | tuple) else (size, size)
    mode = config.get("resize_mode") or "shortest"
    if height != width or mode not in ("shortest", "squash"):
        raise ConfigError(
            "backbone: expected a network for square images that are cut or squashed, found "
            f"{name} for {height} × {width} pixels with resize_mode {mode!r}"
        )
    return Preset(
        size=int(height),
        resize=int(height),
        interpolation=config["interpolation"],
        scaling="squash" if mode == "squash" else "shortest",
        mean=three(config["mean"]),
        std=three(config["std"]),
    )
