"""Which errors are worth another try."""

from __future__ import annotations

import errno

# Of the network, of a busy machine, of a disk or a mount that fails for a moment. Missing files,
# missing rights, full disks and names that are too long stay what they are.
_PASSING = {
    getattr(errno, name)
    for name in (
        "EAGAIN", "EBUSY", "ECOMM", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EDEADLK",
        "EHOSTDOWN", "EHOSTUNREACH", "EINTR", "EIO", "EMFILE", "ENETDOWN", "ENETRESET",
        "ENETUNREACH", "ENFILE", "ENOBUFS", "ENOLCK", "ENOMEM", "ENOTCONN", "EPIPE", "EPROTO",
        "EREMOTEIO", "ESHUTDOWN", "ESTALE", "ETIMEDOUT", "ETXTBSY", "EWOULDBLOCK",
    )
    if hasattr(errno, name)
}  # fmt: skip
# Libraries that speak to servers, whose errors are not all ``OSError``.
_NETWORK = {
    "aiobotocore", "aiohttp", "botocore", "google", "http", "httpx", "requests", "urllib3",
}  # fmt: skip
# Of these libraries: what no other try would find either.
_LASTING = {
    "InvalidRegionError", "NoCredentialsError", "NoRegionError", "ParamValidationError",
    "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError", "UnknownServiceError",
    "UnauthorizedSSOTokenError",
}  # fmt: skip
_DEPTH = 8  # causes that are looked at


def may_pass(error: BaseException) -> bool:
    """Whether another try of the same work might succeed.

    Yes: time-outs, lost connections, disks and servers that fail for a moment, an ``OSError``
    without a number, and memory that ran out (what others hold may be free by then). No: all other
    errors, such as ``ValueError``, ``KeyError``, ``ModuleNotFoundError``, a full disk or a missing
    right. Where an error says neither, what it was raised from counts.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(chain) < _DEPTH:
        chain.append(cause)
        cause = cause.__cause__
    if any(type(one).__name__ in _LASTING for one in chain):
        return False
    return next((found for one in chain if (found := _passes(one)) is not None), False)


def _passes(error: BaseException) -> bool | None:
    """As ``may_pass`` of one error; None where it does not say."""
    if isinstance(error, ConnectionError | TimeoutError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno is None or error.errno in _PASSING
    library = type(error).__module__.partition(".")[0]
    if library in _NETWORK or (library, type(error).__name__) == ("torch", "OutOfMemoryError"):
        return True
    return None
