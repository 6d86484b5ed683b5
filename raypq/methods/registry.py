"""Methods by name. A new method is a file in this folder and an entry in ``_CLASSES``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from raypq import kernels
from raypq.config.explain import first_problem
from raypq.config.places import path_of
from raypq.data.class_prototypes import ClassLayer
from raypq.data.format_version import ADVICE, unknown_key
from raypq.data.model_files import ModelFiles
from raypq.data.storage import join
from raypq.errors import ConfigError, ModelError
from raypq.methods.base import Method, Model, ReductionMethod

# The class of each method, in the module of the same name.
_CLASSES = {
    "pq": "PQ",
    "opq": "OPQ",
    "pqzsl": "PQZSL",
    "vq": "VQ",
    "dpq": "DPQ",
    "gpq": "GPQ",
    "eszsl": "ESZSL",
    "sae": "SAE",
    "psr": "PSR",
    "clusterable": "Clusterable",
}


class _Methods(Mapping[str, type[Method]]):
    """The methods; each is imported on first use, since those that train by gradient import torch,
    which takes seconds."""

    def __getitem__(self, name: str) -> type[Method]:
        of_class = _CLASSES[name]
        cls: type[Method] = getattr(import_module(f"raypq.methods.{name}"), of_class)
        kernels.apply_thread_limit()  # if that was the first import of torch
        return cls

    def __contains__(self, name: object) -> bool:
        return name in _CLASSES

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)


METHODS: Mapping[str, type[Method]] = _Methods()

# Keys of model.json.
_CONTENT = {
    "method", "M", "K", "D", "dx", "da", "metric", "settings", "classes", "backbone", "encoder",
}  # fmt: skip


def find(name: str, *, others: Sequence[str] = ()) -> type[Method]:
    """The method called ``name``.

    Args:
        others: further names that the caller knows, for the error.

    Raises:
        ConfigError: there is none; lists the names.
    """
    if name not in METHODS:
        names = ", ".join(sorted([*METHODS, *others]))
        raise ConfigError(f"unknown method {name!r}; expected one of {names}")
    return METHODS[name]


def create(name: str, settings: Mapping[str, Any]) -> Method:
    """A method with validated settings.

    Raises:
        ConfigError: an unknown method, an unknown key, or a bad value.
    """
    cls = find(name)
    return cls(cls.settings_class.parse(settings, origin=f"{name} settings"))


def create_reduction(name: str, settings: Mapping[str, Any]) -> ReductionMethod:
    """As ``create``, for methods that train by reduction only.

    Raises:
        ConfigError: the method trains by gradient.
    """
    method = create(name, settings)
    if not isinstance(method, ReductionMethod):
        raise ConfigError(f"{name} trains by gradient; expected a method by reduction")
    return method


def load(uri: str | os.PathLike[str]) -> Model:
    """Reads a model directory of any method.

    Raises:
        ModelError: it cannot be read, or its method is unknown.
    """
    uri = path_of(uri)
    files = ModelFiles.load(uri)
    name, where = str(files.content.get("method")), join(uri, "model.json")
    if name not in METHODS:
        raise ModelError(
            uri,
            expected=f"a method among {', '.join(sorted(METHODS))}",
            found=f"{name} (if a newer raypq has it: upgrade raypq)",
        )
    for key in sorted(files.content.keys() - _CONTENT):
        raise ModelError(where, expected="a raypq model", found=f"key 'model.{key}', {ADVICE}")
    cls = METHODS[name]
    try:
        settings = cls.settings_class.model_validate(files.content["settings"])
        model = cls.model_class.from_files(files, settings, ClassLayer.load(uri))
        model.check(where)
        return model
    except ValidationError as error:
        raise ModelError(
            f"{where}, settings",
            expected=f"settings of {name}",
            found=unknown_key(error) or first_problem(cls.settings_class, error),
        ) from None
    except (KeyError, TypeError, AttributeError, IndexError) as error:  # not written by ``save``
        raise ModelError(
            where,
            expected=f"a model of {name}",
            found=f"no key 'model.{error.args[0]}'" if isinstance(error, KeyError) else str(error),
        ) from None
