"""The model of codes that are compared with each other."""

from __future__ import annotations

from raypq.config import ClusterJob, DeduplicateJob, DuplicatesJob, Metric, NeighborsJob
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ModelError
from raypq.methods.base import Model
from raypq.stages.stores.code_store import metric_of, models_for, warn_of_codes_for_classes


def images_of_one_model(
    job: DuplicatesJob | DeduplicateJob | NeighborsJob | ClusterJob, version: Snapshot
) -> tuple[Model, Metric]:
    """The model of a store whose codes are compared with each other, and the metric.

    Raises:
        ModelError: several models, or one whose codes are of classes.
    """
    models = models_for(job.codes, version, job.model)
    if len(models) > 1:
        raise ModelError(
            job.codes,
            expected="codes of one model, to compare them with each other",
            found=f"{len(models)} models; encode all of the store with one",
        )
    (model,) = models.values()
    if model.stores_classes:
        raise ModelError(
            job.codes,
            expected="codes of images",
            found=f"codes of class probabilities ({model.method}), which are as near for two "
            "images of one class as for duplicates; encode with another model, such as pq or opq, "
            "or train with codes=parts",
        )
    warn_of_codes_for_classes(job.codes, models)
    return model, metric_of(models, job.metric)
