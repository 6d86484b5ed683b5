"""Groups of near-duplicates: of each the image that is kept, and those farthest from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.data.image_lookup import Wanted
from raypq.data.storage import CheckedFile, join, stream
from raypq.data.stored import open_stored
from raypq.errors import DamagedError
from raypq.reporting.findings import Store
from raypq.reporting.pictures import Gallery, Picture, Row
from raypq.reporting.samples import Context
from raypq.reporting.tables import count

_GROUPS = 4  # largest ones, ones at the threshold, and nearest ones
_IMAGES = 8  # of a group
_BATCH = 1 << 16  # rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Groups:
    """Groups of a store, in the order of its files.

    Attributes:
        file: number of the file that a group is in [n]; start, size: its first row there and its
            number of images [n].
        farthest: distance to the kept image of the image that is farthest from it [n] float32; for
            similarities, their negative.
    """

    file: NDArray[np.int64]
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    farthest: NDArray[np.float32]

    def orders(self) -> dict[str, NDArray[np.int64]]:
        """The reasons why a group is shown, each with the groups by it, best first."""
        return {
            "one of the largest": np.argsort(-self.size, kind="stable"),
            "at the threshold": np.argsort(-self.farthest, kind="stable"),
            "one of the nearest": np.argsort(self.farthest, kind="stable"),
        }

    def take(self, numbers: NDArray[np.int64]) -> Groups:
        """The groups of these numbers."""
        return Groups(
            file=self.file[numbers],
            start=self.start[numbers],
            size=self.size[numbers],
            farthest=self.farthest[numbers],
        )


def gallery(store: Store, context: Context) -> Gallery:
    """The largest groups, those at the threshold, and the nearest.

    Raises:
        InputError: a file of the store cannot be read.
    """
    title, summary = context.short[store.place], store.latest.summary
    if not store.latest.rows:
        return Gallery(title=title, note="There are no near-duplicates.")
    nearer = -1 if summary.get("metric") == "l2" else 1  # the sign of a score that is nearer
    groups, total = read(store, nearer)
    chosen = choose(groups)
    images = []
    for at, _ in chosen:
        with _open(store, int(groups.file[at])) as file:
            start, size = int(groups.start[at]), int(groups.size[at])
            images.append(_images(file, start, size, nearer))
    origins = context.origins_of(store, pa.concat_arrays([ids for ids, _ in images]).unique())
    rows = [
        _row(why, int(groups.size[at]), ids, scores, origins)
        for (at, why), (ids, scores) in zip(chosen, images, strict=True)
    ]
    note = (
        f"{len(chosen)} of {count(total)} groups (threshold {summary.get('threshold')}): the "
        "largest, those at the threshold (whose farthest image is farthest from the kept one), and "
        "the nearest. Of each, the image that is kept, then the images farthest from it. Below an "
        f"image: its {'distance to' if nearer < 0 else 'similarity with'} the kept one."
    )
    return Gallery(title=title, note=note, rows=rows)


def _open(store: Store, number: int) -> AbstractContextManager[CheckedFile]:
    columns = store.latest.shards.columns("path", "bytes")
    path, size = (column[number].as_py() for column in columns)
    return open_stored(join(store.place, path), "groups", size=size)


def read(store: Store, nearer: int) -> tuple[Groups, int]:
    """The groups that may be shown, and the number of all groups.

    Args:
        nearer: sign of a score that is nearer.

    Raises:
        DamagedError: a file does not begin with a kept image.
    """
    none = np.array([], np.int64)
    groups = Groups(file=none, start=none, size=none, farthest=none.astype(np.float32))
    total = 0
    for number in range(len(store.latest.shards)):
        with _open(store, number) as file:
            for part in _parts(file, number, nearer):
                total += len(part.start)
                groups = _best(groups, part)
    return groups, total


def _parts(file: CheckedFile, number: int, nearer: int) -> Iterator[Groups]:
    """The groups of a file, in parts."""
    row = 0
    last: Groups | None = None  # the group that may go on in the next batch
    for batch in stream(file, _BATCH, ["size", "kept", "score"]):
        kept = batch.column("kept").to_numpy(zero_copy_only=False)
        away = np.where(kept, -np.inf, -nearer * batch.column("score").to_numpy())
        starts = np.flatnonzero(kept)
        first = starts[0] if len(starts) else len(kept)
        if first and last is None:
            raise DamagedError(
                file.uri, expected="groups, each with its kept image first", found="another order"
            )
        if first and last is not None:
            last.farthest[0] = max(last.farthest[0], away[:first].max())
        row += len(batch)
        if not len(starts):
            continue
        if last is not None:
            yield last
        found = Groups(
            file=np.full(len(starts), number),
            start=row - len(batch) + starts,
            size=batch.column("size").to_numpy()[starts],
            farthest=np.maximum.reduceat(away, starts).astype(np.float32),
        )
        yield found.take(np.arange(len(starts) - 1))
        last = found.take(np.array([len(starts) - 1]))
    if last is not None:
        yield last


def _best(groups: Groups, more: Groups) -> Groups:
    """Those of both that may be shown."""
    both = Groups(
        file=np.r_[groups.file, more.file],
        start=np.r_[groups.start, more.start],
        size=np.r_[groups.size, more.size],
        farthest=np.r_[groups.farthest, more.farthest],
    )
    return both.take(np.unique([order[: 3 * _GROUPS] for order in both.orders().values()]))


def choose(groups: Groups) -> list[tuple[int, str]]:
    """Numbers of groups with the reason why each is shown."""
    chosen: dict[int, str] = {}
    for why, order in groups.orders().items():
        left = [at for at in order.tolist() if at not in chosen]
        chosen |= dict.fromkeys(left[:_GROUPS], why)
    return list(chosen.items())


def _images(
    file: CheckedFile, start: int, size: int, nearer: int
) -> tuple[pa.Array, NDArray[np.float32]]:
    """Ids of the kept image of a group and of those farthest from it [n], farthest first; scores
    of the latter [n - 1]."""
    bounds = np.cumsum([0, *(rows for rows, _ in file.footer.groups)])
    parts = range(
        int(np.searchsorted(bounds, start, "right")) - 1,
        int(np.searchsorted(bounds, start + size, "left")),
    )
    row = int(bounds[parts.start])
    ids, scores = [], []
    for batch in file.iter_batches(_BATCH, parts, ["id", "score"]):
        first, last = (min(max(at - row, 0), len(batch)) for at in (start, start + size))
        away = -nearer * batch.column("score").to_numpy()[first:last]
        if first + row == start and len(away):
            away[0] = np.inf  # the kept one
        best = np.argsort(-away, kind="stable")[:_IMAGES]
        ids.append(batch.column("id").take(pa.array(first + best)))
        scores.append(away[best])
        row += len(batch)
    order = np.argsort(-np.concatenate(scores), kind="stable")[:_IMAGES]
    found = -nearer * np.concatenate(scores)[order[1:]]
    return pa.concat_arrays(ids).take(pa.array(order)), found


def _row(
    why: str,
    size: int,
    ids: pa.Array,
    scores: NDArray[np.float32],
    origins: Mapping[str, str],
) -> Row:
    kept, *others = [Wanted(name, origins.get(name)) for name in ids.cast(pa.string()).to_pylist()]
    pictures = [Picture(want=kept, mark="kept")]
    pictures += [
        Picture(want=want, note=f"{score:.3g}")
        for want, score in zip(others, scores.tolist(), strict=True)
    ]
    of = f", of which {len(pictures)} are shown" if size > len(pictures) else ""
    return Row(title=f"{count(size)} images ({why}){of}", pictures=pictures)
