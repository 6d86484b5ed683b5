"""Kinds of paths: every path field of a job is annotated with what it reads or writes.

``raypq.data.store.overlap`` uses these notes to refuse a job whose outputs lie among its inputs, so
every text field of a job has one of the types below; a test checks it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, Field
from pydantic.fields import FieldInfo

from raypq.errors import ConfigError

# pathlib, and some shells, merge the two slashes after a scheme.
_ONE_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
_NAME = r"[A-Za-z][A-Za-z0-9+.-]*"
_SCHEME = re.compile(rf"(?:^(?:{_NAME}::)*|(?<=::)){_NAME}://")  # in a chain, too
S = TypeVar("S", bound=BaseModel)
_VARIABLE = re.compile(r"\$\{\w+\}")

ReadKind = Literal[
    "parquet", "images", "store", "model", "file", "split", "backbone", "xlsa17", "results"
]
WriteKind = Literal["store", "model", "shards", "parts", "xlsa17", "file", "index", "demo"]


@dataclass(frozen=True)
class Reads:
    """The field is an input.

    ``parquet``: folders, files or globs of Parquet; ``images``: the same of images, of which some
    are read; ``split``: classes by name or by files;
    ``backbone``: a network by name, file or model; ``xlsa17``: a folder of the published files;
    ``results``: files, stores and models, or folders of them. ``in_place``: it is read completely
    before anything is written, so the output may be the same path.
    """

    kind: ReadKind
    in_place: bool = False


@dataclass(frozen=True)
class Writes:
    """The field is an output.

    ``shards``: Parquet files in one folder; ``parts``: the folders of a split; ``index``: a FAISS
    file and its ids; ``demo``: a folder of everything.
    """

    kind: WriteKind


@dataclass(frozen=True)
class NoPlace:
    """The field is text, and no path."""


def path_of(place: str | os.PathLike[str]) -> str:
    """A path or URI as text.

    Raises:
        ConfigError: neither.
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
    """A path in a job: its field, the path as given, and its use."""

    field: str
    uri: str
    use: Reads | Writes


def places(settings: BaseModel, *, below: str = "") -> Iterator[Place]:
    """Every path in settings, those of their sections included."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        items = value if isinstance(value, list | tuple) else [value]
        uses = _uses(field)
        key = f"{below}{name}"
        for number, item in enumerate(items):
            if isinstance(item, BaseModel):
                prefix = f"{key}.{number}." if items is value else f"{key}."
                yield from places(item, below=prefix)
            elif isinstance(item, str):
                yield from (Place(field=key, uri=item, use=use) for use in uses)


def with_places(settings: S, change: Callable[[str, Reads | Writes], str]) -> S:
    """Settings in which every path that they name, those of their sections included, is changed."""
    changed: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        uses = _uses(field)

        def new(value: Any, uses: Sequence[Reads | Writes] = uses) -> Any:
            if isinstance(value, BaseModel):
                return with_places(value, change)
            if isinstance(value, list | tuple):
                return type(value)(new(one) for one in value)
            return change(value, uses[0]) if isinstance(value, str) and uses else value

        changed[name] = new(getattr(settings, name))
    return settings.model_copy(update=changed)


def is_library_model(backbone: str) -> bool:
    """Whether a backbone is a model of a library (``timm:NAME``) and no path."""
    library, colon, _ = backbone.partition(":")
    return bool(colon) and library in ("torchvision", "timm", "open_clip")


def _uses(field: FieldInfo) -> list[Reads | Writes]:
    every = notes(field.annotation, field.metadata)
    return [note for note in every if isinstance(note, Reads | Writes)]


def notes(annotation: Any, metadata: Any = ()) -> Iterator[Reads | Writes | NoPlace]:
    """The notes anywhere in the annotation of a field; mappings have none."""
    for note in metadata:
        if isinstance(note, Reads | Writes | NoPlace):
            yield note
    if isinstance(annotation, type) and issubclass(annotation, Mapping):
        return
    parts = getattr(annotation, "__metadata__", ())
    yield from (note for note in parts if isinstance(note, Reads | Writes | NoPlace))
    for part in get_args(annotation):
        yield from notes(part)
