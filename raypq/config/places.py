"""Kinds of paths: every field of a job that names one says what is read or written there.

``raypq.data.store.overlap`` refuses a job whose outputs lie among its inputs by these notes alone,
so a field of text in a job has one of the types below; a test demands it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, Field

from raypq.errors import ConfigError

# pathlib, and some shells, make one slash of the two after a scheme.
_ONE_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
_NAME = r"[A-Za-z][A-Za-z0-9+.-]*"
_SCHEME = re.compile(rf"(?:^(?:{_NAME}::)*|(?<=::)){_NAME}://")  # in a chain, too
S = TypeVar("S", bound=BaseModel)
_VARIABLE = re.compile(r"\$\{\w+\}")

ReadKind = Literal["parquet", "store", "model", "file", "split", "backbone", "xlsa17", "results"]
WriteKind = Literal["store", "model", "shards", "parts", "xlsa17", "file", "index", "demo"]


@dataclass(frozen=True)
class Reads:
    """A field that names what is read.

    ``parquet``: folders, files or globs of Parquet; ``split``: classes by name or by files;
    ``backbone``: a network by name, file or model; ``xlsa17``: a folder of the published files;
    ``results``: files, stores and models, or folders of them. ``in_place``: it is read whole before
    anything is written, so that the output may be the same place.
    """

    kind: ReadKind
    in_place: bool = False


@dataclass(frozen=True)
class Writes:
    """A field that names what is written.

    ``shards``: Parquet files in one folder; ``parts``: the folders of a split; ``index``: a FAISS
    file and its ids; ``demo``: a folder of everything.
    """

    kind: WriteKind


@dataclass(frozen=True)
class NoPlace:
    """A field of text that names no path."""


def path_of(place: str | os.PathLike[str]) -> str:
    """The path or URI that a place names, as text.

    Raises:
        ConfigError: it names none.
    """
    text: Any = os.fspath(place) if isinstance(place, os.PathLike) else place
    if not isinstance(text, str):
        raise ConfigError(f"expected a path or URI, found {place!r} ({type(place).__name__})")
    try:
        return _uri(text)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _uri(text: str) -> str:
    if not text.strip():
        raise ValueError(f"expected a path or URI, found {text!r} (an empty text)")
    if "\0" in text:
        raise ValueError(f"expected a path or URI, found {text!r} (with a NUL byte in it)")
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(
            f"expected a path or URI in UTF-8, found {text!r} (with other bytes; rename it)"
        )
    if _VARIABLE.search(text):
        raise ValueError(
            f"expected a path or URI, found {text!r}: variables are not filled in; write it out"
        )
    if scheme := _ONE_SLASH.match(text):
        raise ValueError(
            f"expected a path or URI, found {text!r}: write {scheme[1]}:// as text (pathlib takes "
            "away a slash)"
        )
    if text[:1] in "\r\n" or text[-1:] in "\r\n":
        raise ValueError(f"expected a path or URI, found {text!r} (with a line break at its end)")
    # Schemes are the same in any case (RFC 3986); fsspec knows them in lower case alone.
    return _SCHEME.sub(lambda scheme: scheme[0].lower(), text)


Uri = Annotated[str, AfterValidator(_uri)]
Text = Annotated[str, NoPlace()]
MaybePaths = list[Annotated[Uri, Reads("parquet")]]
Paths = Annotated[MaybePaths, Field(min_length=1)]
Store = Annotated[Uri, Reads("store")]
ModelFolder = Annotated[Uri, Reads("model")]
InputFile = Annotated[Uri, Reads("file")]
Split = Annotated[Uri, Reads("split")]
NewStore = Annotated[Uri, Writes("store")]
NewModel = Annotated[Uri, Writes("model")]
NewShards = Annotated[Uri, Writes("shards")]
NewFile = Annotated[Uri, Writes("file")]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A path that a job names: the field, the path as it was given, and what it is for."""

    field: str
    uri: str
    use: Reads | Writes


def places(settings: BaseModel, *, below: str = "") -> Iterator[Place]:
    """Every path that settings name, those of their sections included."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        several = value if isinstance(value, list | tuple) else [value]
        found = list(notes(field.annotation, field.metadata))
        for number, one in enumerate(several):
            where = f"{below}{name}"
            if isinstance(one, BaseModel):
                place = f"{where}.{number}." if several is value else f"{where}."
                yield from places(one, below=place)
            elif isinstance(one, str):
                for note in found:
                    if isinstance(note, Reads | Writes):
                        yield Place(field=where, uri=one, use=note)


def with_places(settings: S, change: Callable[[str, Reads | Writes], str]) -> S:
    """Settings in which every path that they name, those of their sections included, is changed."""
    changed: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        uses = [
            note
            for note in notes(field.annotation, field.metadata)
            if not isinstance(note, NoPlace)
        ]

        def new(value: Any, uses: Sequence[Reads | Writes] = uses) -> Any:
            if isinstance(value, BaseModel):
                return with_places(value, change)
            if isinstance(value, list | tuple):
                return type(value)(new(one) for one in value)
            return change(value, uses[0]) if isinstance(value, str) and uses else value

        changed[name] = new(getattr(settings, name))
    return settings.model_copy(update=changed)


def notes(annotation: Any, metadata: Any = ()) -> Iterator[Reads | Writes | NoPlace]:
    """The notes of a field, wherever in its annotation they stand; mappings have none."""
    for note in metadata:
        if isinstance(note, Reads | Writes | NoPlace):
            yield note
    if isinstance(annotation, type) and issubclass(annotation, Mapping):
        return
    parts = getattr(annotation, "__metadata__", ())
    yield from (note for note in parts if isinstance(note, Reads | Writes | NoPlace))
    for part in get_args(annotation):
        yield from notes(part)
