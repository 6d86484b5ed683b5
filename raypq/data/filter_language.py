"""The filter language of ``raypq search``: tests of ``id`` and ``label``, compiled for pyarrow.

    expression := term {OR term}        term := factor {AND factor}
    factor     := NOT factor | ( expression ) | column test
    test       := (= | != | < | <= | > | >=) value | [NOT] IN ( value {, value} )
                | IS [NOT] NULL
    value      := 'text' ('' for a quote in it) | number

Words in any case. As in SQL, a row whose test meets a null is not kept; so does every test of a
label in a file without labels. Numbers are compared with int64 ids as numbers, exactly, however
large they are. Against text a whole number stands for its digits, and is only compared by =, != and
IN; a text is never compared with int64 ids. A filter becomes a pyarrow expression; nothing of it is
ever evaluated as code.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from raypq.errors import ConfigError, InputError

# A parsed filter: makes a pyarrow expression from a file's schema and its name (for errors).
Expression = Callable[[pa.Schema, str], pc.Expression]

_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>-?[0-9]+(?:\.[0-9]+)?)|(?P<word>[A-Za-z_]\w*)"
    r"|(?P<sign><=|>=|!=|<>|[=<>(),]))"
)
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]*")  # the one spelling of an integer
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1
_COMPARISONS = {
    "=": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_MAX_DEPTH = 50  # nested NOTs and parentheses
_SHOWN = 200  # characters of a filter in an error


@dataclass(frozen=True)
class _Number:
    """A number as it is written in a filter."""

    text: str

    @property
    def value(self) -> Decimal:
        """Its exact value."""
        return Decimal(self.text)


_Value = str | _Number


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int


def parse(text: str) -> Expression:
    """Parses a filter.

    Raises:
        ConfigError: a syntax error, with its position in the text.
    """
    return _Parser(text).parse()


def mentions(text: str, column: str) -> bool:
    """Whether a filter tests a column.

    Raises:
        ConfigError: a character that no filter has.
    """
    return _Parser(text).mentions(column)


class _Parser:
    """A recursive-descent parser with one method for each rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._tokenize(text)
        self._next = self._depth = 0

    def _tokenize(self, text: str) -> list[_Token]:
        tokens, position = [], 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None:
                start = position + len(text[position:]) - len(text[position:].lstrip())
                raise self._error(start, "a column, a value or an operator", text[start])
            kind = str(match.lastgroup)
            tokens.append(_Token(kind, match[kind], match.start(kind)))
            position = match.end()
        return [*tokens, _Token("end", "the end", len(text))]

    def parse(self) -> Expression:
        expression = self._expression()
        if self._current.kind != "end":
            raise self._unexpected("AND, OR or the end")
        return expression

    def mentions(self, column: str) -> bool:
        """Whether one of the words is this column's name."""
        return any(token.kind == "word" and token.text == column for token in self._tokens)

    @property
    def _current(self) -> _Token:
        return self._tokens[self._next]

    def _accept(self, *words: str) -> bool:
        """Consumes these words or signs if they come next, all of them."""
        tokens = self._tokens[self._next : self._next + len(words)]
        if [token.text.lower() for token in tokens if token.kind != "text"] != list(words):
            return False
        self._next += len(words)
        return True

    def _expression(self) -> Expression:
        terms = [self._term()]
        while self._accept("or"):
            terms.append(self._term())
        return _combined(operator.or_, terms)

    def _term(self) -> Expression:
        factors = [self._factor()]
        while self._accept("and"):
            factors.append(self._factor())
        return _combined(operator.and_, factors)

    def _factor(self) -> Expression:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._unexpected(f"at most {_MAX_DEPTH} nested NOTs and parentheses")
        factor = self._nested()
        self._depth -= 1
        return factor

    def _nested(self) -> Expression:
        if self._accept("not"):
            inner = self._factor()
            return lambda schema, uri: ~inner(schema, uri)
        if self._accept("("):
            expression = self._expression()
            self._require(")")
            return expression
        if self._current.kind != "word":
            raise self._unexpected("a column")
        column = self._current.text
        self._next += 1
        return self._test(column)

    def _test(self, column: str) -> Expression:
        if self._accept("is", "not", "null"):
            return lambda schema, uri: _field(schema, column, uri).is_valid()
        if self._accept("is", "null"):
            return lambda schema, uri: _field(schema, column, uri).is_null()
        if self._accept("not", "in"):
            is_in = self._value_list(column)
            return lambda schema, uri: ~is_in(schema, uri)
        if self._accept("in"):
            return self._value_list(column)
        sign = self._current.text
        if sign not in _COMPARISONS or self._current.kind != "sign":
            raise self._unexpected("=, !=, <, <=, >, >=, IN or IS")
        self._next += 1
        value = self._value()
        return lambda schema, uri: _compare(schema, column, uri, sign, value)

    def _value_list(self, column: str) -> Expression:
        self._require("(")
        values = [self._value()]
        while self._accept(","):
            values.append(self._value())
        self._require(")")
        return lambda schema, uri: _is_in(schema, column, uri, values)

    def _value(self) -> _Value:
        token = self._current
        self._next += token.kind in ("text", "number")
        if token.kind == "text":
            return token.text[1:-1].replace("''", "'")
        if token.kind == "number":
            return _Number(token.text)
        hint = f" (write '{token.text}' for a text)" if token.kind == "word" else ""
        raise self._error(token.position, "a value: 'text' or a number", token.text + hint)

    def _require(self, sign: str) -> None:
        if not self._accept(sign):
            raise self._unexpected(f"'{sign}'")

    def _unexpected(self, expected: str) -> ConfigError:
        return self._error(self._current.position, expected, self._current.text)

    def _error(self, position: int, expected: str, found: str) -> ConfigError:
        shown = self._text[:_SHOWN]
        return ConfigError(
            f"filter {shown!r}, character {position + 1}: expected {expected}, found {found}"
        )


