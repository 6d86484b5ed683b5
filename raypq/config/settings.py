"""Base classes of all settings: immutable, with errors that name the key."""

from __future__ import annotations

import numbers
import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from raypq.config.explain import Refused, explain, options
from raypq.config.reading import NUMBER, lost
from raypq.errors import ConfigError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)  # it has no public name

Precision = Literal["fp32", "bf16"]
Metric = Literal["l2", "cosine", "dot"]
Distance = Literal["adc", "sdc"]
Positive = Annotated[int, Field(ge=1)]
# What platforms take, for numbers that reach them: threads, processes, sleeps, memory.
Threads = Annotated[int, Field(ge=1, le=65_536)]
Workers = Annotated[int, Field(ge=1, le=1_000_000)]
MAX_SECONDS = 604_800.0  # a week

T = TypeVar("T", bound=BaseModel)

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_SWITCHES = {
    **dict.fromkeys(("true", "yes", "y", "on"), True),
    **dict.fromkeys(("false", "no", "n", "off"), False),
}


class Settings(BaseModel):
    """Base of all settings and records: immutable, no unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )

    @classmethod
    def parse(
        cls,
        values: Mapping[str, Any],
        *,
        origin: str = "settings",
        names: Mapping[str, str] | None = None,
    ) -> Self:
        """Builds the settings from plain values.

        Args:
            origin: where the values come from, for errors.
            names: names of keys at the origin, where they differ.

        Raises:
            ConfigError: naming the key, the value and what is allowed.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            where = getattr(values, "where", {})
            raise ConfigError(explain(cls, error, origin, names=names or {}, where=where)) from None


class _Explained(ModelMetaclass):
    """Metaclass: the constructor raises ``ConfigError`` instead of pydantic's error."""

    def __call__(cls: type[T], *args: Any, **values: Any) -> T:  # type: ignore[misc]  # noqa: N805
        try:
            return cast(T, super().__call__(*args, **values))  # type: ignore[misc]
        except ValidationError as error:
            raise ConfigError(explain(cls, error, cls.__name__)) from None


class UserSettings(Settings, metaclass=_Explained):
    """Settings that users write, in Python, in files and on the command line.

    Values are not converted between types: true is not a number, 1 is not text. A path may be any
    ``os.PathLike``, and a single value is accepted where a list is expected.

    Raises:
        ConfigError: naming the key, what was expected and what was found.
    """

    @model_validator(mode="before")
    @classmethod
    def _convert(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {
            key: _read(value, cls.model_fields[key].annotation)
            if key in cls.model_fields
            else value
            for key, value in values.items()
        }


def _read(value: Any, annotation: Any) -> Any:
    """The value for a field of this annotation; ``Refused`` where pydantic would convert it to
    another meaning."""
    kinds = list(options(annotation))
    if Any in kinds or value is None or isinstance(value, BaseModel):
        return value
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    lists = [kind for kind in kinds if get_origin(kind) in (list, tuple)]
    if lists:
        (element, *rest) = get_args(lists[0])
        if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
            return [_read(item, element) for item in value]
        single = _read(value, element)
        plain = isinstance(single, str | int | float) and not isinstance(single, bool)
        fixed = rest and rest != [Ellipsis]
        return [single] if plain and not fixed else _refused(value)
    if isinstance(value, str):
        return _read_text(value, kinds)
    if isinstance(value, numbers.Number) or _is_bool(value):
        return _read_number(value, kinds)
    if isinstance(value, bytes | bytearray):
        return Refused(value)
    return value


def _refused(value: Any) -> Any:
    """Mappings pass: a single section is accepted for a list of sections (``classify``)."""
    return value if isinstance(value, Mapping) else Refused(value)


def _read_text(text: str, kinds: list[Any]) -> Any:
    named = {part for kind in kinds if get_origin(kind) is Literal for part in get_args(kind)}
    if str in kinds or text in named:
        return text
    if bool in kinds:
        return _SWITCHES.get(text.lower(), Refused(text))
    if int in kinds or float in kinds:
        if not NUMBER.fullmatch(text):
            return Refused(text)
        if _INTEGER.fullmatch(text):
            return int(text)
        return Refused(text) if lost(text, float(text)) else float(text)
    return text


def _read_number(value: Any, kinds: list[Any]) -> Any:
    if _is_bool(value):
        return bool(value) if bool in kinds else Refused(value)
    if bool in kinds and value not in (0, 1):
        return Refused(value)
    if type(value) in (int, float):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else Refused(value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # NumPy's too
