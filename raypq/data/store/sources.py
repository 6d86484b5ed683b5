"""The shards of a job's source: files in any layout, and the files of feature stores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from raypq.config import Columns
from raypq.data.features import FeatureStore
from raypq.data.layouts import list_features
from raypq.data.layouts.listing import SourceKind
from raypq.data.storage import Shard, is_local, join, local_path, stem_of
from raypq.data.store import shard_writer, snapshot
from raypq.errors import EmptySourceError, InputError


def open_sources(
    uris: Sequence[str], columns: Columns | None = None, kind: SourceKind = "features"
) -> FeatureStore:
    """The shards of places that a job names, and their columns; opens none of them.

    Raises:
        InputError: no feature file; see ``list_sources``.
    """
    return FeatureStore(shards=list_sources(uris, kind), columns=columns or Columns())


def list_sources(uris: Sequence[str], kind: SourceKind = "features") -> list[Shard]:
    """As ``list_features``; of a store that ``raypq extract`` wrote, the files of the last version.

    A file of a store keeps the name of its shard when it is written again, and its version tag is
    its sha256.

    Raises:
        MissingSourceError, EmptySourceError, InputError: see ``list_features``.
        InputError: a store of codes or predictions.
    """
    stores = [uri for uri in uris if snapshot.versions(uri)]
    shards = [shard for store in dict.fromkeys(map(_real, stores)) for shard in _stored(store)]
    if plain := [uri for uri in uris if uri not in stores]:
        shards += _refuse_files_of_stores(list_features(plain, kind))
    elif not shards:
        raise EmptySourceError(
            ", ".join(uris), expected=f"at least one shard of {kind}", found="an empty store"
        )
    shards.sort(key=lambda shard: shard.uri)
    return [
        shard if shard.index == index else replace(shard, index=index)
        for index, shard in enumerate(shards)
    ]


def _real(store: str) -> str:
    """The one URI of a store that is named in several ways."""
    return os.path.realpath(local_path(store)) if is_local(store) else store.rstrip("/")


def _stored(store: str) -> list[Shard]:
    version = snapshot.read(store)
    if version.kind != "features":
        raise InputError(store, expected="features, or images", found=f"a store of {version.kind}")
    return [
        Shard(
            index=0,
            uri=join(store, receipt.path),
            # By the store's place: stores of the same images are other sources.
            stem=stem_of(join(store, receipt.shard)),
            size=receipt.bytes,
            modified=receipt.sha256,
        )
        for receipt in version.shards
    ]


def _refuse_files_of_stores(shards: list[Shard]) -> list[Shard]:
    """Refuses files in the ``data/`` of a store, of which some may be of earlier versions.

    Raises:
        InputError: naming the store.
    """
    folders = {shard.uri.rpartition("/")[0] for shard in shards}
    for folder in sorted(folders):
        store, _, name = folder.rpartition("/")
        if name == shard_writer.FOLDER and snapshot.versions(store):
            raise InputError(
                folder,
                expected="a store by its folder, of which the last version is read",
                found=f"files of a store; name {store}",
            )
    return shards
