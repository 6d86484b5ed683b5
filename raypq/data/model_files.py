"""Model directories: ``model.safetensors`` + ``model.json``. No pickle anywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from raypq.data import format_version
from raypq.data.storage import exists, join, json_text, read_bytes, write_bytes
from raypq.errors import ConfigError, ModelError

FORMAT = 1
_KEYS = {"format", "fingerprint", "model", "record"}
FOLDER = "models"  # of a code store: the models that made its codes, by fingerprint


def check_vacant(uri: str, *, overwrite: bool) -> None:
    """Refuses to replace a model, unless ``overwrite`` is set.

    Raises:
        ConfigError: the folder holds a model.
    """
    if not overwrite and exists(join(uri, "model.json")):
        raise ConfigError(
            f"output: {uri} holds a model already; name another folder, or pass "
            "--overwrite (overwrite: true) to replace it"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelFiles:
    """The content of a model directory.

    Attributes:
        content: JSON values that define the model (method, M, K, D, dx, metric, settings).
        tensors: arrays by name.
        record: the training record; not part of the fingerprint.
    """

    content: Mapping[str, Any]
    tensors: Mapping[str, NDArray[Any]]
    record: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """sha256 of the content and the tensors, in name order."""
        digest = hashlib.sha256(_canonical(self.content))
        for name in sorted(self.tensors):
            tensor = np.ascontiguousarray(self.tensors[name])
            digest.update(f"{name}:{tensor.dtype.str}:{tensor.shape}".encode())
            digest.update(tensor.tobytes())
        return digest.hexdigest()

    def save(self, uri: str) -> str:
        """Writes the directory, tensors first; returns the fingerprint."""
        write_bytes(
            join(uri, "model.safetensors"),
            save_tensors({k: np.ascontiguousarray(v) for k, v in self.tensors.items()}),
        )
        document = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "model": dict(self.content),
            "record": dict(self.record),
        }
        write_bytes(join(uri, "model.json"), json.dumps(document, indent=2).encode())
        return self.fingerprint

    @classmethod
    def read_record(cls, uri: str) -> dict[str, Any]:
        """The record, without reading the arrays.

        Raises:
            ModelError: as ``load``.
        """
        name = join(uri, "model.json")
        try:
            document = json_text.parse(read_bytes(name))
            _check(name, document)
            return dict(document["record"])
        except (KeyError, TypeError, ValueError) as error:
            found = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise ModelError(uri, expected="a raypq model", found=found) from None

    @classmethod
    def load(cls, uri: str) -> ModelFiles:
        """Reads and verifies a model directory.

        Raises:
            ModelError: no model, another format, or content that does not match its fingerprint.
        """
        name = join(uri, "model.json")
        try:
            document = json_text.parse(read_bytes(name))
            _check(name, document)
            tensors = load_tensors(read_bytes(join(uri, "model.safetensors")))
            files = cls(content=document["model"], tensors=tensors, record=document["record"])
            written = str(document["fingerprint"])
        except FileNotFoundError as error:
            raise ModelError(
                uri,
                expected="model.json and model.safetensors",
                found=f"no {error.filename or error}",
            ) from None
        except (KeyError, TypeError, ValueError, NotADirectoryError, SafetensorError) as error:
            found = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise ModelError(uri, expected="a raypq model", found=found) from None
        if files.fingerprint != written:
            raise ModelError(
                uri,
                expected=f"content of fingerprint {written[:12]}",
                found=f"{files.fingerprint[:12]} (the files were changed after training)",
            )
        return files


def _check(name: str, document: Any) -> None:
    """Refuses another format, and unknown keys."""
    if not isinstance(document, dict):
        raise ModelError(name, expected="a raypq model", found=type(document).__name__)
    number = document["format"]
    if number != FORMAT:
        found = str(number)
        if format_version.is_newer(number, FORMAT):
            found += f", {format_version.ADVICE}"
        raise ModelError(name, expected=f"format {FORMAT}", found=found)
    for key in sorted(document.keys() - _KEYS):
        raise ModelError(
            name, expected="a raypq model", found=f"key '{key}', {format_version.ADVICE}"
        )
    for key in ("model", "record"):
        if not isinstance(document[key], dict):
            raise ModelError(
                f"{name}, key '{key}'", expected="a mapping", found=type(document[key]).__name__
            )


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
