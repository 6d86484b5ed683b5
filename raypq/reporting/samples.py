"""Choosing what is shown of a store: evenly spaced, so that the same inputs give the same page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from raypq.data.store import snapshot
from raypq.data.store.origins import Origins, code_files_of
from raypq.errors import InputError
from raypq.reporting.findings import Findings, Store, shorten

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the pictures of all stores need.

    Attributes:
        names: of classes, by class_id. origins: where the rows of stores come from.
        short: paths of stores for display. locates: whether the shards of images are looked for;
            ids alone need none.
    """

    names: Mapping[str, str]
    origins: Origins
    short: Mapping[str, str]
    locates: bool = True

    @classmethod
    def of(cls, findings: Findings, names: Mapping[str, str], *, locates: bool = True) -> Context:
        """The context of a page; names that are not given are those of its evaluations."""
        known = {
            str(row["class_id"]): str(row["name"])
            for item in findings.evaluations
            for row in item.content.get("per_class") or ()
        }
        return cls(
            names={**known, **names},
            origins=Origins([store.versions for store in findings.stores]),
            short=shorten([store.place for store in findings.stores]),
            locates=locates,
        )

    def name(self, class_id: str) -> str:
        """The name of a class, with its class_id where they differ."""
        name = self.names.get(class_id, class_id)
        return name if name == class_id else f"{name} ({class_id})"

    def origins_of(self, store: Store, ids: pa.Array) -> dict[str, str]:
        """The source shard of ids in the code store that a result store names, by id as text; ids
        whose shard is not known are absent."""
        codes, number = store.latest.summary.get("codes"), store.latest.summary.get("codes_version")
        if not self.locates or not isinstance(codes, str) or not isinstance(number, int):
            return {}
        try:
            version = snapshot.read(codes, number)
            files = code_files_of(codes, version, ids)
        except (InputError, OSError, pa.ArrowInvalid):  # moved or removed: the images are searched
            return {}
        return {name: self.origins.of(file) for name, file in files.items()}


def evenly(items: Sequence[T], most: int) -> list[T]:
    """Up to ``most`` evenly spaced items, in order."""
    count = min(most, len(items))
    return [items[(2 * at + 1) * len(items) // (2 * count)] for at in range(count)]
