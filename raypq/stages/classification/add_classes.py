"""Adding classes to a model: prototypes from embeddings; codes stay as they are."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from raypq import console, kernels, machine
from raypq.config import AddClassesJob
from raypq.data.class_advice import advice
from raypq.data.classes import ClassTable
from raypq.data.storage import exists, join
from raypq.errors import ConfigError, InputError, ModelError
from raypq.methods import registry
from raypq.methods.base import Model


def add_classes(job: AddClassesJob) -> dict[str, Any]:
    """Extends a model by the classes of a table; a class that it has takes the new embedding.

    Returns:
        What was done, as plain values.

    Raises:
        ConfigError: a model exists at the output.
        ModelError: the model takes no class embeddings, or some of another width, or it has a
            linear head.
    """
    start = time.monotonic()
    if not job.overwrite and exists(join(job.output, "model.json")):
        raise ConfigError(
            f"{job.output}: a model is there already; pass --overwrite (overwrite: true) to "
            "replace it"
        )
    kernels.set_threads(job.workers or machine.usable().workers())
    model = registry.load(job.model)
    table = ClassTable.open(job.classes)
    _check(job, model, table)
    for warning in advice(table, np.arange(len(table))):
        console.warn(warning)
    ids, E = table.ids.to_pylist(), table.embeddings
    before = model.layer
    names, embeddings = before.joined(ids, E) if before else (tuple(ids), E)
    extended = model.with_classes(names, np.ascontiguousarray(embeddings))
    extended.save(job.output)
    seconds = time.monotonic() - start
    known = {*(before.ids if before else ()), *(model.classes or ())}
    added = sum(name not in known for name in ids)
    total = len(known) + added
    console.say(
        f"added {added} classes to {job.model} ({total} in all) in {seconds:.1f} s: {job.output}"
    )
    return {
        "model": job.output,
        "fingerprint": extended.fingerprint,
        "added": added,
        "replaced": len(ids) - added,
        "classes": total,
        "seconds": seconds,
    }


def _check(job: AddClassesJob, model: Model, table: ClassTable) -> None:
    """Refuses a model or classes that cannot be put together."""
    if model.has_head:
        raise ModelError(
            job.model,
            expected="a model without a linear head",
            found="a head, which has weights in place of class embeddings; train a head with the "
            "new classes (raypq train linear), or add them to the model without it",
        )
    if model.da is None:
        raise ModelError(
            job.model,
            expected="a model that takes class embeddings",
            found=f"{model.method}, which has no class projection",
        )
    if not len(table):
        raise InputError(job.classes, expected="classes to add", found="a table without rows")
    if table.bias is not None:
        raise InputError(
            job.classes,
            expected="classes without a bias of their own",
            found="the column 'bias', which a model does not store; classify takes this table "
            "directly, or leave the column out",
        )
    if table.prototypes is not None:
        raise InputError(
            job.classes,
            expected="one embedding of each class, which a model can store",
            found="several (the column 'prototypes'); classify takes this table directly",
        )
    model.check_encoder(table.encoder, table.ids.to_pylist(), where=job.classes)
    if table.embeddings.shape[1] != model.da:
        raise ModelError(
            job.classes,
            expected=f"class embeddings of width {model.da}, as in training",
            found=str(table.embeddings.shape[1]),
        )
