"""The outcome of a run as one JSON object: its result or error, and the shards that failed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from raypq import exits
from raypq.config import Job
from raypq.errors import JobError, ShardFailure, message_of
from raypq.execution import pass_counts
from raypq.execution.pass_counts import PassCounts
from raypq.monitoring.results import result_of


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended.

    Attributes:
        began: when it began. seconds: that it took.
        returned: by the job's function; None where it failed. error: the error that ended it.
        passes: the work on shards, by its label.
    """

    job: Job
    began: datetime
    seconds: float
    returned: Any = None
    error: BaseException | None = None
    passes: Mapping[str, PassCounts]

    @property
    def result(self) -> dict[str, Any] | None:
        """The result as plain values; None where the run failed."""
        return None if self.error else result_of(self.job, self.returned)

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return exits.code_of(self.error) if self.error else 0

    @property
    def failures(self) -> list[ShardFailure]:
        """The shards that failed, those that are left out not among them."""
        failures = {item.shard: item for counts in self.passes.values() for item in counts.failed}
        if isinstance(self.error, JobError):
            left_out = {item.shard for item in self.quarantined}
            failures |= {
                item.shard: item for item in self.error.failures if item.shard not in left_out
            }
        return list(failures.values())

    @property
    def quarantined(self) -> list[ShardFailure]:
        """The shards of bad input that this run left out."""
        items = (item for counts in self.passes.values() for item in counts.quarantined)
        return list({item.shard: item for item in items}.values())

    def document(self) -> dict[str, Any]:
        """The outcome as plain values."""
        error = self.error
        return {
            "verb": self.job.verb,
            "status": "failed" if error else "done",
            "exit_code": self.exit_code,
            "began": self.began.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 3),
            "result": self.result,
            "error": {"kind": type(error).__name__, "message": message_of(error)}
            if error
            else None,
            "passes": {
                label: {
                    "done": counts.done,
                    "failed": len(counts.failed),
                    "quarantined": len(counts.quarantined),
                    "not_tried": counts.not_tried,
                    "images": counts.images,
                }
                for label, counts in self.passes.items()
            },
            "failed": [item.as_dict() for item in self.failures],
            "quarantined": [item.as_dict() for item in self.quarantined],
        }

    def value(self) -> Any:
        """What the job's function returned; raises the error where it failed."""
        if self.error:
            raise self.error
        return self.returned

    def line(self) -> str:
        """The document as one line of JSON."""
        return json.dumps(self.document(), default=str)


def of_run(job: Job, call: Callable[[], Any]) -> Outcome:
    """Runs a job; its error is part of the outcome, and is not raised."""
    began, start = datetime.now(UTC), time.monotonic()
    returned, error = None, None
    with pass_counts.collected() as passes:
        try:
            returned = call()
        except BaseException as raised:  # an interrupt has an outcome, too
            error = exits.as_terminated(raised)
    return Outcome(
        job=job,
        began=began,
        seconds=time.monotonic() - start,
        returned=returned,
        error=error,
        passes=passes,
    )
