"""URIs: local paths, and paths on a filesystem of fsspec."""

from __future__ import annotations

import os
import re
from pathlib import Path

import fsspec
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.memory import MemoryFileSystem

from raypq.data.storage.settings import StorageSettings
from raypq.errors import InputError

_LOCAL = ("file://", "local://")
_S3 = ("s3://", "s3a://")
# s3fs retries around botocore, which retries itself. One more try covers what botocore does not
# see: a connection lost while the body of a response is read.
_S3FS_TRIES = 2
_SCHEME_AND_HOST = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://[^/]+(?=/|$)")
_USER_AND_PASSWORD = re.compile(r"(?<=://)[^/@]*:[^/@]*@")
_SECRET_PARAMETER = re.compile(
    r"(?i)[?&](x-amz-[a-z-]*|awsaccesskeyid|signature|sig|token|secret|password|key)=[^&]*"
)


def is_local(uri: str) -> bool:
    """Whether a URI is a plain path, ``file://`` or ``local://``."""
    return "://" not in uri or uri.startswith(_LOCAL)


def local_path(uri: str) -> Path:
    """The path of a local URI."""
    return Path(os.path.expanduser(uri.removeprefix("file://").removeprefix("local://")))


def canonical(uri: str) -> str:
    """The one spelling of a local URI: an absolute path without ``..``, ``//`` or ``~``.

    Links are not resolved, except before a ``..``, which means the parent of a link's target.
    Other URIs are returned unchanged: ``a//b`` and ``a/b`` are two objects.
    """
    plain = uri[:1] == "/" and uri[-1:] != "/" and "//" not in uri and "/." not in uri
    if plain or not is_local(uri):  # the fast path: a nightly run has tens of thousands
        return uri
    path = str(local_path(uri))
    if not path.startswith("/"):
        path = os.path.join(os.getcwd(), path)
    parts = path.split("/")
    if ".." in parts:
        last = len(parts) - parts[::-1].index("..")
        path = os.path.join(os.path.realpath("/".join(parts[:last])), *parts[last:])
    return "/" + os.path.normpath(path).lstrip("/")


def uri_of(fs: AbstractFileSystem, path: str, near: str) -> str:
    """The URI of a path on the filesystem of another URI, ``near``.

    fsspec drops the host of some URIs (``webhdfs://host/path``); without it the file could not be
    opened, and files of two hosts would have the same name.
    """
    if is_local(near):
        return path
    match = _SCHEME_AND_HOST.match(near)
    if match and path.startswith("/") and not isinstance(fs, MemoryFileSystem):
        return match[0] + path
    return str(fs.unstrip_protocol(path))


def join(uri: str, *parts: str) -> str:
    """``uri`` with ``parts`` below it."""
    return "/".join([uri.rstrip("/"), *parts])


def filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """The fsspec filesystem of a URI, and the path inside it.

    Raises:
        InputError: no such filesystem, or a URI with credentials in it.
    """
    if is_local(uri):
        return fsspec.filesystem("file"), canonical(uri)
    refuse_credentials(uri)
    s3 = uri.startswith(_S3)
    options = StorageSettings.current().s3_options() if s3 else {}
    try:
        fs, path = url_to_fs(uri, **options)
    except (ImportError, ValueError) as error:
        raise InputError(uri, expected="a URI that fsspec can open", found=str(error)) from None
    if s3:
        fs.retries = _S3FS_TRIES
    return fs, str(path)


def refuse_credentials(uri: str) -> None:
    """Refuses a URI with a secret: URIs are written to manifests, reports and logs.

    Raises:
        InputError: with the secret masked.
    """
    if "://" not in uri:
        return
    masked = _USER_AND_PASSWORD.sub("***@", uri)
    masked = _SECRET_PARAMETER.sub(lambda match: f"{match[0].split('=')[0]}=***", masked)
    if masked != uri:
        raise InputError(
            masked,
            expected="a URI without credentials (they belong in the environment or in a profile)",
            found="credentials in it",
        )
