"""The identity of the networks that made features and class embeddings, in files and models.

Codes of features from two networks cannot be compared, nor those of one network with two
preprocessings; the same holds for class embeddings. So the identity of a network is a digest of its
weights and of everything that is done to its input. ``raypq extract`` and ``raypq embed-classes``
write it to the column that they make, and a model has that of the columns that it was trained on.
"""

from __future__ import annotations

import hashlib
import json
from typing import ClassVar, Self, TypeVar

import pyarrow as pa
from pydantic import Field, ValidationError

from raypq.config import Interpolation, NetworkPrecision, Scaling, Settings
from raypq.data.storage import json_text
from raypq.errors import InputError, ModelError

T = TypeVar("T", bound=Settings)

_LOGITS = b"raypq.logits"
_VERSION = 1  # of decoding and preprocessing: features of another version are others


def _read(kind: type[T], note: bytes, key: str, where: str) -> T:
    try:
        return kind.model_validate(json_text.parse(note))
    except (ValidationError, ValueError):
        raise InputError(
            where,
            expected=f"metadata {key} of this version of raypq",
            found=f"{note[:80].decode(errors='replace')}; upgrade raypq",
        ) from None


class NetworkInfo(Settings):
    """What identifies the vectors of a network.

    Attributes:
        name: as the job gives it; not part of the fingerprint.
        weights: sha256 of the network's weights.
        version: of what raypq does to the input.
    """

    kind: ClassVar[str]
    """``backbone`` or ``encoder``."""
    vectors: ClassVar[str]
    """What the network makes, for errors."""

    name: str
    weights: str
    version: int = _VERSION

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that the vectors depend on."""
        text = json.dumps(self.content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def content(self) -> dict[str, object]:
        """Everything but the name, as plain JSON values."""
        return self.model_dump(mode="json", exclude={"name"})

    def __str__(self) -> str:
        return f"{self.name} ({self.fingerprint[:12]})"

    def difference(self, other: NetworkInfo) -> str:
        """In what another network differs from this one, for an error."""
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
        """Metadata of the field of a column that the network made."""
        return {self._key(): self.model_dump_json().encode()}

    @classmethod
    def _key(cls) -> bytes:
        return f"raypq.{cls.kind}".encode()

    @classmethod
    def of(cls, field: pa.Field, *, where: str) -> Self | None:
        """The network that a field names; None if it names none.

        Raises:
            InputError: metadata that this version cannot read.
        """
        note = (field.metadata or {}).get(cls._key())
        return None if note is None else _read(cls, note, cls._key().decode(), where)


class BackboneInfo(NetworkInfo):
    """A network for images.

    Attributes:
        size, resize: pixels; see ``ImageInput``. Of a raypq model, ``resize`` is 0.
    """

    kind: ClassVar[str] = "backbone"
    vectors: ClassVar[str] = "features"

    size: int
    resize: int
    interpolation: Interpolation
    scaling: Scaling = "shortest"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    precision: NetworkPrecision = "fp32"


class EncoderInfo(NetworkInfo):
    """A network for the names of classes.

    Attributes:
        templates: of the texts that a name is put into. pooling: of the tokens of a text.
    """

    kind: ClassVar[str] = "encoder"
    vectors: ClassVar[str] = "class embeddings"

    templates: tuple[str, ...]
    pooling: str


class Logits(Settings):
    """How an encoder was trained to make logits of cosines; not part of its identity."""

    scale: float = Field(gt=0)
    bias: float = 0.0

    @property
    def note(self) -> dict[bytes, bytes]:
        """Metadata of the field of class embeddings."""
        return {_LOGITS: self.model_dump_json().encode()}

    @classmethod
    def of(cls, field: pa.Field, *, where: str) -> Self | None:
        """What a field says; None if it says nothing.

        Raises:
            InputError: metadata that this version cannot read.
        """
        note = (field.metadata or {}).get(_LOGITS)
        return None if note is None else _read(cls, note, _LOGITS.decode(), where)


def check_aligned(
    backbone: BackboneInfo | None, encoder: EncoderInfo | None, *, where: str
) -> None:
    """Refuses class embeddings of another network than that of the features, for a model without a
    class projection; without one of them, nothing is known.

    Raises:
        ModelError: naming both.
    """
    if backbone is not None and encoder is not None and backbone.weights != encoder.weights:
        raise ModelError(
            where,
            expected=f"class embeddings of the network of the features, {backbone}, since there is "
            "no class projection",
            found=f"those of {encoder}",
        )


def check_equal(expected: NetworkInfo | None, found: NetworkInfo | None, *, where: str) -> None:
    """Refuses vectors of another network than those that a model was trained on; without one of
    them, nothing is known.

    Raises:
        ModelError: naming both, and in what they differ.
    """
    if expected is None or found is None or expected.fingerprint == found.fingerprint:
        return
    raise ModelError(
        where,
        expected=f"{expected.vectors} of the {expected.kind} that the model was trained on, "
        f"{expected}",
        found=f"those of {found}: {expected.difference(found)}",
    )
