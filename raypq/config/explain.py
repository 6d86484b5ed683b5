"""Error texts of settings: the key, the expected value and the one found."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

_LONGEST = 100  # characters of a value that an error shows
_BOUNDS = (
    ("ge", "greater than or equal to"),
    ("gt", "greater than"),
    ("le", "less than or equal to"),
    ("lt", "less than"),
)
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    dict: "a mapping of keys to values",
    Mapping: "a mapping of keys to values",
    type(None): "nothing",
}


class Refused:
    """A value that pydantic would convert to another type; errors show it unconverted."""

    def __init__(self, value: Any) -> None:
        self.value = value


def explain(
    cls: type[BaseModel],
    error: ValidationError,
    origin: str,
    *,
    names: Mapping[str, str] | None = None,
    where: Mapping[tuple[str, ...], str] | None = None,
) -> str:
    """One line for each wrong key: expected and found.

    Args:
        names: names of keys (of a section: ``section.key``) at the origin, such as options.
        where: the origin of single paths of keys, such as a file and line.
    """
    lines: dict[str, None] = {}
    for item in error.errors(include_url=False):
        path, problem = _problem(cls, item, names or {})
        lines[f"{_nearest(where or {}, path) or origin}: {problem}"] = None
    return "\n".join(lines)


def first_problem(cls: type[BaseModel], error: ValidationError) -> str:
    """What is wrong with a file's content, of which ``cls`` is the form: the first such key, what
    was expected, and what was found."""
    item = error.errors(include_url=False)[0]
    if not item["loc"] and item["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"expected a mapping of keys to values, found {shown(item['input'])}"
    return _problem(cls, item, {})[1]


def _nearest(where: Mapping[tuple[str, ...], str], path: tuple[str, ...]) -> str | None:
    """The origin of a path of keys, or of the nearest one above it."""
    above = (path[:length] for length in range(len(path), 0, -1))
    return next((where[at] for at in above if at in where), None)


def _problem(
    cls: type[BaseModel], item: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[tuple[str, ...], str]:
    """The path of a wrong key, and the problem."""
    loc, kind = tuple(item["loc"]), str(item["type"])
    whole = tuple(str(part) for part in loc)
    dotted = ".".join(whole)
    if kind == "extra_forbidden":
        owner = _section(cls, loc[:-1])
        verb = getattr(cls, "verb", "")
        key = f"unknown key '{dotted}'{f' of {verb}' if verb else ''}"
        return whole, f"{key}; allowed: {', '.join(sorted(owner.model_fields))}"
    if kind == "missing":
        missing = names.get(dotted, f"key '{dotted}'")
        return whole[:-1], f"{missing} is required"
    path, annotation, metadata = _follow(cls, loc)
    key = _name(path, names) or f"key '{'.'.join(path)}'"
    if kind == "value_error":  # the message of a validator
        return path, f"{key}: {item['ctx']['error']}" if path else str(item["ctx"]["error"])
    value = shown(item["input"])
    if kind == "invalid_key" or "[key]" in loc:
        inside = f"{key}: " if path else ""
        return path, f"{inside}expected text as a key, found {value}"
    if annotation is None:
        return path, f"{item['msg']}, found {value}"
    expected = expectation(annotation, metadata)
    return path, f"{key}: expected {expected}, found {value}{_hint(annotation, item)}"


def _name(path: tuple[str, ...], names: Mapping[str, str]) -> str | None:
    above = (".".join(path[:length]) for length in range(len(path), 0, -1))
    return next((names[key] for key in above if key in names), None)


def _hint(annotation: Any, item: Mapping[str, Any]) -> str:
    value = item["input"].value if isinstance(item["input"], Refused) else item["input"]
    kinds = set(options(annotation))
    if str in kinds and isinstance(value, int | float):
        return "; put it in quotes if it is text"
    if value is None:
        return "; give it a value, or leave the key out for its default"
    if isinstance(value, list | tuple) and len(value) == 1 and str in kinds:
        return "; write it without the brackets"
    return ""


def shown(value: Any) -> str:
    """A value as an error shows it: shortened, with its type unless that is obvious."""
    if isinstance(value, Refused):
        value = value.value
    text = repr(value)
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}…"
    if value is None or isinstance(value, str | int | float):
        return text
    kinds: dict[type, str] = {dict: "a mapping", list: "a list", tuple: "a list"}
    return f"{text} ({kinds.get(type(value), type(value).__name__)})"


def options(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows: unions split, notes removed."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from options(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from options(part)
    else:
        yield annotation


def expectation(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """The allowed values of an annotation in words, with bounds."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return expectation(parts[0], [*parts[1:], *metadata])
    if origin in (Union, types.UnionType):
        words = [expectation(part, metadata) for part in parts if part is not type(None)]
        absent = ["nothing"] if type(None) in parts else []
        return " or ".join([*words, *absent])
    if origin is Literal:
        names = [repr(part) for part in parts]
        return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
    bounds = _bounds(metadata)
    if origin in (list, tuple):
        return _list_of(parts, bounds)
    known = origin or annotation
    if isinstance(known, type) and issubclass(known, BaseModel):
        keys = ", ".join(sorted(known.model_fields))
        return f"a mapping with keys of {keys}"
    word = _WORDS.get(known, getattr(known, "__name__", str(known)))
    if known is str and bounds.get("min_length"):
        return "text that is not empty"
    limits = [f"{words} {bounds[name]}" for name, words in _BOUNDS if name in bounds]
    return " ".join([word, " and ".join(limits)]) if limits else word


def _list_of(parts: Sequence[Any], bounds: Mapping[str, Any]) -> str:
    low, high = bounds.get("min_length"), bounds.get("max_length")
    count = ""
    if low is not None:
        count = f"{low} " if low == high else f"at least {low} "
    kind = next((part for part in parts if part is not Ellipsis), str)
    return f"a list of {count}value{'' if low == 1 else 's'}, each {expectation(kind)}"


def _bounds(metadata: Sequence[Any]) -> dict[str, Any]:
    bounds: dict[str, Any] = {}
    for note in metadata:
        if isinstance(note, FieldInfo):
            bounds |= _bounds(note.metadata)
            continue
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length"):
            if getattr(note, name, None) is not None:
                bounds[name] = getattr(note, name)
    return bounds


def _follow(cls: type[BaseModel], loc: Sequence[Any]) -> tuple[tuple[str, ...], Any, Sequence[Any]]:
    """The path of keys of a pydantic ``loc``, and the annotation of the last one.

    A ``loc`` also names the part of a union that was tried; a path does not.
    """
    path: list[str] = []
    annotation: Any = cls
    metadata: Sequence[Any] = ()
    for part in loc:
        step = _step(annotation, part)
        if step is None:
            continue
        annotation, metadata = step
        path.append(str(part))
    return tuple(path), annotation if path else None, metadata


def _step(annotation: Any, part: Any) -> tuple[Any, Sequence[Any]] | None:
    for kind in options(annotation):
        origin, parts = get_origin(kind), get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if part in kind.model_fields:
                field = kind.model_fields[part]
                return field.annotation, field.metadata
        elif origin in (list, tuple) and isinstance(part, int) and parts:
            return parts[0], ()
        elif origin in (dict, Mapping) and len(parts) == 2 and part != "[key]":
            return parts[1], ()
    return None


def _section(cls: type[BaseModel], loc: Sequence[Any]) -> type[BaseModel]:
    """The settings class at a path, through lists, mappings and sections."""
    _, annotation, _ = _follow(cls, loc)
    for kind in options(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return cls
