"""Classes that a model was not trained on: where they will hardly be predicted."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import console
from raypq.config import ClassifyJob
from raypq.data.classes import ClassTable
from raypq.methods.base import Model
from raypq.stages.stores import model_store


def warn_of_untrained(
    job: ClassifyJob, model: Model, table: ClassTable, chosen: NDArray[np.int64], path: str
) -> None:
    """Warns of a table that contradicts the training, and of scores without calibration.

    Args:
        chosen: the candidates, as rows of the table. path: of the model.
    """
    ids = table.ids.take(pa.array(chosen)).to_pylist()
    trained = set(model.classes or ())
    if not trained or not model.needs_embeddings(ids):
        return
    if table.seen is not None:
        known = np.array([name in trained for name in ids])
        wrong = np.flatnonzero(known != table.seen[chosen])
        if len(wrong):
            name, is_known = ids[int(wrong[0])], bool(known[wrong[0]])
            console.warn(
                f"{table.uri}, column 'seen': {len(wrong):,} classes are not as in the training of "
                f"{path}, such as {name!r}, which it was {'' if is_known else 'not '}trained on; "
                "the wrong scores are calibrated. Write seen as in the class table of training"
            )
    others = [name for name in ids if name not in trained]
    calibrated = model.record.get(model_store.CALIBRATION) is not None and table.seen is not None
    if len(others) < len(ids) and not calibrated and job.calibration is None:
        reason = (
            "the class table has no column 'seen', so that scores cannot be calibrated"
            if table.seen is None
            else f"{path} has no calibration, as after training with a class table without unseen "
            "classes"
        )
        if not job.no_calibration:
            console.warn(
                f"{table.uri}: {len(others):,} classes, such as {others[0]!r}, that {path} was not "
                f"trained on will hardly be predicted beside those that it was: {reason}. Train "
                "with a class table that holds some unseen classes, with the column seen, or name "
                "a calibration (--calibration, calibration)"
            )
