"""Weights of a library's network from a file that the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from raypq.backbones.backbone import first_line
from raypq.data.storage import read_named
from raypq.errors import ConfigError, InputError

_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # of torch.save
_KEY = "--weights, network.weights"
Arrays = Mapping[str, torch.Tensor]


def load_weights(
    module: torch.nn.Module, uri: str, name: str, *, left_out: Sequence[str] = ()
) -> None:
    """Loads a state dict.

    Args:
        left_out: layers that the file may have and the network lacks (its classifier).

    Raises:
        ConfigError: there is no such file, it is no state dict, or it does not fit the network.
    """
    given = _read(uri, name)
    expected: Arrays = module.state_dict()
    _check_names(expected, given, uri, name)
    others = [key for key in expected if key in given and given[key].shape != expected[key].shape]
    if others:
        key = others[0]
        raise ConfigError(
            f"weights: expected those of {name}, whose array {key} is "
            f"{list(expected[key].shape)}; found {list(given[key].shape)} in {uri} ({len(others)} "
            f"of {len(expected)} arrays differ in shape): it is of another architecture ({_KEY})"
        )
    _check_further(module, given, left_out, uri, name)
    try:
        module.load_state_dict(dict(given), strict=False)
    except RuntimeError as error:
        raise ConfigError(
            f"weights: expected a state dict of {name}, found {uri}: {first_line(error)}"
        ) from None


def _read(uri: str, name: str) -> Arrays:
    expected = f"a state dict of {name} (.safetensors)"
    try:
        content = read_named(uri, expected=expected)
    except InputError as error:
        raise ConfigError(
            f"weights: expected {expected}, found {error.found} at {uri} ({_KEY})"
        ) from None
    if content.startswith(_PICKLES):
        raise ConfigError(
            f"weights: expected {expected}, found {uri}, a file of torch.save, which can run code "
            f"when it is read. If you trust it, write it as safetensors:\n{_conversion(uri)}"
        )
    try:
        return load_tensors(content)
    except SafetensorError as error:
        raise ConfigError(
            f"weights: expected {expected}, found {uri}, which is none: {first_line(error)}"
        ) from None


def _conversion(uri: str) -> str:
    """A command that writes a checkpoint as a state dict, without prefixes of wrappers."""
    target = f"{uri.rpartition('/')[2].rpartition('.')[0] or 'weights'}.safetensors"
    return (
        'python -c "import torch; from safetensors.torch import save_file; '
        f"w = torch.load({uri!r}, map_location='cpu', weights_only=True); "
        "w = w.get('state_dict', w.get('model', w)); "
        "save_file({k.removeprefix('module.'): v.clone().contiguous() for k, v in w.items()}, "
        f'{target!r})"'
    )


def _check_names(expected: Arrays, given: Arrays, uri: str, name: str) -> None:
    missing = [key for key in expected if key not in given]
    if not missing:
        return
    first = f"weights: expected all {len(expected)} arrays of {name} in {uri}, found "
    prefix = _prefix(missing, given)
    if prefix:
        raise ConfigError(
            f"{first}them with the prefix {prefix!r}, such as {prefix}{missing[0]}, as a wrapper "
            "or a checkpoint writes them; write the file with the names of the network alone "
            f"(key.removeprefix({prefix!r}))"
        )
    known = len(expected) - len(missing)
    other = next((key for key in given if key not in expected), "")
    raise ConfigError(
        f"{first}none named {missing[0]} ({len(missing)} missing, {known} there"
        f"{f'; one that is there is {other}' if other else ''}): "
        + ("the file is incomplete" if known > len(missing) else "it is of another architecture")
        + f" ({_KEY})"
    )


def _check_further(
    module: torch.nn.Module, given: Arrays, left_out: Sequence[str], uri: str, name: str
) -> None:
    """Refuses arrays that the network lacks: a larger network has all arrays of a smaller one."""
    computed = {key for key, _ in module.named_buffers()}  # some are not in the state dict
    known = {*module.state_dict(), *computed}
    prefixes = tuple(f"{layer}." for layer in left_out)
    further = [key for key in given if key not in known and not key.startswith(prefixes)]
    if further:
        beside = f", and {left_out[0]}, which features leave out" if left_out else ""
        raise ConfigError(
            f"weights: expected the {len(module.state_dict())} arrays of {name} in {uri}{beside}, "
            f"found {len(further)} more, such as {further[0]}: it is of a larger architecture; "
            "name its own network (--backbone, backbone), or, if they are no part of the network, "
            f"write the file without them ({_KEY})"
        )


def _prefix(missing: list[str], given: Arrays) -> str:
    """What stands before the names of all missing arrays; empty if nothing does."""
    ends = [key[: -len(missing[0])] for key in given if key.endswith(f".{missing[0]}")]
    return next((prefix for prefix in ends if all(prefix + key in given for key in missing)), "")
