"""The shards of a job's source: files in any layout, and the files of feature stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raypq.config import Columns
from raypq.data.features import FeatureStore
from raypq.data.layouts import list_features
from raypq.data.storage import Shard, join
from raypq.data.store import snapshot
from raypq.errors import EmptySourceError, InputError


def open_sources(uris: Sequence[str], columns: Columns | None = None) -> FeatureStore:
    """The shards of places that a job names, and their columns; opens none of them.

    Raises:
        InputError: no feature file; see ``list_sources``.
    """
    return FeatureStore(shards=list_sources(uris), columns=columns or Columns())


def list_sources(uris: Sequence[str]) -> list[Shard]:
    """As ``list_features``; of a store that ``raypq extract`` wrote, the files of the last version.

    A file of a store keeps the name of its shard when it is written again, and its version tag is
    its sha256.

    Raises:
        MissingSourceError, EmptySourceError, InputError: see ``list_features``.
        InputError: a store of codes or predictions.
    """
    stores = [uri for uri in uris if _is_store(uri)]
    shards = [shard for store in stores for shard in _stored(store)]
    if plain := [uri for uri in uris if uri not in stores]:
        shards += list_features(plain)
    elif not shards:
        raise EmptySourceError(
            ", ".join(uris), expected="at least one shard of features", found="an empty store"
        )
    shards.sort(key=lambda shard: shard.uri)
    return [replace(shard, index=index) for index, shard in enumerate(shards)]


def _is_store(uri: str) -> bool:
    return bool(snapshot.versions(uri))


def _stored(store: str) -> list[Shard]:
    version = snapshot.read(store)
    if version.kind != "features":
        raise InputError(store, expected="features, or images", found=f"a store of {version.kind}")
    return [
        Shard(
            index=0,
            uri=join(store, receipt.path),
            stem=receipt.shard,
            size=receipt.bytes,
            modified=receipt.sha256,
        )
        for receipt in version.shards
    ]
