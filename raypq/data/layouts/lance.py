"""Lance datasets: a shard is a fragment of the latest version.

A fragment is named by its first data file, which no later version changes. What later versions may
change (deleted rows, further columns) is part of its version tag.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from raypq.data.layouts.source import blocks, take_from_groups
from raypq.data.storage import Shard, is_local, join, local_path
from raypq.data.storage.walk import Entry
from raypq.errors import DamagedError, InputError
from raypq.optional_packages import require

SUFFIX = ".lance"
_DATA_FILE = re.compile(r"(?P<root>.+)/data/(?P<name>[^/]+\.lance)", re.DOTALL)
_CHANGING = ("file_size_bytes", "created_at_version_meta", "last_updated_at_version_meta")
_READ_AHEAD = 4  # batches; bounds memory


def list_fragments(files: Iterable[str]) -> dict[str, Entry]:
    """The fragments of the datasets that these data files belong to, by URI.

    Raises:
        InputError: a file of no dataset, or a dataset that cannot be opened.
        ConfigError: the package pylance is not installed.
    """
    found: dict[str, Entry] = {}
    for root in roots(files):
        with _errors(root):
            dataset = _dataset(root)
            for fragment in dataset.get_fragments():
                content = _content(fragment)
                uri = _uri(root, content)
                size = sum(file["file_size_bytes"] or 0 for file in content["files"])
                tag = _tag(content, dataset.schema)
                found[uri] = Entry(path=uri, real=uri, size=size, tag=tag)
    return found


def roots(files: Iterable[str]) -> list[str]:
    """The datasets of data files.

    Raises:
        InputError: a file of no dataset.
    """
    found: dict[str, None] = {}
    for uri in files:
        match = _DATA_FILE.fullmatch(uri)
        if match is None:
            raise InputError(
                uri,
                expected="a Lance dataset (a folder with data/ and _versions/)",
                found="a single file; name the dataset's folder",
            )
        found[match["root"]] = None
    return list(found)


def root_of(uri: str) -> str | None:
    """The dataset of a fragment or data file; None for a shard of another layout."""
    match = _DATA_FILE.fullmatch(uri)
    return match["root"] if match else None


def count_rows(root: str) -> int:
    """Rows of the latest version of a dataset.

    Raises:
        DamagedError: it cannot be read.
        ConfigError: the package pylance is not installed.
    """
    with _errors(root):
        return int(_dataset(root).count_rows())


def _dataset(root: str) -> Any:
    lance = require("lance", extra="lance", purpose=f"the Lance dataset {root}")
    return lance.dataset(str(local_path(root)) if is_local(root) else root)


def _content(fragment: Any) -> dict[str, Any]:
    return dict(fragment.metadata.to_json())


def _uri(root: str, content: Mapping[str, Any]) -> str:
    return join(root, "data", str(content["files"][0]["path"]))


def _tag(content: Mapping[str, Any], schema: pa.Schema) -> str:
    """Digest of a fragment's metadata, without entries that do not concern its rows, and of the
    names and types of columns, which the dataset has."""

    def stable(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: stable(item) for key, item in value.items() if key not in _CHANGING}
        return [stable(item) for item in value] if isinstance(value, list) else value

    columns = [f"{field.name}: {field.type}" for field in schema]
    text = json.dumps([stable(content), columns], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class LanceSource:
    """The rows of a fragment that are not deleted."""

    def __init__(self, fragment: Any, uri: str) -> None:
        self._fragment, self.uri = fragment, uri
        self._rows = int(fragment.count_rows())

    @property
    def schema(self) -> pa.Schema:
        """The dataset's schema."""
        return self._fragment.schema

    @property
    def group_rows(self) -> Sequence[int]:
        """Blocks of rows."""
        return blocks(self._rows)

    def batches(
        self, columns: Sequence[str] | None, size: int, group: int | None
    ) -> Iterator[pa.RecordBatch]:
        """See ``Source``; of a struct, all fields are read."""
        names = self.schema.names
        wanted = names if columns is None else columns
        tops = dict.fromkeys(name if name in names else name.split(".")[0] for name in wanted)
        part = {}
        if group is not None:
            part = {"offset": sum(self.group_rows[:group]), "limit": self.group_rows[group]}
        rows = 0
        with _errors(self.uri):
            scan = self._fragment.scanner(
                columns=list(tops), batch_size=size, batch_readahead=_READ_AHEAD, **part
            )
            for batch in scan.to_batches():
                rows += len(batch)
                yield batch
        expected = self._rows if group is None else self.group_rows[group]
        if rows != expected:
            raise DamagedError(self.uri, expected=f"{expected} rows", found=f"{rows} in all")

    def take(self, columns: Sequence[str] | None, rows: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """See ``Source``."""
        return take_from_groups(self, columns, rows)

    def row_bytes(self, columns: Sequence[str] | None) -> float:
        """See ``Source``: of the whole fragment, since Lance does not tell those of a column."""
        files = _content(self._fragment)["files"]
        return sum(file["file_size_bytes"] or 0 for file in files) / max(self._rows, 1)


@contextmanager
def open_source(shard: Shard) -> Iterator[LanceSource]:
    """Opens a fragment.

    Raises:
        DamagedError: it is no longer in the latest version, or cannot be read.
    """
    match = _DATA_FILE.fullmatch(shard.uri)
    assert match is not None, "listed by list_fragments"
    with _errors(shard.uri):
        dataset = _dataset(match["root"])
        for fragment in dataset.get_fragments():
            content = _content(fragment)
            tag = _tag(content, dataset.schema)
            if _uri(match["root"], content) == shard.uri and tag == shard.modified:
                break
        else:
            raise DamagedError(
                shard.uri,
                expected="the fragment as it was listed",
                found="a newer version of the dataset; run again",
            )
        source = LanceSource(fragment, shard.uri)
    yield source


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Names the dataset in errors of Lance, which has no class of its own for them."""
    try:
        yield
    except (ValueError, RuntimeError, pa.ArrowException) as error:
        raise _damaged(uri, error) from None
    except OSError as error:
        if not is_local(uri) or error.errno is not None:
            raise
        raise _damaged(uri, error) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of its Rust code
            raise
        raise _damaged(uri, error) from None


def _damaged(uri: str, error: BaseException) -> DamagedError:
    reason = str(error).strip().splitlines()
    return DamagedError(
        uri,
        expected="a Lance dataset that can be read",
        found=reason[0] if reason else type(error).__name__,
    )
