"""The feature shards below folders: Parquet files, arrays with their metadata, Lance fragments,
tar files of images, and parts of folders of images."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from raypq import console
from raypq.data.layouts import lance, tar
from raypq.data.layouts.image_folder import list_parts
from raypq.data.storage import Shard, canonical, join
from raypq.data.storage.shards import (
    SUFFIXES,
    files_of_folder,
    find_files,
    names_folder,
    root_of,
    shard_of,
)
from raypq.data.storage.walk import IMAGE_SUFFIXES, Entry
from raypq.errors import EmptySourceError, InputError

ARRAYS = (".npy", ".npz")
_KINDS = ", ".join([SUFFIXES[0], *ARRAYS, lance.SUFFIX]) + f" or {tar.SUFFIX}"
SourceKind = Literal["features", "images"]
_MISSING: dict[SourceKind, str] = {
    "features": f"features: a file ({_KINDS}), a folder of them, or a glob",
    "images": "images: image files, .tar or Parquet files, a folder of them, or a glob",
}
_EMPTY: dict[SourceKind, str] = {
    "features": f"at least one {_KINDS} file, or images",
    "images": f"at least one image file, {tar.SUFFIX} file, or Parquet file with images",
}
# clip-retrieval: img_emb/img_emb_0.npy and text_emb/text_emb_0.npy, metadata/metadata_0.parquet
_CLIP = re.compile(r"(?:img|text)_emb_(\d+)\.npy")
_IMAGES, _TEXTS, _METADATA = "img_emb", "text_emb", "metadata"


def list_features(uris: Sequence[str], kind: SourceKind = "features") -> list[Shard]:
    """The feature shards of folders, globs and files, in path order.

    Args:
        kind: what errors of a missing or empty place expect.

    Shards are Parquet files (see ``list_shards``), ``.npy``, ``.npz`` and ``.tar`` files, fragments
    of Lance datasets, and where there are none of these, parts of folders of images. An array is
    described by the Parquet file of its name beside it, or in the layout of clip-retrieval by
    ``../metadata/metadata_<n>.parquet``; that file is no shard of its own. Nor is a Parquet file
    with the name of a tar file or of a folder of images beside it, as img2dataset writes it.

    Raises:
        MissingSourceError, EmptySourceError, InputError: see ``list_shards``.
        InputError: two layouts in one folder, or an array without its metadata.
    """
    entries = find_files(
        uris,
        (*SUFFIXES, *ARRAYS, lance.SUFFIX, tar.SUFFIX, *IMAGE_SUFFIXES),
        expected=_EMPTY[kind],
        place=_MISSING[kind],
    )
    images, entries = _divided(entries)
    entries = _without_descriptions(entries, images)
    selections = _selections(uris) if images else {}
    roots = sorted(selections, reverse=True)
    folders = _by_root(images, roots)
    for root in {_root(uri, roots) for uri in entries} & {*folders} if folders else ():
        skipped = folders.pop(root)
        console.warn(
            f"{root}: skipped {len(skipped)} image file(s), such as {min(skipped)}: there are "
            "files of features or tar files, too; to read the images, name their folders, or the "
            f"images by a glob ({root}/*/)",
            files=len(skipped),
        )
    shards = [
        part
        for root, files in folders.items()
        for part in list_parts(root, files, selections.get(root, ""))
    ]
    if entries:
        shards += _list_files(uris, entries)
    shards.sort(key=lambda shard: shard.uri)
    return [replace(shard, index=index) for index, shard in enumerate(shards)]


def _divided(entries: dict[str, Entry]) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """Image files, and all others."""
    images, others = dict[str, Entry](), dict[str, Entry]()
    for uri, entry in entries.items():
        is_image = entry.name.lower().endswith(IMAGE_SUFFIXES)
        (images if is_image else others)[uri] = entry
    return images, others


def _by_root(images: dict[str, Entry], roots: Sequence[str]) -> dict[str, dict[str, Entry]]:
    """Image files by the folder that was named, and by their path below it."""
    below: dict[str, dict[str, Entry]] = defaultdict(dict)
    for uri, entry in images.items():
        root = _root(uri, roots)
        below[root][uri[len(root) + 1 :]] = entry
    return below


def _selections(uris: Sequence[str]) -> dict[str, str]:
    """The folders that URIs name, each with what of it is listed: the globs and files that were
    named, or an empty text for all of it."""
    named: dict[str, set[str]] = defaultdict(set)
    for uri in uris:
        root = root_of(uri)
        named[root].add("" if names_folder(uri) else canonical(uri))
    return {root: "" if "" in given else "\n".join(sorted(given)) for root, given in named.items()}


def _root(uri: str, roots: Sequence[str]) -> str:
    """The innermost of these folders (in descending order) that a file is below."""
    return next((root for root in roots if uri.startswith(f"{root}/")), _split(uri)[0])


def _without_descriptions(entries: dict[str, Entry], images: dict[str, Entry]) -> dict[str, Entry]:
    """The files that are no images, without the Parquet files that describe a tar file or a folder
    of images of the same name."""
    described = {uri[: -len(tar.SUFFIX)] for uri in entries if uri.lower().endswith(tar.SUFFIX)}
    described |= {_split(uri)[0] for uri in images}
    return {
        uri: entry
        for uri, entry in entries.items()
        if not (uri.lower().endswith(SUFFIXES) and uri.rpartition(".")[0] in described)
    }


def _list_files(uris: Sequence[str], entries: dict[str, Entry]) -> list[Shard]:
    """The shards of all layouts but folders of images."""
    arrays: dict[str, list[str]] = defaultdict(list)  # by folder
    tables: dict[str, dict[str, Entry]] = defaultdict(dict)  # Parquet files, by folder
    parts: list[str] = []  # data files of Lance datasets
    for uri, entry in entries.items():
        folder, name = _split(uri)
        if name.lower().endswith(ARRAYS):
            arrays[folder].append(uri)
        elif name.endswith(lance.SUFFIX):
            parts.append(uri)
        elif not name.lower().endswith(tar.SUFFIX):
            tables[folder][uri] = entry
    _refuse_two_embeddings(arrays)
    metadata: dict[str, tuple[str, Entry]] = {}
    for folder, found in arrays.items():
        metadata |= _describe(folder, found, tables)
    others = {*parts, *(uri for uri, _ in metadata.values())}
    files = {uri: entry for uri, entry in entries.items() if uri not in others}
    fragments = lance.list_fragments(parts)
    _refuse_two_layouts([*files, *lance.roots(fragments)])
    shards = files | fragments
    if not shards:
        raise EmptySourceError(
            ", ".join(uris), expected="rows", found="Lance datasets without a fragment"
        )
    return [shard_of(0, uri, entry, metadata.get(uri)) for uri, entry in shards.items()]


def _split(uri: str) -> tuple[str, str]:
    folder, _, name = uri.rpartition("/")
    return folder, name


def _describe(
    folder: str, arrays: Iterable[str], tables: dict[str, dict[str, Entry]]
) -> dict[str, tuple[str, Entry]]:
    """The metadata file of each array in a folder, where they have any.

    Args:
        tables: the Parquet files that are known by folder; others are listed and added.

    Raises:
        InputError: some arrays of the folder have metadata, but not all.
    """
    beside = _tables(folder, tables)
    own = {array: _of_its_name(array, beside) for array in arrays}
    if not any(own.values()) and any(_CLIP.fullmatch(_split(array)[1]) for array in own):
        other = join(_split(folder)[0], _METADATA)
        beside = _tables(other, tables)
        own = {array: _of_its_number(array, other, beside) for array in arrays}
    if not any(own.values()):
        return {}
    missing = [array for array, uri in own.items() if uri is None]
    if missing:
        described = next(uri for uri in own.values() if uri)
        raise InputError(
            missing[0],
            expected=f"a Parquet file with its other columns, as {described}",
            found=f"none ({len(missing)} of {len(own)} arrays of the folder)",
        )
    return {array: (uri, beside[uri]) for array, uri in own.items() if uri}


def _tables(folder: str, tables: dict[str, dict[str, Entry]]) -> dict[str, Entry]:
    if not tables[folder]:  # the caller may have named the arrays alone
        found = files_of_folder(folder)
        tables[folder] = {uri: entry for uri, entry in found.items() if _split(uri)[0] == folder}
    return tables[folder]


def _of_its_name(array: str, tables: dict[str, Entry]) -> str | None:
    stem = array.rpartition(".")[0]
    return next((uri for uri in sorted(tables) if uri.rpartition(".")[0] == stem), None)


def _of_its_number(array: str, folder: str, tables: dict[str, Entry]) -> str | None:
    match = _CLIP.fullmatch(_split(array)[1])
    uri = join(folder, f"{_METADATA}_{match[1]}.parquet") if match else ""
    return uri if uri in tables else None


def _refuse_two_embeddings(folders: Iterable[str]) -> None:
    """Refuses a folder of clip-retrieval as a whole, whose arrays are of images and of texts."""
    for folder in folders:
        parent, name = _split(folder)
        if name == _TEXTS and (images := join(parent, _IMAGES)) in folders:
            raise InputError(
                parent,
                expected="one embedding of each row",
                found=f"those of images and of texts; name {images} or {folder}",
            )


def _refuse_two_layouts(shards: Iterable[str]) -> None:
    """Refuses Parquet shards, arrays and Lance datasets in one folder: one may copy another,
    or describe it."""
    kinds: dict[str, dict[str, str]] = defaultdict(dict)
    for uri in shards:
        folder, name = _split(uri)
        suffix = name[name.rfind(".") :].lower()
        kinds[folder].setdefault(
            suffix if suffix in (*ARRAYS, lance.SUFFIX, tar.SUFFIX) else "", name
        )
    for folder, found in kinds.items():
        if len(found) > 1:
            first, second = sorted(found.values())[:2]
            raise InputError(
                folder,
                expected="shards of one layout (an array and the Parquet file of its name are one)",
                found=f"{first} and {second}; name the files of one by a glob",
            )
