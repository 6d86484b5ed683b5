"""The identity of a backbone, in feature files and models.

Codes of features from two networks cannot be compared, nor those of one network with two
preprocessings. So the identity of a backbone is a digest of its weights and of everything that is
done to an image. ``raypq extract`` writes it to the feature column, and a model has that of the
features that it was trained on.
"""

from __future__ import annotations

import hashlib
import json
from typing import Self

import pyarrow as pa
from pydantic import ValidationError

from raypq.config import Interpolation, NetworkPrecision, Settings
from raypq.data.storage import json_text
from raypq.errors import InputError, ModelError

_NOTE = b"raypq.backbone"  # metadata of a feature field
_VERSION = 1  # of decoding and preprocessing: features of another version are others


class BackboneInfo(Settings):
    """What identifies the features of a network.

    Attributes:
        name: as the job gives it; not part of the fingerprint.
        weights: sha256 of the network's weights.
        size, resize: pixels; see ``ImageInput``. Of a raypq model, ``resize`` is 0.
        version: of raypq's decoding and preprocessing.
    """

    name: str
    weights: str
    size: int
    resize: int
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    precision: NetworkPrecision = "fp32"
    version: int = _VERSION

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that features depend on."""
        content = self.model_dump(mode="json", exclude={"name"})
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.name} ({self.fingerprint[:12]})"

    def difference(self, other: BackboneInfo) -> str:
        """In what two backbones differ, for an error."""
        names = [
            name
            for name in type(self).model_fields
            if name not in ("name", "weights") and getattr(self, name) != getattr(other, name)
        ]
        parts = ["other weights"] if self.weights != other.weights else []
        parts += [
            f"{name} {getattr(other, name)} instead of {getattr(self, name)}" for name in names
        ]
        return ", ".join(parts)

    @property
    def note(self) -> dict[bytes, bytes]:
        """Metadata of the feature field."""
        return {_NOTE: self.model_dump_json().encode()}

    @classmethod
    def of(cls, field: pa.Field, *, where: str) -> Self | None:
        """The backbone that a feature field names; None if it names none.

        Raises:
            InputError: metadata that this version cannot read.
        """
        note = (field.metadata or {}).get(_NOTE)
        if note is None:
            return None
        try:
            return cls.model_validate(json_text.parse(note))
        except (ValidationError, ValueError):
            raise InputError(
                where,
                expected=f"metadata {_NOTE.decode()} of this version of raypq",
                found=f"{note[:80].decode(errors='replace')}; upgrade raypq",
            ) from None


def check_equal(expected: BackboneInfo | None, found: BackboneInfo | None, *, where: str) -> None:
    """Refuses features of another backbone than that of a model; without one of them, nothing is
    known.

    Raises:
        ModelError: naming both, and in what they differ.
    """
    if expected is None or found is None or expected.fingerprint == found.fingerprint:
        return
    raise ModelError(
        where,
        expected=f"features of the backbone that the model was trained on, {expected}",
        found=f"those of {found}: {expected.difference(found)}",
    )
