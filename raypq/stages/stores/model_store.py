"""The models of a code store: ``models/<fingerprint>/``.

A code means nothing without its codebooks, so a store carries every model that made some of its
shards. It can be moved, or opened years later, with nothing else at hand.
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


def place(store: str, fingerprint: str) -> str:
    """Where a store keeps the model of a fingerprint."""
    return join(store, FOLDER, fingerprint)


def keep(store: str, model: Model) -> None:
    """Puts a model beside the codes, unless it is there already.

    ``model.json`` is written last and whole, and two writers of one fingerprint write the same
    arrays: nobody can see half a model, and no order of writers does harm. What is no part of a
    fingerprint, calibration and added classes, is taken over from the model that came last and has
    it: a model that was tuned later is the one that made the codes.
    """
    where = place(store, model.fingerprint)
    try:
        twin = _Twin.at(where)
        whole = model if twin is None else twin.joined(model)
        if twin is None or not twin.is_like(whole):
            whole.save(where)
    except OSError as error:  # that of a write does not say what was written
        if error.filename is not None:
            raise
        raise type(error)(error.errno, error.strerror, where) from error


def completed(store: str, model: Model) -> Model:
    """A model with what its twin beside the codes has and it lacks: calibration, added classes."""
    twin = _Twin.at(place(store, model.fingerprint))
    return model if twin is None else twin.joined(model)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Twin:
    """What a store holds of a model beside its arrays, which are those of the fingerprint."""

    record: Mapping[str, Any]
    layer: ClassLayer | None

    @classmethod
    def at(cls, where: str) -> Self | None:
        """None where there is no model, or not all of one."""
        if not all(exists(join(where, name)) for name in ("model.json", "model.safetensors")):
            return None
        return cls(record=ModelFiles.read_record(where), layer=ClassLayer.load(where))

    def joined(self, model: Model) -> Model:
        """The model with the record of the one that is tuned (of two, its own), and with the
        classes that were added to it, or else to the twin."""
        mine, its = (record.get(CALIBRATION) for record in (model.record, self.record))
        record = self.record if mine is None or mine == its else model.record
        return model.with_record(record, model.layer or self.layer)

    def is_like(self, model: Model) -> bool:
        """Whether nothing would change if the model took its place."""
        mine, its = (one and one.digest for one in (model.layer, self.layer))
        return mine == its and model.record.get(CALIBRATION) == self.record.get(CALIBRATION)


def load(store: str, fingerprints: Iterable[str]) -> dict[str, Model]:
    """The models of these fingerprints, each verified.

    Raises:
        ModelError: one is not there, is damaged, or is not the model that its place names.
    """
    models = {}
    for fingerprint in sorted(set(fingerprints)):
        where = place(store, fingerprint)
        if not exists(join(where, "model.json")):
            raise ModelError(
                where,
                expected="the model that made some of the codes (an early store carries none: "
                "name it by raypq classify --model, or encode the shards again)",
                found="no model.json",
            )
        model = registry.load(where)
        if model.fingerprint != fingerprint:
            raise ModelError(
                where,
                expected=f"the model {fingerprint[:12]}",
                found=f"the model {model.fingerprint[:12]}",
            )
        models[fingerprint] = model
    return models
