"""The models of a code store: ``models/<fingerprint>/``.

Codes cannot be read without their codebooks, so a store holds every model that made some of its
shards. It can be moved, and opened years later, without other files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from raypq.data.class_prototypes import ClassLayer
from raypq.data.model_files import FOLDER, ModelFiles
from raypq.data.storage import exists, join
from raypq.errors import ModelError
from raypq.methods import registry
from raypq.methods.base import Model

CALIBRATION = "calibration"  # in a model's record, from tuning


def folder_of(store: str, fingerprint: str) -> str:
    """The folder of a model in a store."""
    return join(store, FOLDER, fingerprint)


def save(store: str, model: Model) -> None:
    """Saves a model in a store, unless it is there already.

    ``model.json`` is written last and in one step, and two writers of one fingerprint write the
    same arrays, so no reader sees half a model and the order of writers does not matter.
    Calibration and classes (added ones, or a head), which are not part of a fingerprint, are those
    of this model if it has them, or else those of the stored one.
    """
    folder = folder_of(store, model.fingerprint)
    stored = _Stored.load(folder)
    merged = model if stored is None else stored.merged_into(model)
    if stored is None or not stored.equals(merged):
        merged.save(folder)


def completed(store: str, model: Model) -> Model:
    """The model, with calibration and added classes of the stored model where it lacks them.

    A stored head is not taken over, so a job that names the model without it scores without it.
    """
    stored = _Stored.load(folder_of(store, model.fingerprint))
    return model if stored is None or stored.has_head else stored.merged_into(model)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Stored:
    """The parts of a stored model that are not part of its fingerprint."""

    record: Mapping[str, Any]
    layer: ClassLayer | None

    @classmethod
    def load(cls, folder: str) -> Self | None:
        """None where there is no complete model."""
        if not all(exists(join(folder, name)) for name in ("model.json", "model.safetensors")):
            return None
        return cls(record=ModelFiles.read_record(folder), layer=ClassLayer.load(folder))

    @property
    def has_head(self) -> bool:
        """Whether the classes are a linear head."""
        return self.layer is not None and self.layer.head

    def merged_into(self, model: Model) -> Model:
        """The model, with the stored record unless its own has another calibration, and with the
        stored classes unless it has classes itself. The record of a head stays with it."""
        if model.has_head or (self.has_head and model.layer is not None):
            return model
        if self.has_head:
            return model.with_record(self.record, self.layer)
        given, stored = (record.get(CALIBRATION) for record in (model.record, self.record))
        record = self.record if given is None or given == stored else model.record
        return model.with_record(record, model.layer or self.layer)

    def equals(self, model: Model) -> bool:
        """Whether saving the model would change nothing."""
        given, stored = (layer and layer.digest for layer in (model.layer, self.layer))
        return given == stored and model.record.get(CALIBRATION) == self.record.get(CALIBRATION)


def load(store: str, fingerprints: Iterable[str]) -> dict[str, Model]:
    """The stored models of these fingerprints, verified.

    Raises:
        ModelError: one is missing, damaged, or not the model that its folder names.
    """
    models = {}
    for fingerprint in sorted(set(fingerprints)):
        folder = folder_of(store, fingerprint)
        if not exists(join(folder, "model.json")):
            raise ModelError(
                folder,
                expected="the model that made some of the codes (an early store carries none: "
                "name it by raypq classify --model, or encode the shards again)",
                found="no model.json",
            )
        model = registry.load(folder)
        if model.fingerprint != fingerprint:
            raise ModelError(
                folder,
                expected=f"the model {fingerprint[:12]}",
                found=f"the model {model.fingerprint[:12]}",
            )
        models[fingerprint] = model
    return models
