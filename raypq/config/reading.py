"""Config files and ``key=value`` pairs, read by the rules of YAML 1.2.

``no``, ``12:30`` and dates are text, ``1e4`` is a number. A duplicate key, a number with a leading
zero and a tag without a plain value are errors that name the line.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from raypq.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_PLAIN = "!plain"  # a scalar without quotes and without a tag of its own
_DEEPEST = 64  # levels of sections in sections
_NULL = re.compile(r"|~|null|Null|NULL")
_BOOL = re.compile(r"(true|True|TRUE)|false|False|FALSE")
_INT = re.compile(r"[-+]?(?:[0-9]+|[0-9]{1,3}(?:_[0-9]{3})+)|0o[0-7]+|0x[0-9a-fA-F]+")
NUMBER = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")


class FromFile(dict[str, Any]):
    """The mapping of a config file.

    Attributes:
        where: the file and line of each path of keys.
    """

    def __init__(
        self, values: Mapping[str, Any], where: Mapping[tuple[str, ...], str] | None = None
    ) -> None:
        super().__init__(values)
        self.where = dict(where or {})

    def with_options(self, options: Mapping[tuple[str, ...], Any], origin: str) -> FromFile:
        """The mapping with options over its values; a mapping is merged key by key.

        Args:
            options: values by path of keys.
            origin: where the options come from, for errors.
        """
        merged = FromFile(self, self.where)
        for path, value in options.items():
            section: dict[str, Any] = merged
            for key in path[:-1]:
                inner = section.get(key, {})
                if not isinstance(inner, dict):
                    break  # refused with the rest
                section[key] = inner = dict(inner)
                section = inner
            else:
                merged._set(section, path, value, origin)
        return merged

    def _set(self, section: dict[str, Any], path: tuple[str, ...], value: Any, origin: str) -> None:
        before = section.get(path[-1])
        if isinstance(value, dict) and isinstance(before, dict):
            for key, item in value.items():
                section[path[-1]] = {**section[path[-1]], key: item}
                self._forget((*path, key), origin)
            return
        section[path[-1]] = value
        self._forget(path, origin)

    def _forget(self, path: tuple[str, ...], origin: str) -> None:
        self.where = {at: line for at, line in self.where.items() if at[: len(path)] != path}
        self.where[path] = origin

    def section(self, key: str) -> FromFile:
        """A mapping in it, with its lines; empty where there is none."""
        values = self.get(key, {})
        where = {at[1:]: line for at, line in self.where.items() if at[0] == key and at[1:]}
        return FromFile(values if isinstance(values, dict) else {}, where)

    def below(self, key: str) -> FromFile:
        """A mapping with this one as its only section."""
        return FromFile({key: dict(self)}, {(key, *at): line for at, line in self.where.items()})


def read_mapping(path: str | os.PathLike[str]) -> FromFile:
    """Reads a YAML or JSON file that holds one mapping.

    Raises:
        ConfigError: the file is missing, is neither YAML nor JSON, is not a mapping, or has an
            ambiguous value; the line is named.
    """
    where = os.fspath(path)
    try:
        # With or without a byte order mark.
        text = Path(os.path.expanduser(where)).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{where}: cannot read the config: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not a valid config: expected UTF-8 text, {error}") from None
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"{where!r}: cannot read the config: {error}") from None
    lines: dict[tuple[str, ...], int] = {}
    try:
        if where.lower().endswith(".json"):
            values = _read_json(text, where)
        else:
            values = _read_yaml(text, where, lines)
    except RecursionError:
        raise ConfigError(f"{where}: not a valid config: nested too deeply") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{where}: expected a mapping, found {type(values).__name__}; write 'key: value' lines"
        )
    return FromFile(values, {path: f"{where}, line {line}" for path, line in lines.items()})


def parse_assignments(
    pairs: Sequence[str], *, replaced: Callable[[str, Any, Any], None] | None = None
) -> dict[str, Any]:
    """Turns ``key=value`` strings into a mapping; values are read as those of a config file.

    Args:
        replaced: called with the key, the new and the old value when a key is given again with
            another value; the last one counts.

    Raises:
        ConfigError: no key, or an ambiguous value.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        key = key.strip()
        if not separator or not key:
            raise ConfigError(f"--set {pair!r}: expected key=value")
        value = _assigned(text.strip(), f"--set {key}")
        if replaced and key in values and values[key] != value:
            replaced(key, value, values[key])
        values[key] = value
    return values


