"""Which rows of a code store to search: an expression over ``id`` and ``label``, or a list of ids.

    expression := term {OR term}        term := factor {AND factor}
    factor     := NOT factor | ( expression ) | column test
    test       := (= | != | < | <= | > | >=) value | [NOT] IN ( value {, value} )
                | IS [NOT] NULL
    value      := 'text' ('' for a quote in it) | number

Words in any case. As in SQL, a row whose test meets a null is not kept. The text is parsed here
and becomes a pyarrow expression; nothing of it is ever evaluated as code.
"""

from __future__ import annotations

import hashlib
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq.data.codes import CodeBatch, CodeFile
from raypq.data.storage import read_bytes
from raypq.errors import ConfigError, InputError

Expression = Callable[[pa.Schema, str], pc.Expression]  # the file's schema, and its name

_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>-?\d+(?:\.\d+)?)|(?P<word>[A-Za-z_]\w*)"
    r"|(?P<sign><=|>=|!=|<>|[=<>(),]))"
)
_NUMBER = re.compile(r"-?\d{1,18}")
_COMPARE = {
    "=": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_DEEPEST = 50  # NOTs and parentheses within each other
_SHOWN = 200  # characters of an expression that an error repeats


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
            # A null is neither in the list nor outside it.
            return lambda schema, uri: ~inside(schema, uri) & _field(schema, name, uri).is_valid()
        if self._take("in"):
            return self._inside(name)
        sign = self._now.text
        if sign not in _COMPARE or self._now.kind != "sign":
            raise self._unexpected("=, !=, <, <=, >, >=, IN or IS")
        self._next += 1
        value = self._value()
        return lambda schema, uri: _COMPARE[sign](
            _field(schema, name, uri), _literal(schema, name, value)
        )

    def _inside(self, name: str) -> Expression:
        self._require("(")
        values = [self._value()]
        while self._take(","):
            values.append(self._value())
        self._require(")")
        return lambda schema, uri: _field(schema, name, uri).isin(
            pa.array([_literal(schema, name, value).as_py() for value in values])
        )

    def _value(self) -> str | int | float:
        token = self._now
        self._next += token.kind in ("text", "number")
        if token.kind == "text":
            return token.text[1:-1].replace("''", "'")
        if token.kind == "number":
            return float(token.text) if "." in token.text else int(token.text)
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


def _literal(schema: pa.Schema, name: str, value: str | int | float) -> pa.Scalar:
    """A value in the column's type; a number names a string id, but no text names a number."""
    kind = schema.field(name).type
    if pa.types.is_string(kind):
        return pa.scalar(str(value))
    if isinstance(value, str):
        raise ConfigError(f"filter: column '{name}' holds {kind}, found the text {value!r}")
    return pa.scalar(value)


@dataclass(frozen=True, kw_only=True, eq=False)
class Filter:
    """Rows that both an expression and a list of ids let pass; None lets all pass."""

    text: str | None = None
    ids: IdFile | None = None

    @classmethod
    def of(cls, text: str | None, ids_file: str | None) -> Filter | None:
        """The filter of a job's settings, or None where there is nothing to filter by.

        Raises:
            ConfigError: an expression that cannot be read.
            InputError: the list of ids cannot be read, or is empty.
        """
        if text is None and ids_file is None:
            return None
        if text is not None:
            parse(text)
        return cls(text=text, ids=None if ids_file is None else IdFile.read(ids_file))

    def fit(self, file: CodeFile) -> Callable[[CodeBatch], NDArray[np.bool_]]:
        """What tells which rows of a batch of this file to keep.

        Raises:
            InputError: a column that the file does not have.
            ConfigError: a value that no column of this type can hold.
        """
        fields = [pa.field("id", file.id_type)]
        schema = pa.schema([*fields, pa.field("label", pa.string())] if file.label else fields)
        expression = parse(self.text)(schema, file.uri) if self.text is not None else None
        wanted = None if self.ids is None else ids_of_type(self.ids.ids, file.id_type)

        def keep(batch: CodeBatch) -> NDArray[np.bool_]:
            mask = np.ones(len(batch.B), bool)
            if wanted is not None:
                mask &= pc.is_in(batch.ids, wanted).to_numpy(zero_copy_only=False)
            if expression is not None:
                columns: dict[str, Any] = {"id": batch.ids, "row": np.arange(len(mask))}
                if file.label:
                    columns["label"] = batch.labels
                kept = np.zeros(len(mask), bool)
                kept[pa.table(columns).filter(expression).column("row").to_numpy()] = True
                mask &= kept
            return mask

        return keep


@dataclass(frozen=True, kw_only=True)
class IdFile:
    """The ids of a text file, one a line, and the sha256 of what they were read from."""

    uri: str
    ids: tuple[str, ...]
    digest: str

    @classmethod
    def read(cls, uri: str) -> IdFile:
        """Reads the file once; empty lines are passed over.

        Raises:
            InputError: no such file, not text, or no id in it.
        """
        try:
            content = read_bytes(uri)
            lines = content.decode("utf-8").splitlines()
        except FileNotFoundError:
            raise InputError(
                uri, expected="a file of ids, one a line", found="no such file"
            ) from None
        except UnicodeDecodeError as error:
            raise InputError(uri, expected="a file of ids, one a line", found=str(error)) from None
        ids = tuple(line.strip() for line in lines if line.strip())
        if not ids:
            raise InputError(uri, expected="at least one id", found="none")
        return cls(uri=uri, ids=ids, digest=hashlib.sha256(content).hexdigest())

    def of_type(self, id_type: pa.DataType) -> pa.Array:
        """The ids in the type of a store.

        Raises:
            InputError: one is no number, where the store has numbers.
        """
        if pa.types.is_int64(id_type):
            wrong = [text for text in self.ids if not _NUMBER.fullmatch(text)]
            if wrong:
                raise InputError(
                    self.uri, expected="int64 ids, as the store has", found=repr(wrong[0])
                )
        return ids_of_type(self.ids, id_type)


def ids_of_type(ids: Sequence[str], id_type: pa.DataType) -> pa.Array:
    """Ids as a store has them; what is no number names nothing in a store of numbers."""
    if not pa.types.is_int64(id_type):
        return pa.array(ids, pa.string())
    numbers = [int(text) for text in ids if _NUMBER.fullmatch(text)]
    return pa.array(numbers, pa.int64())
