"""Checkpoints of gradient training: one safetensors file, replaced as a whole."""

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

from raypq.data import format_version, json_text
from raypq.data.storage import delete, exists, join, read_bytes, write_bytes
from raypq.errors import ConfigError, InputError

_FILE = "checkpoint.safetensors"
_BEST = "best.safetensors"
_NOTE = "raypq"
FORMAT = 1


@dataclass(kw_only=True)
class Progress:
    """How far training is.

    Attributes:
        phase, epoch: what comes next. history: plain numbers of each finished epoch.
        best: the best validation score so far, and how many epochs ago it was (``stale``).
    """

    phase: int = 0
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    stale: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """Everything that training goes on from: progress, weights, and the optimiser's moments."""

    progress: Progress
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]


class Checkpoints:
    """The checkpoints of one training below a folder.

    ``identity`` is what must be the same for a checkpoint to be gone on from: plain JSON values.
    ``absent`` is what it was where an older checkpoint does not say; a key in neither is passed
    over there.
    """

    def __init__(
        self, uri: str, identity: Mapping[str, Any], *, absent: Mapping[str, Any] | None = None
    ) -> None:
        self.uri, self._identity = uri, json.loads(json.dumps(dict(identity)))
        self._absent = json.loads(json.dumps(dict(absent or {})))

    def write(self, checkpoint: Checkpoint, *, best: bool = False) -> None:
        """Writes the latest checkpoint, or the best one so far beside it."""
        note = {
            "format": FORMAT,
            "identity": self._identity,
            "progress": asdict(checkpoint.progress),
        }
        tensors = {
            **{f"weights/{key}": value for key, value in checkpoint.weights.items()},
            **{f"moments/{key}": value for key, value in checkpoint.moments.items()},
        }
        ready = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        name = join(self.uri, _BEST if best else _FILE)
        write_bytes(name, save(ready, metadata={_NOTE: json.dumps(note)}))

    def read(self, *, best: bool = False) -> Checkpoint | None:
        """The latest checkpoint, or the best one; None where there is none.

        Raises:
            InputError: it cannot be read.
            ConfigError: it is of another configuration, naming what differs.
        """
        name = join(self.uri, _BEST if best else _FILE)
        if not exists(name):
            return None
        try:
            content = read_bytes(name)
            note = json_text.parse(_metadata(content)[_NOTE])
            if format_version.is_newer(note["format"], FORMAT):
                raise InputError(
                    name,
                    expected=f"a checkpoint of format {FORMAT}",
                    found=f"format {note['format']}, {format_version.ADVICE}",
                )
            tensors = load(content)
            progress, identity = Progress(**note["progress"]), note["identity"]
        except (SafetensorError, KeyError, TypeError, ValueError, struct.error) as error:
            raise InputError(name, expected="a raypq checkpoint", found=str(error)) from None
        self._check(name, identity)
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "moments": {}}
        for key, value in tensors.items():
            kind, _, rest = key.partition("/")
            parts[kind][rest] = value
        return Checkpoint(progress=progress, **parts)

    def clear(self) -> None:
        """Removes them, once the model is saved."""
        for name in (_FILE, _BEST):
            if exists(join(self.uri, name)):
                delete(join(self.uri, name))

    def _check(self, name: str, identity: Mapping[str, Any]) -> None:
        mine = self._identity
        identity = {**mine, **self._absent, **identity} if self._absent else identity
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
    """Puts ``moments_of`` back."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
