"""The models of a code store, kept beside its codes: ``models/<fingerprint>/``.

A code means nothing without its codebooks, so a store carries every model that made some of its
shards. It can be moved, or opened years later, with nothing else at hand.
"""

from __future__ import annotations

from collections.abc import Iterable

from raypq.data.models import FOLDER
from raypq.data.storage import exists, join
from raypq.errors import ModelError
from raypq.methods import registry
from raypq.methods.base import Model


def place(store: str, fingerprint: str) -> str:
    """Where a store keeps the model of a fingerprint."""
    return join(store, FOLDER, fingerprint)


def keep(store: str, model: Model) -> None:
    """Puts a model beside the codes, unless it is there already.

    ``model.json`` is written last and whole, and two writers of one fingerprint write the same
    bytes: nobody can see half a model, and no order of writers does harm.
    """
    where = place(store, model.fingerprint)
    if not exists(join(where, "model.json")):
        try:
            model.save(where)
        except OSError as error:  # that of a write does not say what was written
            raise type(error)(error.errno, error.strerror, where) from error


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
                "name the model with --model)",
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
