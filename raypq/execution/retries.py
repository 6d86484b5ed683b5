"""Classification of errors: transient ones are retried, others are not."""

from __future__ import annotations

import errno
import re

# Errors of the network, of a busy machine, of a disk or mount that fails for a moment. Missing
# files, missing permissions, full disks and names that are too long are permanent.
_TRANSIENT = {
    getattr(errno, name)
    for name in (
        "EAGAIN", "EBUSY", "ECOMM", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EDEADLK",
        "EHOSTDOWN", "EHOSTUNREACH", "EINTR", "EIO", "EMFILE", "ENETDOWN", "ENETRESET",
        "ENETUNREACH", "ENFILE", "ENOBUFS", "ENOLCK", "ENOMEM", "ENOTCONN", "EPIPE", "EPROTO",
        "EREMOTEIO", "ESHUTDOWN", "ESTALE", "ETIMEDOUT", "ETXTBSY", "EWOULDBLOCK",
    )
    if hasattr(errno, name)
}  # fmt: skip
# Network libraries whose errors are not all ``OSError``.
_NETWORK = {
    "aiobotocore", "aiohttp", "botocore", "google", "http", "httpx", "requests", "urllib3",
}  # fmt: skip
# Permanent errors of these libraries.
_PERMANENT = {
    "InvalidRegionError", "NoCredentialsError", "NoRegionError", "ParamValidationError",
    "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError", "UnknownServiceError",
    "UnauthorizedSSOTokenError",
}  # fmt: skip
# A collective whose peer is gone: torch has a class for some of these errors (DistError); for the
# others it raises a bare RuntimeError with the text of its library.
_COLLECTIVE = re.compile(
    r"\bgloo\b|\bNCCL\b|\bnccl[A-Z]|connection (?:was )?(?:reset|closed|refused)|broken pipe",
    re.IGNORECASE,
)
_MAX_CAUSES = 8  # length of the chain of causes that is examined


def is_transient(error: BaseException) -> bool:
    """Whether another try of the same work might succeed.

    True for time-outs, lost connections, collectives of torch that lost a worker, disks and servers
    that fail for a moment, an ``OSError`` without a number, and exhausted memory (other processes
    may have freed theirs). False for all other errors, such as ``ValueError``, ``KeyError``,
    ``ModuleNotFoundError``, a full disk or a missing permission. An error that is neither counts as
    its cause (``__cause__``) does.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(chain) < _MAX_CAUSES:
        chain.append(cause)
        cause = cause.__cause__
    if any(type(item).__name__ in _PERMANENT for item in chain):
        return False
    verdicts = (_verdict(item) for item in chain)
    return next((verdict for verdict in verdicts if verdict is not None), False)


def _verdict(error: BaseException) -> bool | None:
    """Whether an error is transient, without regard to its cause; None where that is not known."""
    if isinstance(error, ConnectionError | TimeoutError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno is None or error.errno in _TRANSIENT
    if any(kind.__name__ == "DistError" for kind in type(error).__mro__) or (
        type(error) is RuntimeError and _COLLECTIVE.search(str(error))
    ):
        return True
    library = type(error).__module__.partition(".")[0]
    if library in _NETWORK or (library, type(error).__name__) == ("torch", "OutOfMemoryError"):
        return True
    return None
