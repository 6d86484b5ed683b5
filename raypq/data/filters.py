"""Filters of search rows: expressions over ``id`` and ``label``, and lists of ids.

    expression := term {OR term}        term := factor {AND factor}
    factor     := NOT factor | ( expression ) | column test
    test       := (= | != | < | <= | > | >=) value | [NOT] IN ( value {, value} )
                | IS [NOT] NULL
    value      := 'text' ('' for a quote in it) | number

Words in any case. As in SQL, a row whose test meets a null is not kept; so does every test of a
label in a file without labels. Numbers are compared with int64 ids as numbers, exactly, however
large they are. Against text a whole number stands for its digits, and is only compared by =, != and
IN; a text is never compared with int64 ids. The filter is parsed here and becomes a pyarrow
expression; nothing of it is ever evaluated as code.
"""

from __future__ import annotations

import hashlib
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq.data.codes import CodeBatch
from raypq.data.storage import is_parquet, named_lines, read_named
from raypq.errors import ConfigError, InputError

Expression = Callable[[pa.Schema, str], pc.Expression]  # the file's schema, and its name

_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>-?[0-9]+(?:\.[0-9]+)?)|(?P<word>[A-Za-z_]\w*)"
    r"|(?P<sign><=|>=|!=|<>|[=<>(),]))"
)
_WHOLE = re.compile(r"0|-?[1-9][0-9]*")  # as an integer is written that stands for its digits
_ID = re.compile(r"[+-]?[0-9]+")
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1  # of int64
_COMPARE = {
    "=": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ID_FILE = "a text file of ids, one a line"
_DEEPEST = 50  # NOTs and parentheses within each other
_SHOWN = 200  # characters of an expression that an error repeats
_NAMED = 5  # ids that a warning names


@dataclass(frozen=True)
class _Number:
    """A number as it is written in a filter."""

    text: str

    @property
    def value(self) -> Decimal:
        """Its exact value."""
        return Decimal(self.text)


Value = str | _Number


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int


def parse(text: str) -> Expression:
    """Turns a filter's text into something that fits itself to a file's columns.

    Raises:
        ConfigError: naming the place in the text, what was expected there and what was found.
    """
    return _Parser(text).whole()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._split(text)
        self._next = self._depth = 0

    def _split(self, text: str) -> list[_Token]:
        tokens, at = [], 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                start = at + len(text[at:]) - len(text[at:].lstrip())
                raise self._error(start, "a column, a value or an operator", text[start])
            kind = str(match.lastgroup)
            tokens.append(_Token(kind, match[kind], match.start(kind)))
            at = match.end()
        return [*tokens, _Token("end", "the end", len(text))]

    def whole(self) -> Expression:
        found = self._either()
        if self._now.kind != "end":
            raise self._unexpected("AND, OR or the end")
        return found

    def names(self, column: str) -> bool:
        """Whether the text has a word that is this column's name."""
        return any(token.kind == "word" and token.text == column for token in self._tokens)

    @property
    def _now(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *words: str) -> bool:
        """Steps over words or signs if they come next, all of them."""
        ahead = self._tokens[self._next : self._next + len(words)]
        if [token.text.lower() for token in ahead if token.kind != "text"] != list(words):
            return False
        self._next += len(words)
        return True

    def _either(self) -> Expression:
        parts = [self._both()]
        while self._take("or"):
            parts.append(self._both())
        return _joined(operator.or_, parts)

    def _both(self) -> Expression:
        parts = [self._factor()]
        while self._take("and"):
            parts.append(self._factor())
        return _joined(operator.and_, parts)

    def _factor(self) -> Expression:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._unexpected(f"at most {_DEEPEST} NOTs and parentheses within each other")
        found = self._nested()
        self._depth -= 1
        return found

    def _nested(self) -> Expression:
        if self._take("not"):
            inner = self._factor()
            return lambda schema, uri: ~inner(schema, uri)
        if self._take("("):
            found = self._either()
            self._require(")")
            return found
        if self._now.kind != "word":
            raise self._unexpected("a column")
        name = self._now.text
        self._next += 1
        return self._test(name)

    def _test(self, name: str) -> Expression:
        if self._take("is", "not", "null"):
            return lambda schema, uri: _field(schema, name, uri).is_valid()
        if self._take("is", "null"):
            return lambda schema, uri: _field(schema, name, uri).is_null()
        if self._take("not", "in"):
            inside = self._inside(name)
            return lambda schema, uri: ~inside(schema, uri)
        if self._take("in"):
            return self._inside(name)
        sign = self._now.text
        if sign not in _COMPARE or self._now.kind != "sign":
            raise self._unexpected("=, !=, <, <=, >, >=, IN or IS")
        self._next += 1
        value = self._value()
        return lambda schema, uri: _compared(schema, name, uri, sign, value)

    def _inside(self, name: str) -> Expression:
        self._require("(")
        values = [self._value()]
        while self._take(","):
            values.append(self._value())
        self._require(")")
        return lambda schema, uri: _among(schema, name, uri, values)

    def _value(self) -> Value:
        token = self._now
        self._next += token.kind in ("text", "number")
        if token.kind == "text":
            return token.text[1:-1].replace("''", "'")
        if token.kind == "number":
            return _Number(token.text)
        hint = f" (write '{token.text}' for a text)" if token.kind == "word" else ""
        raise self._error(token.at, "a value: 'text' or a number", token.text + hint)

    def _require(self, sign: str) -> None:
        if not self._take(sign):
            raise self._unexpected(f"'{sign}'")

    def _unexpected(self, expected: str) -> ConfigError:
        return self._error(self._now.at, expected, self._now.text)

    def _error(self, at: int, expected: str, found: str) -> ConfigError:
        shown = self._text[:_SHOWN]
        return ConfigError(
            f"filter {shown!r}, character {at + 1}: expected {expected}, found {found}"
        )


def _joined(
    how: Callable[[pc.Expression, pc.Expression], pc.Expression], parts: Sequence[Expression]
) -> Expression:
    return lambda schema, uri: reduce(how, [part(schema, uri) for part in parts])


def _field(schema: pa.Schema, name: str, uri: str) -> pc.Expression:
    if name not in schema.names:
        raise InputError(
            uri, expected=f"a column '{name}' to filter by", found=f"{', '.join(schema.names)}"
        )
    return pc.field(name)


def _compared(schema: pa.Schema, name: str, uri: str, sign: str, value: Value) -> pc.Expression:
    """A column compared with one value."""
    field, test = _field(schema, name, uri), _COMPARE[sign]
    if pa.types.is_string(schema.field(name).type):
        if isinstance(value, _Number) and test not in (operator.eq, operator.ne):
            raise ConfigError(
                f"filter: column '{name}' holds text, which {sign} does not compare with the "
                f"number {value.text[:_SHOWN]}; integer ids are compared as numbers where the "
                "features have them as integers"
            )
        return test(field, _digits(name, value) if isinstance(value, _Number) else value)
    number = _number(schema, name, value).value
    # Beyond int64 only the side matters.
    number = min(max(number, Decimal(_LEAST - 1)), Decimal(_MOST + 1))
    below = math.floor(number)
    if number == below and _LEAST <= below <= _MOST:
        return test(field, pa.scalar(below, pa.int64()))
    # No id equals the number; those up to ``below`` are less than it.
    if test is operator.eq:
        return _never(field)
    if test is operator.ne:
        return _always(field)
    less = test in (operator.lt, operator.le)
    if _LEAST <= below <= _MOST:
        return (operator.le if less else operator.gt)(field, pa.scalar(below, pa.int64()))
    return _always(field) if less == (below > _MOST) else _never(field)


def _among(schema: pa.Schema, name: str, uri: str, values: Sequence[Value]) -> pc.Expression:
    """Whether a column's value is one of several; of a null neither yes nor no."""
    field = _field(schema, name, uri)
    if pa.types.is_string(schema.field(name).type):
        texts = [_digits(name, one) if isinstance(one, _Number) else one for one in values]
        return field.isin(pa.array(texts, pa.string())) | _never(field)
    numbers = [_number(schema, name, one).value for one in values]
    whole = [int(one) for one in numbers if _LEAST <= one <= _MOST and one == math.floor(one)]
    return field.isin(pa.array(whole, pa.int64())) | _never(field)


def _always(field: pc.Expression) -> pc.Expression:
    return field == field


def _never(field: pc.Expression) -> pc.Expression:
    return field != field


def _number(schema: pa.Schema, name: str, value: Value) -> _Number:
    if isinstance(value, _Number):
        return value
    raise ConfigError(
        f"filter: column '{name}' holds {schema.field(name).type}, found the text "
        f"{value[:_SHOWN]!r}; write numbers without quotes"
    )


def _digits(name: str, number: _Number) -> str:
    """A whole number as text, where the column holds text."""
    if _WHOLE.fullmatch(number.text):
        return number.text
    shown = number.text[:_SHOWN]
    raise ConfigError(
        f"filter: column '{name}' holds text, found the number {shown}; write '{shown}' for a text"
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Filter:
    """Rows that both an expression and a list of ids let pass; None lets all pass.

    Attributes:
        ids: of the store's type.
    """

    text: str | None = None
    ids: pa.Array | None = None

    @classmethod
    def of(cls, text: str | None, ids: IdFile | None, id_type: pa.DataType) -> Filter | None:
        """The filter of a job's settings, or None where there is nothing to filter by.

        Raises:
            ConfigError: an expression that cannot be read, a value that no column can hold.
            InputError: a column that no code store has; ids that a store of this type cannot have.
        """
        if text is None and ids is None:
            return None
        if text is not None:
            parse(text)(_columns(id_type), "filter")
        return cls(text=text, ids=None if ids is None else ids.of_type(id_type))

    @property
    def by_label(self) -> bool:
        """Whether the expression asks for the label."""
        return self.text is not None and _Parser(self.text).names("label")

    def fit(self, id_type: pa.DataType, uri: str) -> Callable[[CodeBatch], NDArray[np.bool_]]:
        """What tells which rows of a batch to keep; without labels all are null.

        Args:
            id_type: of the store; a file without rows may name another one.
            uri: names the file in errors.

        Raises:
            ConfigError: a value that no column of this type can hold.
        """
        expression = None
        if self.text is not None:
            expression = parse(self.text)(_columns(id_type), uri)

        def keep(batch: CodeBatch) -> NDArray[np.bool_]:
            mask = np.ones(len(batch.B), bool)
            if self.ids is not None:
                mask &= pc.is_in(batch.ids, self.ids).to_numpy(zero_copy_only=False)
            if expression is not None:
                none = pa.nulls(len(mask), pa.string())
                columns: dict[str, Any] = {
                    "id": batch.ids,
                    "label": none if batch.labels is None else batch.labels,
                    "row": np.arange(len(mask)),
                }
                kept = np.zeros(len(mask), bool)
                kept[pa.table(columns).filter(expression).column("row").to_numpy()] = True
                mask &= kept
            return mask

        return keep


def _columns(id_type: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field("id", id_type), pa.field("label", pa.string())])


@dataclass(frozen=True, kw_only=True)
class IdFile:
    """The ids of a text file, one a line.

    Attributes:
        ids: without the spaces around them. lines: the number of each one's line.
        digest: sha256 of what they were read from.
    """

    uri: str
    ids: tuple[str, ...]
    lines: tuple[int, ...]
    digest: str

    @classmethod
    def read(cls, uri: str) -> IdFile:
        """Reads the file once; empty lines are passed over.

        Raises:
            InputError: no such file, a folder, not text, or no id in it.
        """
        content = read_named(uri, expected=_ID_FILE)
        if is_parquet(content):
            found = "a Parquet file; write its ids as text"
            raise InputError(uri, expected=_ID_FILE, found=found)
        named = list(named_lines(uri, content, expected=_ID_FILE))
        if not named:
            raise InputError(uri, expected="at least one id", found="none")
        lines, ids = zip(*named, strict=True)
        return cls(uri=uri, ids=ids, lines=lines, digest=hashlib.sha256(content).hexdigest())

    def of_type(self, id_type: pa.DataType) -> pa.Array:
        """The ids in the type of a store; as int64, ``+5`` and ``005`` are the number 5.

        Raises:
            InputError: one that int64 cannot hold, where the store has numbers.
        """
        if not pa.types.is_int64(id_type):
            return pa.array(self.ids, pa.string())
        places = zip(self.ids, self.lines, strict=True)
        numbers = [_int64(text, f"{self.uri}, line {number}") for text, number in places]
        return pa.array(numbers, pa.int64())

    def content(self, id_type: pa.DataType) -> str:
        """What names the ids in a work id: the digest, and a note where an earlier version did not
        read them all (numbers of 19 digits), so that what it answered is not kept."""
        long = pa.types.is_int64(id_type) and any(len(text.lstrip("-")) > 18 for text in self.ids)
        return f"{self.digest}:19 digits" if long else self.digest


def _int64(text: str, where: str) -> int:
    if _ID.fullmatch(text) and len(text) <= _SHOWN and _LEAST <= int(text) <= _MOST:
        return int(text)
    raise InputError(where, expected="an int64 id, as the store has", found=repr(text[:_SHOWN]))


def unknown_ids(uri: str, unknown: pa.Array, of: int, store: str) -> str:
    """What to say of ids that a file lists and the store does not have."""
    shown = ", ".join(repr(name) for name in unknown[:_NAMED].to_pylist())
    more = ", …" if len(unknown) > _NAMED else ""
    return f"{uri}: {len(unknown):,} of {of:,} ids are not in {store}: {shown}{more}"
