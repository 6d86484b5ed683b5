"""The few errors that raypq raises on purpose.

Each says where the trouble is, what was expected and what was found, and carries the exit code
of the command line (1: the work failed, 2: wrong usage).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class RaypqError(Exception):
    """Base of every error raised on purpose; ``str(error)`` is fit to show to a user."""

    exit_code = 1


class ConfigError(RaypqError):
    """A setting is unknown, of the wrong type, or contradicts another one."""

    exit_code = 2


class InputError(RaypqError):
    """Data that cannot be used: ``where`` names the file and, where known, the row."""

    def __init__(self, where: str, *, expected: str, found: str) -> None:
        super().__init__(where, expected, found)
        self.where, self.expected, self.found = where, expected, found

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_input_error, (type(self), self.where, self.expected, self.found)

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, found {self.found}"


class EmptySourceError(InputError):
    """A place where shards are looked for holds none; it can be listed, and there is no error."""


class MissingSourceError(InputError):
    """Nothing is at a place where shards are looked for: a typo, or a disk that is not mounted."""


class DamagedError(InputError):
    """A file that is not as it was written: missing, cut off, or with other content."""


class ModelError(InputError):
    """A model that does not fit the data it is used with, or that cannot be read."""


class NotFittedError(RaypqError):
    """A method was asked for its model before it was trained."""


class DivergenceError(RaypqError):
    """Training by gradient gave a loss that is no number; the step and its terms are named."""


class ConflictError(RaypqError):
    """Another writer committed first and the two cannot be merged."""


class IncompleteError(RaypqError, AssertionError):
    """A version would lack a shard or hold one twice: a fault of raypq itself, kept from doing
    harm. (An ``AssertionError`` too, as before; ``python -O`` does not remove this one.)"""


class DriftError(RaypqError):
    """New shards are unlike the training data, and that was asked to count as a failure."""

    def __init__(self, shards: Sequence[str]) -> None:
        super().__init__(shards)
        self.shards = list(shards)

    def __str__(self) -> str:
        lines = "\n".join(f"  {shard}" for shard in self.shards)
        return f"{len(self.shards)} shard(s) drifted (everything is committed):\n{lines}"


class QuarantineError(RaypqError):
    """Shards are left out of a version, and that was asked to count as a failure."""

    def __init__(self, shards: Sequence[str]) -> None:
        super().__init__(shards)
        self.shards = list(shards)

    def __str__(self) -> str:
        lines = "\n".join(f"  {shard}" for shard in self.shards)
        return f"{len(self.shards)} shard(s) are left out (everything else is committed):\n{lines}"


@dataclass(frozen=True, kw_only=True)
class ShardFailure:
    """One shard that could not be processed, and why.

    Attributes:
        bad_input: its content is at fault, so it may be quarantined.
        may_pass: another try might succeed (``raypq.execution.retries``).
    """

    shard: str
    reason: str
    tries: int = 1
    bad_input: bool = True
    may_pass: bool = False

    def __str__(self) -> str:
        tries = f" (after {self.tries} tries)" if self.tries > 1 else ""
        # An input error names its file, which need not stand there twice.
        named = self.reason.startswith((f"{self.shard}:", f"{self.shard},"))
        rest = self.reason.removeprefix(self.shard) if named else f": {self.reason}"
        return f"{self.shard}{tries}{rest}"


class JobError(RaypqError):
    """Some shards failed; every good one is finished. ``failures`` lists all the bad ones.

    Attributes:
        done: shards that this run finished. kept: those that needed no work.
    """

    def __init__(self, failures: Sequence[ShardFailure], done: int, kept: int = 0) -> None:
        super().__init__(failures, done, kept)
        self.failures, self.done, self.kept = list(failures), done, kept

    def __str__(self) -> str:
        lines = "\n".join(f"  {failure}" for failure in self.failures)
        kept = f", {self.kept} kept as they were" if self.kept else ""
        return f"{len(self.failures)} shard(s) failed, {self.done} finished{kept}:\n{lines}"


def _rebuild_input_error(
    cls: type[InputError], where: str, expected: str, found: str
) -> InputError:
    return cls(where, expected=expected, found=found)
