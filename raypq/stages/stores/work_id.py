"""Work ids: digests of everything that a shard's output depends on.

A receipt carries the id of its work. A later run whose work has the same id keeps the shard, so
two works that give different outputs must never share an id, and an upgrade must not change the
ids of works that give the same: that would encode every store anew.

So every verb lists its settings here. Those of version 1 are written in a form that is frozen (a
test holds the ids of stores that exist). A setting that came later enters only where it differs
from its default. A file that is named by a path and read by content enters by its content. The
input shard itself is no part: a receipt names it beside the work.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from raypq.config import (
    ClassifyJob,
    ClusterSettings,
    Columns,
    DuplicatesJob,
    EncodeJob,
    Metric,
    SearchJob,
    Settings,
)
from raypq.data.storage import Shard

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Fields:
    """How each setting of a job enters the id of its work.

    A setting that is on none of the lists enters where it differs from its default, so forgetting
    one can only redo work; a test asks for the decision.

    Attributes:
        always: since version 1, in this order.
        later: where they differ from their default.
        apart: in a form of their own, such as a file's content in place of its path.
        none: no output depends on them.
    """

    always: tuple[str, ...]
    later: frozenset[str] = field(default_factory=frozenset)
    apart: frozenset[str] = field(default_factory=frozenset)
    none: frozenset[str] = field(default_factory=frozenset)

    @property
    def decided(self) -> set[str]:
        """Every setting on a list."""
        return {*self.always, *self.later, *self.apart, *self.none}

    def of(self, settings: Settings) -> dict[str, Any]:
        """The settings that enter, as plain JSON values."""
        found = {name: _plain(settings, name) for name in self.always}
        left_out = {*self.always, *self.apart, *self.none}
        for name, about in type(settings).model_fields.items():
            default = about.get_default(call_default_factory=True, validated_data={})
            if name not in left_out and getattr(settings, name) != default:
                found[name] = _plain(settings, name)
        return found


# Columns that a job does not read are here too (``image_size`` where features are vectors): they
# were from the start, and leaving them out now would change the id of every store.
COLUMNS = Fields(always=("id", "feature", "label", "width", "image_size", "bad_images"))
WHERE = Fields(
    always=(),
    later=frozenset({"device"}),  # another device rounds otherwise
    none=frozenset(
        {
            "cluster",
            "workers",
            "threads",
            "gpus_per_worker",
            "memory_per_worker",
            "start_timeout",
        }
    ),
)
ENCODE = Fields(
    always=("precision", "columns"),
    apart=frozenset({"model", "where"}),
    none=frozenset({"features", "output", "duplicate_ids", "append", "on_bad_shard"}),
)
CLASSIFY = Fields(
    always=("candidates", "top_k", "columns"),
    apart=frozenset({"model", "classes", "metric", "calibration", "where"}),
    none=frozenset({"codes", "version", "features", "output", "on_bad_shard", "unknown_labels"}),
)
SEARCH = Fields(
    always=("top_k", "distance", "filter", "rerank", "features", "columns"),
    apart=frozenset({"model", "codes", "version", "metric", "ids", "query_ids", "where"}),
    none=frozenset({"queries", "output", "on_bad_shard"}),
)
DUPLICATES = Fields(
    always=(),
    apart=frozenset({"model", "codes", "version", "metric", "threshold", "where"}),
    none=frozenset({"max_pairs", "output", "on_bad_shard"}),  # more pairs are refused, never cut
)


def encode_work(fingerprint: str, job: EncodeJob) -> str:
    """The id of encoding a shard."""
    return _id(fingerprint, _text(ENCODE.of(job) | WHERE.of(job.where)))


def classify_work(
    fingerprint: str, job: ClassifyJob, *, scores: str, classes: str, candidates: str | None
) -> str:
    """The id of classifying a shard.

    Args:
        scores: what the scores depend on beside the model: metric, calibration, added classes.
        classes: digest of the class table.
        candidates: digest of the classes to choose among, where a file says which.
    """
    found = CLASSIFY.of(job)
    if candidates is not None:
        found["candidates"] = {"sha256": candidates}
    return _id(fingerprint, f"{_text(found | WHERE.of(job.where))}{scores}:{classes}")


def search_work(
    models: str,
    job: SearchJob,
    *,
    metric: Metric,
    codes: Iterable[str],
    ids: str | None,
    query_ids: str | None,
    originals: Sequence[Shard],
) -> str:
    """The id of answering a file of queries.

    Args:
        models: fingerprints of the models that made the codes.
        codes: sha256 of each code file.
        ids, query_ids: digests of these files.
        originals: the feature files that candidates are scored by again.
    """
    found = SEARCH.of(job)
    if job.features is not None:
        found["features"] = [[shard.uri, shard.size, shard.modified] for shard in originals]
    content = hashlib.sha256()
    for digest in (*codes, ids, query_ids):
        content.update(f"{digest}\n".encode())
    return _id(models, f"{_text(found | WHERE.of(job.where))}{metric}{content.hexdigest()}")


def duplicates_work(
    fingerprint: str, job: DuplicatesJob, *, metric: Metric, codes: Iterable[str]
) -> str:
    """The id of comparing the codes of a store with each other; ``codes`` as in ``search_work``."""
    content = hashlib.sha256("\n".join(codes).encode())
    later = DUPLICATES.of(job) | WHERE.of(job.where)
    added = f":{_text(later)}" if later else ""
    return _id(fingerprint, f"{metric}:{job.threshold!r}:{content.hexdigest()}{added}")


def _id(fingerprint: str, settings: str) -> str:
    return hashlib.sha256(f"{VERSION}:{fingerprint}:{settings}".encode()).hexdigest()[:32]


def _text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, separators=(",", ":"), ensure_ascii=False)


def _plain(settings: Settings, name: str) -> Any:
    value = getattr(settings, name)
    if isinstance(value, Columns):
        return COLUMNS.of(value)
    return settings.model_dump(mode="json", include={name})[name]


BY_JOB: dict[type[Settings], Fields] = {
    Columns: COLUMNS,
    ClusterSettings: WHERE,
    EncodeJob: ENCODE,
    ClassifyJob: CLASSIFY,
    SearchJob: SEARCH,
    DuplicatesJob: DUPLICATES,
}
"""Of every job whose outputs are kept by the id of its work, and of the sections in it."""
