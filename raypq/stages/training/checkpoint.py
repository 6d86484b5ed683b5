"""Checkpoints of gradient training: one safetensors file, replaced in one step."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from raypq.data import format_version
from raypq.data.storage import delete, exists, join, json_text, read_bytes, write_bytes
from raypq.errors import ConfigError, InputError

_FILE = "checkpoint.safetensors"
_BEST = "best.safetensors"
_KEY = "raypq"  # of the metadata
FORMAT = 1


@dataclass(kw_only=True)
class Progress:
    """Progress of a training.

    Attributes:
        phase, epoch: the next ones. history: losses and scores of each finished epoch.
        best: best validation score of the phase.
        epochs_without_improvement: epochs since then; ``stale`` in the file.
    """

    phase: int = 0
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    epochs_without_improvement: int = 0

    def as_json(self) -> dict[str, Any]:
        """The entry of a checkpoint file."""
        entry = asdict(self)
        entry["stale"] = entry.pop("epochs_without_improvement")
        return entry

    @classmethod
    def of_json(cls, entry: Mapping[str, Any]) -> Progress:
        """The inverse of ``as_json``."""
        values = dict(entry)
        return cls(epochs_without_improvement=values.pop("stale", 0), **values)


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The state that training resumes from: progress, weights, and the optimiser's moments."""

    progress: Progress
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]


class Checkpoints:
    """The checkpoints of one training in a folder.

    Args:
        identity: plain JSON values that must equal those of a checkpoint to resume from it.
        defaults: values of keys that an older checkpoint lacks. A key in neither is not compared.
    """

    def __init__(
        self, uri: str, identity: Mapping[str, Any], *, defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.uri, self._identity = uri, json.loads(json.dumps(dict(identity)))
        self._defaults = json.loads(json.dumps(dict(defaults or {})))

    def write(self, checkpoint: Checkpoint, *, best: bool = False) -> None:
        """Writes the latest checkpoint, or the best one so far to a file of its own."""
        header = {
            "format": FORMAT,
            "identity": self._identity,
            "progress": checkpoint.progress.as_json(),
        }
        tensors = {
            **{f"weights/{key}": value for key, value in checkpoint.weights.items()},
            **{f"moments/{key}": value for key, value in checkpoint.moments.items()},
        }
        copies = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        name = join(self.uri, _BEST if best else _FILE)
        write_bytes(name, save(copies, metadata={_KEY: json.dumps(header)}))

    def read(self, *, best: bool = False) -> Checkpoint | None:
        """The latest checkpoint, or the best one; None if there is none.

        Raises:
            InputError: it cannot be read.
            ConfigError: it is of another training; names the differences.
        """
        name = join(self.uri, _BEST if best else _FILE)
        if not exists(name):
            return None
        try:
            content = read_bytes(name)
            header = json_text.parse(_metadata(content)[_KEY])
            if format_version.is_newer(header["format"], FORMAT):
                raise InputError(
                    name,
                    expected=f"a checkpoint of format {FORMAT}",
                    found=f"format {header['format']}, {format_version.ADVICE}",
                )
            tensors = load(content)
            progress, identity = Progress.of_json(header["progress"]), header["identity"]
        except (SafetensorError, KeyError, TypeError, ValueError, struct.error) as error:
            raise InputError(name, expected="a raypq checkpoint", found=str(error)) from None
        self._check(name, identity)
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "moments": {}}
        for key, value in tensors.items():
            kind, _, rest = key.partition("/")
            parts[kind][rest] = value
        return Checkpoint(progress=progress, **parts)

    def clear(self) -> None:
        """Removes the checkpoints."""
        for name in (_FILE, _BEST):
            if exists(join(self.uri, name)):
                delete(join(self.uri, name))

    def _check(self, name: str, identity: Mapping[str, Any]) -> None:
        mine = self._identity
        identity = {**mine, **self._defaults, **identity} if self._defaults else identity
        different = [
            f"{key} was {identity.get(key)!r} and is {mine.get(key)!r}"
            for key in sorted({*identity, *mine})
            if identity.get(key) != mine.get(key)
        ]
        if different:
            raise ConfigError(
                f"{name} is a checkpoint of another training: {'; '.join(different[:5])}; "
                "train to another output, or remove it to start anew"
            )


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata in the header of a safetensors file."""
    (size,) = struct.unpack("<Q", content[:8])
    return json_text.parse(content[8 : 8 + size]).get("__metadata__", {})


def moments_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser by ``<parameter>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
    }


def restore_moments(optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Sets the state of an optimiser that ``moments_of`` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
