"""Errors of fsspec filesystems and what they mean: one function from any exception to the engine's tree.

Invariant: no text of another library gets into a message, because it may show URLs and so a token: only the
type of the exception and the protocol's error code do.
"""

from __future__ import annotations

import errno

from tiering.errors import (
    CapacityExceeded,
    ConfigError,
    Conflict,
    DeadlineExceeded,
    NotFound,
    TieringError,
    Unavailable,
    UsageError,
)
from tiering.stores.object_options import ObjectOptions

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def code(error: BaseException | None) -> str:
    """The protocol's error code, which s3fs and aiohttp keep in the error or in its cause; or nothing."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        status = getattr(error, "status", None)
        if isinstance(status, int):
            return str(status)
        error = error.__cause__
    return ""


def typed(error: Exception, tier: str, scheme: str, s3: ObjectOptions | None, key: str | None) -> Exception:
    """The error of the engine for an error of a filesystem on `key`; `s3` are the options of an S3 tier."""
    if isinstance(error, TieringError):
        return error
    said = code(error)
    what = f"{type(error).__name__} {said}".rstrip()
    host = s3.host if s3 else f"the {scheme}:// server"
    if s3 and said == "NoSuchBucket":
        return s3.no_bucket()
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return NotFound("no such object", tier=tier, key=key)
    if isinstance(error, FileExistsError) or said == "PreconditionFailed":
        return Conflict("object exists already", tier=tier, key=key)
    if isinstance(error, PermissionError) or type(error).__name__ == "NoCredentialsError":
        return s3.refused(what) if s3 else ConfigError(f"the credentials were refused by {host}", tier=tier)
    if s3 and type(error).__name__ == "SSLError":
        return s3.untrusted()
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        hint = "Make room there, or release something from this tier"
        return CapacityExceeded(f"no room on {host}", tier=tier, key=key, hint=hint)
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        hint = "Look at the network, or give the tier a larger deadline_seconds"
        return DeadlineExceeded(f"no answer in time from {host}", tier=tier, key=key, hint=hint)
    if isinstance(error, NotImplementedError):
        return UsageError(f"a {scheme}:// tier cannot do this", tier=tier, key=key)
    hint = "Look at the network and at the server; the same call may succeed later"
    return Unavailable(f"no service from {host}: {what}", tier=tier, key=key, hint=hint)
