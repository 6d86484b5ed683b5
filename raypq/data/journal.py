"""What is finished already: receipts that outlive a crash, and a rerun takes over.

``journal/<work>/<time>-<nonce>.json`` holds the receipts of shards finished since the file before
it; ``work`` names the model and the settings, so a receipt counts for a shard as long as the
shard itself is unchanged, whatever happened to its neighbours. A crash loses at most the last
``_SECONDS`` of receipts: their shards are done again, and their files are left to ``gc``.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable

from pydantic import ValidationError

from raypq import console
from raypq.data.output import Receipt
from raypq.data.storage import create_once, delete, join, list_files, list_names, read_bytes
from raypq.errors import ConflictError

_SECONDS = 1.0  # between journal files
_MANY = 256  # receipts that are written down at once


class Journal:
    """The receipts of one kind of work on one store."""

    def __init__(self, store: str, work: str) -> None:
        self._folder = join(store, "journal", work)
        self._store = store
        self._new: list[Receipt] = []
        self._last = time.monotonic()

    def read(self) -> list[Receipt]:
        """Every receipt written down, later ones last; a file that is damaged is left out."""
        receipts = []
        for name in list_names(self._folder):
            if name.startswith(".") or not name.endswith(".json"):
                continue
            try:
                found = json.loads(read_bytes(join(self._folder, name)))
                receipts += [Receipt(**entry) for entry in found]
            except (ValueError, TypeError, ValidationError) as error:
                # What it recorded is done again; nothing else is lost.
                console.warn(f"{join(self._folder, name)}: unreadable journal file: {error}")
        return receipts

    def add(self, receipt: Receipt) -> None:
        """Notes a finished shard; written down within a second or so."""
        self._new.append(receipt)
        if len(self._new) >= _MANY or time.monotonic() - self._last >= _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes down what is new."""
        if self._new:
            name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
            content = json.dumps([receipt.model_dump(mode="json") for receipt in self._new])
            if not create_once(join(self._folder, name), content.encode()):
                raise ConflictError(f"{join(self._folder, name)}: written by somebody else")
            self._new = []
        self._last = time.monotonic()

    def clear(self) -> None:
        """Forgets everything; called once a snapshot holds the receipts."""
        for name in list_names(self._folder):
            delete(join(self._folder, name))


def still_there(store: str, receipts: Iterable[Receipt]) -> list[Receipt]:
    """The receipts whose files are in the store in full; one listing, not one look each."""
    receipts = list(receipts)
    if not receipts:
        return []
    files = list_files(join(store, "data"))
    return [
        receipt
        for receipt in receipts
        if (listed := files.get(receipt.path.removeprefix("data/")))
        and listed.size == receipt.bytes
    ]