def _assigned(text: str, where: str) -> Any:
    if text[:1] in ("[", "{", '"', "'"):
        try:
            return _Document(where, text).value()
        except yaml.YAMLError:
            return text
    return _scalar(text, lambda problem: _fail(where, problem))


def _fail(where: str, problem: str) -> NoReturn:
    raise ConfigError(f"{where}: {problem}")


def _scalar(text: str, fail: Callable[[str], NoReturn]) -> Any:
    """The value of an unquoted scalar."""
    if _NULL.fullmatch(text):
        return None
    if match := _BOOL.fullmatch(text):
        return bool(match[1])
    if _LEADING_ZERO.fullmatch(text):
        plain = text.lstrip("+-0_") or "0"
        fail(
            f"{text} has a leading zero, which some read as octal: write {plain}, 0o{plain} for "
            f"octal, or '{text}' in quotes for text"
        )
    if _INT.fullmatch(text):
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        try:
            return int(text.removeprefix("0o") if base == 8 else text, base)
        except ValueError:  # thousands of digits
            fail(f"a number of {len(text)} digits; put it in quotes if it is text")
    if NUMBER.fullmatch(text):
        number = float(text)
        if problem := lost(text, number):
            fail(f"{problem}; put it in quotes if it is text")
        return number
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", "", 1))
    return text


def lost(text: str, number: float) -> str | None:
    """The problem with a decimal that overflowed to infinity or underflowed to 0, if any."""
    if math.isinf(number):
        return f"{text} is larger than any number here"
    if not number and re.search("[1-9]", re.split("[eE]", text)[0]):
        return f"{text} is smaller than any number here but 0; write 0 if that is meant"
    return None


