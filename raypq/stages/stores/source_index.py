"""Which sources of a store have files in common with an input shard.

A source is a file, or a part of a folder of images: parts divide and unite as files come and go,
and a part has files in common with those that it divides or that divide it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable

from raypq.data.layouts.image_folder import Part
from raypq.data.storage import canonical


class SourceIndex:
    """Sources by canonical URI, for a lookup of those that overlap a shard."""

    def __init__(self, uris: Iterable[str]) -> None:
        self._uris = {canonical(uri) for uri in uris}
        self._parts: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)  # first keys
        for uri in self._uris:
            if part := Part.of(uri):
                self._parts[part.source].append((part.first_key, uri))
        for parts in self._parts.values():
            parts.sort()

    def overlapping(self, uri: str) -> list[str]:
        """The canonical URIs here that have files in common with a URI."""
        uri = canonical(uri)
        part = Part.of(uri) if self._parts else None
        if part is None or part.source not in self._parts:
            return [uri] if uri in self._uris else []
        found = [outer.uri for outer in part.outer() if outer.uri in self._uris]
        parts = self._parts[part.source]
        low = bisect_left(parts, (part.first_key,))
        high = bisect_left(parts, (part.first_key + part.keys,))
        inner = (other for _, other in parts[low:high])
        return [*found, *(other for other in inner if other not in found)]
