"""Work ids: digests of everything that a shard's output depends on.

A receipt has the id of its work. A later run with the same work id keeps the shard. So jobs that
give different outputs must have different ids, and an upgrade must not change the id of a job that
gives the same output: every store would be encoded anew.

So the settings of every command are listed here. Those of version 1 have a frozen form (a test
holds the ids of existing stores). Later settings enter only where they differ from their default.
Files that are named by a path enter by their content. The input shard is not part of the id: a
receipt names it separately.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from raypq.config import (
    ClassifyJob,
    ClusterJob,
    ClusterSettings,
    Columns,
    DeduplicateJob,
    DuplicatesJob,
    EncodeJob,
    ExtractJob,
    Metric,
    NeighborsJob,
    SearchJob,
    Settings,
)
from raypq.data.storage import Shard

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Fields:
    """How each setting of a job enters its work id.

    A setting that is on no list enters where it differs from its default, so a forgotten one can
    only cause work to be repeated. A test checks that every setting is on a list.

    Attributes:
        always: settings of version 1, in this order.
        later: settings that enter where they differ from their default.
        apart: settings with a form of their own, such as a file's content instead of its path.
        none: settings on which no output depends.
    """

    always: tuple[str, ...]
    later: frozenset[str] = field(default_factory=frozenset)
    apart: frozenset[str] = field(default_factory=frozenset)
    none: frozenset[str] = field(default_factory=frozenset)

    @property
    def decided(self) -> set[str]:
        """All settings on a list."""
        return {*self.always, *self.later, *self.apart, *self.none}

    def of(self, settings: Settings) -> dict[str, Any]:
        """The settings that enter, as plain JSON values."""
        values = {name: _plain(settings, name) for name in self.always}
        excluded = {*self.always, *self.apart, *self.none}
        for name, info in type(settings).model_fields.items():
            default = info.get_default(call_default_factory=True, validated_data={})
            if name not in excluded and getattr(settings, name) != default:
                values[name] = _plain(settings, name)
        return values


# Settings of columns that a job does not read are included (``image_size`` where features are
# vectors): version 1 had them, and dropping them would change the id of every store.
COLUMNS = Fields(always=("id", "feature", "label", "width", "image_size", "bad_images"))
WHERE = Fields(
    always=(),
    later=frozenset({"device"}),  # devices round differently
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
    apart=frozenset({"model", "where", "backbone", "network"}),  # the model's fingerprint has them
    none=frozenset(
        {"features", "images", "output", "duplicate_ids", "append", "on_bad_shard", "monitoring"}
    ),
)
EXTRACT = Fields(
    always=("dtype", "columns"),
    apart=frozenset({"where", "backbone", "network"}),  # the backbone's fingerprint has them
    none=frozenset({"images", "output", "on_bad_shard", "monitoring"}),
)
CLASSIFY = Fields(
    always=("candidates", "top_k", "columns"),
    later=frozenset({"logit_scale", "logit_bias", "probability", "threshold"}),
    apart=frozenset({"model", "classes", "metric", "calibration", "no_calibration", "where"}),
    none=frozenset(
        {
            "codes",
            "version",
            "features",
            "output",
            "on_bad_shard",
            "unknown_labels",
            "monitoring",
        }
    ),
)
SEARCH = Fields(
    always=("top_k", "distance", "filter", "rerank", "features", "columns"),
    apart=frozenset({"model", "codes", "version", "metric", "ids", "query_ids", "where"}),
    none=frozenset({"queries", "output", "on_bad_shard", "monitoring"}),
)
DUPLICATES = Fields(
    always=(),
    later=frozenset({"rerank", "columns"}),
    apart=frozenset(
        {"model", "codes", "version", "metric", "threshold", "against", "features", "where"}
    ),
    none=frozenset(  # more pairs than max_pairs are an error, not cut off
        {"max_pairs", "output", "on_bad_shard", "monitoring"}
    ),
)

DEDUPLICATE = Fields(
    always=(),
    later=frozenset({"rerank", "linkage", "keep", "keep_by", "columns"}),
    apart=frozenset(
        {"model", "codes", "version", "metric", "threshold", "prefer", "features", "where"}
    ),
    none=frozenset(  # lists are compared by themselves
        {"output", "keep_list", "drop_list", "monitoring"}
    ),
)

NEIGHBORS = Fields(
    always=("top_k",),
    apart=frozenset({"model", "codes", "version", "metric", "where"}),
    none=frozenset({"output", "monitoring"}),
)

CLUSTER = Fields(
    always=("k", "iterations", "seed"),
    apart=frozenset({"model", "codes", "version", "metric", "where"}),
    none=frozenset(  # which centres are meant is in the id of their fit
        {"output", "refit", "monitoring"}
    ),
)


def encode_work(fingerprint: str, job: EncodeJob) -> str:
    """The work id of encoding a shard."""
    return _id(fingerprint, _text(ENCODE.of(job) | WHERE.of(job.where)))


def extract_work(fingerprint: str, job: ExtractJob) -> str:
    """The work id of extracting the features of a shard by a backbone."""
    return _id(fingerprint, _text(EXTRACT.of(job) | WHERE.of(job.where)))


def classify_work(
    fingerprint: str, job: ClassifyJob, *, scores: str, classes: str, candidates: str | None
) -> str:
    """The work id of classifying a shard.

    Args:
        scores: metric, calibration and added classes, on which scores depend besides the model.
        classes: digest of the class table.
        candidates: digest of the candidates, where a file lists them.
    """
    settings = CLASSIFY.of(job)
    if candidates is not None:
        settings["candidates"] = {"sha256": candidates}
    return _id(fingerprint, f"{_text(settings | WHERE.of(job.where))}{scores}:{classes}")


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
    """The work id of searching for a file of queries.

    Args:
        models: fingerprints of the models that made the codes.
        codes: sha256 of each code file.
        ids, query_ids: digests of these files.
        originals: the feature files for the rerank.
    """
    settings = SEARCH.of(job)
    if job.features is not None:
        settings["features"] = [[shard.uri, shard.size, shard.modified] for shard in originals]
    content = hashlib.sha256()
    for digest in (*codes, ids, query_ids):
        content.update(f"{digest}\n".encode())
    return _id(models, f"{_text(settings | WHERE.of(job.where))}{metric}{content.hexdigest()}")


def duplicates_work(
    fingerprint: str,
    job: DuplicatesJob,
    *,
    metric: Metric,
    codes: Iterable[str],
    against: Iterable[str] | None = None,
    originals: Sequence[Shard] = (),
) -> str:
    """The work id of finding near-duplicates in a store; ``codes`` and ``originals`` as in
    ``search_work``, and ``against`` likewise of another store."""
    content = hashlib.sha256("\n".join(codes).encode())
    if against is not None:
        content.update(f"\nagainst {' '.join(against)}".encode())
    content.update(_content_of(originals))
    later = DUPLICATES.of(job) | WHERE.of(job.where)
    suffix = f":{_text(later)}" if later else ""
    return _id(fingerprint, f"{metric}:{job.threshold!r}:{content.hexdigest()}{suffix}")


def deduplicate_settings(
    fingerprint: str,
    job: DeduplicateJob,
    *,
    metric: Metric,
    prefer: str | None,
) -> str:
    """The digest of everything that groups of near-duplicates depend on, but the codes and their
    source; ``prefer``: that of the ids that are kept."""
    settings = _text(DEDUPLICATE.of(job) | WHERE.of(job.where))
    return _id(fingerprint, f"groups2:{metric}:{job.threshold!r}:{prefer}:{settings}")


def deduplicate_work(
    settings: str, *, codes: Iterable[str], originals: Sequence[Shard] = ()
) -> str:
    """The work id of the groups of near-duplicates; ``codes`` and ``originals`` as in
    ``search_work``."""
    content = hashlib.sha256("\n".join(codes).encode() + _content_of(originals))
    return _id(settings, content.hexdigest())


def _content_of(originals: Sequence[Shard]) -> bytes:
    """Files of original vectors as bytes to hash; none without any."""
    return "".join(
        f"\noriginal {shard.uri} {shard.size} {shard.modified}" for shard in originals
    ).encode()


def parts_work(work: str, plan_of_tasks: str) -> str:
    """The work id of the first pass of a work, by which a rerun finds what was finished."""
    return _id(work, f"parts:{plan_of_tasks}")


def neighbors_work(
    fingerprint: str, job: NeighborsJob, *, metric: Metric, codes: Iterable[str]
) -> str:
    """The work id of the neighbours of a code file; ``codes`` as in ``search_work``, since they are
    of the whole store."""
    content = hashlib.sha256("\n".join(codes).encode())
    settings = NEIGHBORS.of(job) | WHERE.of(job.where)
    return _id(fingerprint, f"neighbors:{metric}:{_text(settings)}:{content.hexdigest()}")


def cluster_settings(fingerprint: str, job: ClusterJob, *, metric: Metric) -> str:
    """The id of the settings by which centres are found."""
    settings = CLUSTER.of(job) | WHERE.of(job.where)
    return _id(fingerprint, f"clusters:{metric}:{_text(settings)}")


def cluster_fit(settings: str, codes: Iterable[str]) -> str:
    """The id of centres, by their settings and the codes that they were found from; ``codes`` as in
    ``search_work``."""
    content = hashlib.sha256("\n".join(codes).encode())
    return _id(settings, f"fit:{content.hexdigest()}")


def cluster_work(fit: str) -> str:
    """The work id of assigning the images of a code file to centres."""
    return _id(fit, "assign")


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
    ExtractJob: EXTRACT,
    ClassifyJob: CLASSIFY,
    SearchJob: SEARCH,
    DuplicatesJob: DUPLICATES,
    DeduplicateJob: DEDUPLICATE,
    NeighborsJob: NEIGHBORS,
    ClusterJob: CLUSTER,
}
"""The fields of every job that has a work id, and of its sections."""