def _read_yaml(text: str, where: str, lines: dict[tuple[str, ...], int] | None = None) -> Any:
    document = _Document(where, text)
    try:
        value = document.value()
        if lines is not None:
            lines.update(document.lines)
        return value
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join(part for part in (error.context, error.problem) if part)
        if "'\\t'" in problem:
            problem += "; indent with spaces, not with tabs"
        elif "mapping values are not allowed" in problem:
            problem += "; put a value that has ': ' in it in quotes, and check the indentation"
        elif "expected a single document" in problem:
            problem = "expected one document, found another one behind '---'; use a file for each"
        raise ConfigError(f"{where}{line}: not a valid config: {problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not a valid config: {error}") from None


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """PyYAML's parser; ``_Document`` interprets the scalars."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute


_Loader.add_implicit_resolver(_PLAIN, re.compile(r"(?s:.*)"), None)


class _Document:
    """One YAML document as plain values: dict, list, str, int, float, bool, None."""

    def __init__(self, where: str, text: str) -> None:
        self._where, self._text = where, text
        # Limit on the values that aliases expand to.
        self._left = 10_000 + 10 * len(text)
        self._open: set[int] = set()
        self.lines: dict[tuple[str, ...], int] = {}

    def value(self) -> Any:
        """The value of the whole document, None for an empty one.

        Raises:
            ConfigError: an ambiguous value, or one of no plain type.
            yaml.YAMLError: invalid YAML.
        """
        loader = _Loader(self._text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
        return None if root is None else self._value(root, ())

    def _fail(self, node: yaml.Node, problem: str) -> NoReturn:
        raise ConfigError(f"{self._where}, line {node.start_mark.line + 1}: {problem}")

    def _value(self, node: yaml.Node, place: tuple[str, ...]) -> Any:
        self._left -= 1
        if self._left < 0:
            self._fail(node, "not a valid config: its aliases repeat too much; write it out")
        if len(self._open) >= _DEEPEST:
            self._fail(node, "not a valid config: nested too deeply")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self._open:
            self._fail(node, "not a valid config: an alias inside of what it stands for")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                self._tagged(node, "map")
                return self._mapping(node, place)
            self._tagged(node, "seq")
            return [
                self._value(item, (*place, str(number))) for number, item in enumerate(node.value)
            ]
        finally:
            self._open.discard(id(node))

    def _tagged(self, node: yaml.Node, kind: str) -> None:
        if node.tag != _TAG + kind:
            self._fail(node, f"not a valid config: unknown tag {node.tag!r}; use plain values")

    def _mapping(self, node: yaml.MappingNode, place: tuple[str, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[Hashable, int] = {}
        for key_node, value_node in node.value:
            merging = key_node.tag == _PLAIN and key_node.value == "<<"
            key = "<<" if merging else self._key(key_node)
            named = ".".join((*place, key))
            if (key, merging) in lines:
                first = lines[key, merging]
                self._fail(
                    key_node,
                    f"key '{named}' is there twice, first in line {first}; only one could count: "
                    "remove one, or put the values of both under one key",
                )
            lines[key, merging] = key_node.start_mark.line + 1
            self.lines.setdefault((*place, key), key_node.start_mark.line + 1)
            value = self._value(value_node, (*place, key))
            if not merging:
                values[key] = value
                continue
            for mapping in value if isinstance(value, list) else [value]:
                if not isinstance(mapping, dict):
                    self._fail(value_node, "<<: expected a mapping, or a list of mappings")
                merged = {**mapping, **merged}  # the first mapping with a key counts
        return {**merged, **values}

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self._fail(node, "expected text as a key, found a list or mapping")
        key = self._scalar(node)
        if not isinstance(key, str):
            self._fail(
                node,
                f"expected text as a key, found {node.value or 'nothing'} "
                f"({type(key).__name__}); put it in quotes: '{node.value}'",
            )
        return key

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = str(node.value)
        if node.tag == _PLAIN:
            return _scalar(text, lambda problem: self._fail(node, problem))
        kind = node.tag.removeprefix(_TAG)
        if kind == "str":
            return text
        kinds: dict[str, tuple[type, ...]] = {
            "int": (int,), "float": (int, float), "bool": (bool,), "null": (type(None),)
        }  # fmt: skip
        expected = kinds.get(kind)
        if expected is None:
            self._fail(node, f"not a valid config: unknown tag {node.tag!r}; use plain values")
        value = _scalar(text, lambda problem: self._fail(node, problem))
        if not isinstance(value, expected) or (isinstance(value, bool) and kind != "bool"):
            self._fail(node, f"not a valid config: {text!r} is no {kind}")
        return float(value) if isinstance(value, int) and kind == "float" else value


class _UnreadableError(Exception):
    """A JSON document that ``json`` accepts and raypq does not."""


def _read_json(text: str, where: str) -> Any:
    try:
        return json.loads(
            text, object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_number
        )
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{where}, line {error.lineno}, column {error.colno}: not a valid config: {error.msg}"
        ) from None
    except (_UnreadableError, ValueError) as error:
        # Most JSON is YAML too, and the YAML reader names lines.
        _read_yaml(text, where)
        raise ConfigError(f"{where}: not a valid config: {error}") from None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise _UnreadableError(f"key '{key}' is there twice; remove one")
        values[key] = value
    return values


def _constant(text: str) -> NoReturn:
    raise _UnreadableError(f"expected a number, found {text}, which JSON does not have")


def _number(text: str) -> float:
    value = float(text)
    if problem := lost(text, value):
        raise _UnreadableError(problem)
    return value
