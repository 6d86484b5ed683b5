"""Errors of an S3 server in words: what happened, and what to do."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any, TypeVar

E = TypeVar("E", bound=OSError)

_CREDENTIALS = (
    "renew the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, or the "
    "profile or role) where the driver and the workers run"
)
_REGION = "set AWS_DEFAULT_REGION to the region of the bucket, and check AWS_ENDPOINT_URL"
_LATER = (
    "wait until the server has recovered; fewer --workers (workers in a config) ask for less at "
    "once, and RAYPQ_STORAGE_ATTEMPTS sets the tries of a request"
)
_RIGHTS = (
    "grant these credentials list, read and write on the bucket, or check which ones are used "
    "(AWS_PROFILE, AWS_ACCESS_KEY_ID)"
)
_SPACE = "free space there, or raise the quota"

# By error code: what happened, what to do, and the number of the error.
_ANSWERS = {
    **dict.fromkeys(
        ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"),
        ("the session token has expired", _CREDENTIALS, errno.EACCES),
    ),
    "InvalidToken": ("the session token is not valid", _CREDENTIALS, errno.EACCES),
    "InvalidAccessKeyId": (
        "the server does not know the access key",
        f"{_CREDENTIALS}, and check AWS_ENDPOINT_URL",
        errno.EACCES,
    ),
    "SignatureDoesNotMatch": (
        "the secret key does not belong to the access key",
        _CREDENTIALS,
        errno.EACCES,
    ),
    "RequestTimeTooSkewed": (
        "the clock of this machine differs from the server's",
        "set the clock (NTP)",
        errno.EACCES,
    ),
    **dict.fromkeys(
        ("AccessDenied", "AllAccessDisabled", "AccountProblem"),
        ("access is denied", _RIGHTS, errno.EACCES),
    ),
    **dict.fromkeys(
        ("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"),
        ("the bucket is in another region", _REGION, errno.EINVAL),
    ),
    "NoSuchBucket": (  # ENXIO: as a missing file it would be taken for a damaged shard
        "no such bucket",
        "check its name and AWS_ENDPOINT_URL, and whether it was deleted",
        errno.ENXIO,
    ),
    **dict.fromkeys(
        ("SlowDown", "ServiceUnavailable", "Throttling", "RequestLimitExceeded"),
        ("the server is overloaded", _LATER, errno.EBUSY),
    ),
    "InternalError": ("the server failed", _LATER, errno.EIO),
    **dict.fromkeys(
        ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"),
        ("the storage is full", _SPACE, errno.ENOSPC),
    ),
    # HEAD requests have no body: their code is the status alone.
    "400": (
        "the server refused the request without a reason: an expired session token or wrong region",
        f"{_CREDENTIALS}; {_REGION}",
        errno.EINVAL,
    ),
    "403": (
        "access is denied, without a reason: missing rights, or a wrong or expired key",
        f"{_RIGHTS}; {_CREDENTIALS}",
        errno.EACCES,
    ),
    "500": ("the server failed", _LATER, errno.EIO),
    "503": ("the server is overloaded", _LATER, errno.EBUSY),
    "507": ("the storage is full", _SPACE, errno.ENOSPC),
}
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")


def explained(response: Mapping[str, Any], uri: str) -> OSError | None:
    """The error that a response stands for, with what to do; None where its code says enough."""
    code = str(response.get("Error", {}).get("Code"))
    if code not in _ANSWERS:
        return None
    happened, remedy, number = _ANSWERS[code]
    return _with_remedy(OSError(number, f"{happened} ({code}); {remedy}", uri))


def no_answer(error: Exception, uri: str) -> ConnectionError:
    """The error of a request without a response: no credentials, no connection, a time-out."""
    if type(error).__name__ in _NO_CREDENTIALS:
        remedy = (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine "
            "a role"
        )
    else:
        remedy = "check the network and AWS_ENDPOINT_URL"
    text = f"{str(error).rstrip('.')}; {remedy}"
    return _with_remedy(ConnectionError(errno.EIO, text, uri))


def _with_remedy(error: E) -> E:
    vars(error)["has_remedy"] = True
    return error