def _combined(
    operation: Callable[[pc.Expression, pc.Expression], pc.Expression],
    parts: Sequence[Expression],
) -> Expression:
    return lambda schema, uri: reduce(operation, [part(schema, uri) for part in parts])


def _field(schema: pa.Schema, column: str, uri: str) -> pc.Expression:
    if column not in schema.names:
        raise InputError(
            uri, expected=f"a column '{column}' to filter by", found=", ".join(schema.names)
        )
    return pc.field(column)


def _compare(schema: pa.Schema, column: str, uri: str, sign: str, value: _Value) -> pc.Expression:
    """The comparison of a column with one value."""
    field, comparison = _field(schema, column, uri), _COMPARISONS[sign]
    if pa.types.is_string(schema.field(column).type):
        if isinstance(value, _Number) and comparison not in (operator.eq, operator.ne):
            raise ConfigError(
                f"filter: column '{column}' holds text, which {sign} does not compare with the "
                f"number {value.text[:_SHOWN]}; integer ids are compared as numbers where the "
                "features have them as integers"
            )
        return comparison(field, _digits(column, value) if isinstance(value, _Number) else value)
    number = _number(schema, column, value).value
    # Beyond int64 only the side matters.
    number = min(max(number, Decimal(_INT64_MIN - 1)), Decimal(_INT64_MAX + 1))
    below = math.floor(number)
    if number == below and _INT64_MIN <= below <= _INT64_MAX:
        return comparison(field, pa.scalar(below, pa.int64()))
    # No id equals the number; those up to ``below`` are less than it.
    if comparison is operator.eq:
        return _never(field)
    if comparison is operator.ne:
        return _always(field)
    less = comparison in (operator.lt, operator.le)
    if _INT64_MIN <= below <= _INT64_MAX:
        return (operator.le if less else operator.gt)(field, pa.scalar(below, pa.int64()))
    return _always(field) if less == (below > _INT64_MAX) else _never(field)


def _is_in(schema: pa.Schema, column: str, uri: str, values: Sequence[_Value]) -> pc.Expression:
    """Whether a column's value is one of several; null for a null."""
    field = _field(schema, column, uri)
    if pa.types.is_string(schema.field(column).type):
        texts = [
            _digits(column, value) if isinstance(value, _Number) else value for value in values
        ]
        return field.isin(pa.array(texts, pa.string())) | _never(field)
    numbers = [_number(schema, column, value).value for value in values]
    integers = [
        int(number)
        for number in numbers
        if _INT64_MIN <= number <= _INT64_MAX and number == math.floor(number)
    ]
    return field.isin(pa.array(integers, pa.int64())) | _never(field)


def _always(field: pc.Expression) -> pc.Expression:
    """True, but null for a null."""
    return field == field


def _never(field: pc.Expression) -> pc.Expression:
    """False, but null for a null."""
    return field != field


def _number(schema: pa.Schema, column: str, value: _Value) -> _Number:
    if isinstance(value, _Number):
        return value
    raise ConfigError(
        f"filter: column '{column}' holds {schema.field(column).type}, found the text "
        f"{value[:_SHOWN]!r}; write numbers without quotes"
    )


def _digits(column: str, number: _Number) -> str:
    """A whole number as text, for a column of text."""
    if _WHOLE_NUMBER.fullmatch(number.text):
        return number.text
    shown = number.text[:_SHOWN]
    raise ConfigError(
        f"filter: column '{column}' holds text, found the number {shown}; "
        f"write '{shown}' for a text"
    )
