"""Stored class prototypes of a model: ``classes.safetensors`` + ``classes.json``.

They are in the model's folder but not part of its fingerprint: codes do not depend on them, so
classes can be added to a model without encoding again. They are prototypes of class embeddings
(``raypq add-classes``), or a *head*: the weights of a linear classifier (``raypq train linear``).
A raypq that does not know heads refuses one, because its digest includes the kind.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from raypq.data.format_version import ADVICE
from raypq.data.storage import exists, join, json_text, read_bytes, write_bytes
from raypq.errors import ModelError

Prototypes = tuple[NDArray[np.float32], NDArray[np.float64]]
_NAME, _TENSORS = "classes.json", "classes.safetensors"
_TRIES, _PAUSE = 3, 0.1  # seconds
_HEAD = "head"  # value of the key ``kind``, which prototypes of embeddings lack


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassLayer:
    """Classes by class_id, with their embeddings E [T, da], prototypes V [T, D] and bias [T].

    Attributes:
        head: whether they are a linear classifier of decoded codes. Its scores are V·q + bias, its
            classes are known by class_id alone, and E is [T, 0].
    """

    ids: tuple[str, ...]
    E: NDArray[np.float32]
    V: NDArray[np.float32]
    bias: NDArray[np.float64]
    head: bool = False

    @classmethod
    def of_head(cls, ids: Sequence[str], V: NDArray[np.float32], bias: NDArray[np.float64]) -> Self:
        """A head: weights V [T, D] and bias [T] of the classes."""
        E = np.empty((len(ids), 0), np.float32)
        return cls(ids=tuple(ids), E=E, V=V, bias=bias, head=True)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.ids)}

    @cached_property
    def digest(self) -> str:
        """sha256 of the content."""
        sha256 = hashlib.sha256("\n".join(self.ids).encode())
        for array in (self.E, self.V, self.bias):
            sha256.update(np.ascontiguousarray(array).tobytes())
        if self.head:
            sha256.update(_HEAD.encode())
        return sha256.hexdigest()

    def find(self, ids: Sequence[str], E: NDArray[np.float32] | None) -> Prototypes | None:
        """V [n, D] and bias [n] of n classes.

        None if a class is missing, or its stored embedding differs from ``E`` [n, da]. A head
        ignores ``E``.
        """
        if self.missing(ids):
            return None
        rows = np.array([self._index[name] for name in ids], np.int64)
        if E is not None and not self.head and not np.array_equal(self.E[rows], E):
            return None
        return self.V[rows], self.bias[rows]

    def missing(self, ids: Sequence[str]) -> list[str]:
        """The class_ids that it lacks."""
        return [name for name in ids if name not in self._index]

    def joined(
        self, ids: Sequence[str], E: NDArray[np.float32]
    ) -> tuple[tuple[str, ...], NDArray[np.float32]]:
        """Ids and embeddings [n, da] of the stored classes and further ones.

        A class in both gets the new embedding.
        """
        new = set(ids)
        kept = [index for index, name in enumerate(self.ids) if name not in new]
        names = tuple(self.ids[index] for index in kept) + tuple(ids)
        return names, np.concatenate([self.E[kept], E])

    def save(self, uri: str) -> None:
        """Writes the files into a model directory."""
        tensors: dict[str, NDArray[Any]] = {"E": self.E, "V": self.V, "bias": self.bias}
        write_bytes(
            join(uri, _TENSORS),
            save_tensors({name: np.ascontiguousarray(array) for name, array in tensors.items()}),
        )
        document = {"ids": list(self.ids), "digest": self.digest}
        document |= {"kind": _HEAD} if self.head else {}
        write_bytes(join(uri, _NAME), json.dumps(document, indent=1).encode())

    @classmethod
    def load(cls, uri: str) -> Self | None:
        """The stored classes of a model directory, or None.

        Raises:
            ModelError: they cannot be read, or are not as they were written.
        """
        if not exists(join(uri, _NAME)):
            return None
        for _ in range(_TRIES - 1):
            with suppress(ModelError):
                return cls._read(uri)
            time.sleep(_PAUSE)  # another process may have written one of the two files
        return cls._read(uri)

    @classmethod
    def _read(cls, uri: str) -> Self:
        try:
            document = json_text.parse(read_bytes(join(uri, _NAME)))
            tensors = load_tensors(read_bytes(join(uri, _TENSORS)))
            layer = cls(
                ids=tuple(document["ids"]),
                E=tensors["E"],
                V=tensors["V"],
                bias=tensors["bias"],
                head=_is_head(document, uri),
            )
            written = str(document["digest"])
        except (FileNotFoundError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ModelError(
                join(uri, _NAME), expected="the classes of a model", found=str(error)
            ) from None
        if layer.digest != written:
            raise ModelError(
                join(uri, _NAME),
                expected=f"content of digest {written[:12]}",
                found=f"{layer.digest[:12]} (the files were changed)",
            )
        return layer


def _is_head(document: dict[str, Any], uri: str) -> bool:
    kind = document.get("kind")
    if kind not in (None, _HEAD):
        raise ModelError(
            f"{join(uri, _NAME)}, key 'kind'", expected=f"'{_HEAD}', or no such key",
            found=f"{kind!r}, {ADVICE}",
        )  # fmt: skip
    return kind == _HEAD
