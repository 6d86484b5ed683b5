"""The exceptions of raypq.

Each has the exit code of the command line (1: the work failed, 2: wrong usage).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class RaypqError(Exception):
    """Base class; ``str(error)`` is a message for users."""

    exit_code = 1


class ConfigError(RaypqError):
    """A setting is unknown, of the wrong type, or conflicts with another one."""

    exit_code = 2


class InputError(RaypqError):
    """Data that cannot be used.

    Attributes:
        location: the file and, if known, the row. expected, found: what should be there, and what
            is, with the remedy.
        field: the key of the job that named the location, where it is known.
    """

    field = ""

    def __init__(self, location: str, *, expected: str, found: str) -> None:
        super().__init__(location, expected, found)
        self.location, self.expected, self.found = location, expected, found

    def __reduce__(self) -> tuple[object, ...]:
        state = {"field": self.field} if self.field else None
        return _rebuild_input_error, (type(self), self.location, self.expected, self.found), state

    def inside(self, file: str) -> InputError:
        """The same error, with the file before a location that does not name it."""
        if self.location.startswith(file):
            return self
        location = f"{file}, for a {self.location}"
        return type(self)(location, expected=self.expected, found=self.found)

    def __str__(self) -> str:
        key = f"{self.field}: " if self.field else ""
        return f"{key}{self.location}: expected {self.expected}, found {self.found}"


class EmptySourceError(InputError):
    """A source folder that exists and can be listed, but holds no shards."""


class MissingSourceError(InputError):
    """A source that does not exist: a typo, or a disk that is not mounted."""


class DamagedError(InputError):
    """A file that is not as it was written: missing, truncated, or with other content."""


class ModelError(InputError):
    """A model that does not fit the data it is used with, or that cannot be read."""


class NotFittedError(RaypqError):
    """A method that is used before it was trained."""


class DivergenceError(RaypqError):
    """The loss of gradient training is NaN or Inf; the message names the step and the terms."""


class ConflictError(RaypqError):
    """Another writer was first, and the two results cannot be merged."""


class IncompleteError(RaypqError, AssertionError):
    """A version would lack a shard or hold one twice, because of a bug in raypq.

    A subclass of ``AssertionError`` for compatibility; ``python -O`` does not disable the check.
    """


class DriftError(RaypqError):
    """New shards differ from the training data, and ``fail_on_drift`` is set."""

    def __init__(self, shards: Sequence[str]) -> None:
        super().__init__(shards)
        self.shards = list(shards)

    def __str__(self) -> str:
        lines = "\n".join(f"  {shard}" for shard in self.shards)
        return f"{len(self.shards)} shard(s) drifted (everything is committed):\n{lines}"


class QuarantineError(RaypqError):
    """Shards are left out of a version, and ``fail_on_quarantined`` is set."""

    def __init__(self, shards: Sequence[str]) -> None:
        super().__init__(shards)
        self.shards = list(shards)

    def __str__(self) -> str:
        lines = "\n".join(f"  {shard}" for shard in self.shards)
        return f"{len(self.shards)} shard(s) are left out (everything else is committed):\n{lines}"


class WriteError(OSError):
    """A file that could not be written: a full disk, a missing permission, a server that fails.

    An ``OSError`` with number, text and file name, so it is retried as its number says
    (``raypq.execution.retries``), and never counts as bad input.

    Attributes:
        has_remedy: its text says what to do.
    """

    has_remedy = False

    @classmethod
    def of(cls, error: OSError, uri: str) -> WriteError:
        """The error of writing ``uri`` that another error stands for."""
        made = cls(error.errno, error.strerror or str(error) or type(error).__name__, uri)
        made.has_remedy = getattr(error, "has_remedy", False)
        return made

    def __str__(self) -> str:
        if self.has_remedy:
            return f"cannot write {self.filename}: {self.strerror}, then run it again"
        remedy = _WRITE_REMEDIES.get(self.errno or 0, "see whether its disk or server is at work")
        return f"cannot write {self.filename}: {self.strerror}; {remedy}, then run it again"


_ROOM = "free space there (raypq snapshots gc STORE --delete frees some), or name another place"
_RIGHTS = "give this user the right to write there, or name another place"
_WRITE_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: f"the quota is used up: raise it, {_ROOM}",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or name another place",
    errno.EROFS: "mount the disk for writing, or name another place",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
}


def message_of(error: BaseException) -> str:
    """The text of an error; its type first, unless raypq made the text."""
    if isinstance(error, RaypqError | WriteError):
        return str(error)
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True, kw_only=True)
class ShardFailure:
    """One shard that could not be processed.

    Attributes:
        shard: its URI; of a task that is no shard, the name of the task.
        tries: number of attempts.
        bad_input: its content is at fault, so it may be quarantined.
        transient: another attempt might succeed (``raypq.execution.retries``).
    """

    shard: str
    reason: str
    tries: int = 1
    bad_input: bool = True
    transient: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The failure as plain values."""
        return {"shard": self.shard, "reason": self.reason, "tries": self.tries}

    def __str__(self) -> str:
        tries = f" (after {self.tries} tries)" if self.tries > 1 else ""
        # The message of an input error begins with the file already.
        named = self.reason.startswith((f"{self.shard}:", f"{self.shard},"))
        rest = self.reason.removeprefix(self.shard) if named else f": {self.reason}"
        return f"{self.shard}{tries}{rest}"


class JobError(RaypqError):
    """Some shards failed; all others are finished, unless so many failed alike that they were not
    tried.

    Attributes:
        failures: the failed shards. done: number of shards that this run finished. kept: number of
            shards that needed no work. not_tried: number of the other
            shards.
    """

    def __init__(
        self, failures: Sequence[ShardFailure], done: int, kept: int = 0, not_tried: int = 0
    ) -> None:
        super().__init__(failures, done, kept, not_tried)
        self.failures, self.done = list(failures), done
        self.kept, self.not_tried = kept, not_tried

    def __str__(self) -> str:
        lines = "\n".join(f"  {failure}" for failure in self.failures)
        kept = f", {self.kept} kept as they were" if self.kept else ""
        left = f", {self.not_tried} not tried since so many fail alike" if self.not_tried else ""
        return f"{len(self.failures)} shard(s) failed, {self.done} finished{kept}{left}:\n{lines}"


def _rebuild_input_error(
    cls: type[InputError], location: str, expected: str, found: str
) -> InputError:
    return cls(location, expected=expected, found=found)
