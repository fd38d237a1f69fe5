"""Errors of obstore and what they mean: one function from its exceptions to the engine's tree.

Invariant: of obstore's own text, which shows URLs and so perhaps a token, only the HTTP status and the
protocol's error code get into a message.
"""

from __future__ import annotations

import re

from obstore.exceptions import (
    AlreadyExistsError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from tiering.errors import ConfigError, Conflict, DeadlineExceeded, NotFound, Unavailable, UsageError
from tiering.stores.object_options import ObjectOptions

# obstore tells these in its text only.
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_CERTIFICATE = re.compile(r"invalid peer certificate|UnknownIssuer|certificate verify failed")
_NOT_PARTIAL = "Received non-partial response when range requested"
_TIMEOUT = re.compile(r"TimedOut|kind: Timeout")
_INSTANCE_METADATA = "169.254.169.254"
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_TRY_LATER = (408, 416, 429)  # 416: an answer that was cut off, of which the client asked for the rest
ALTERED = ("XAmzContentSHA256Mismatch", "BadDigest", "InvalidDigest")
"""Codes of servers that received other bytes than were signed."""


class OverwrittenError(Exception):
    """The object is no longer the version that a read began with."""


def is_past_the_end(error: Exception) -> bool:
    """Whether the server said that an object has no byte of the range asked for."""
    return _status(error) == 416


def ignores_ranges(error: Exception) -> bool:
    """Whether the server answered a request for a range as one for the whole object."""
    return _NOT_PARTIAL in str(error)


def is_missing_bucket(error: Exception) -> bool:
    """Whether the server said that the bucket, not the object, is missing."""
    # A request for an object that is missing is a FileNotFoundError; any other 404 is of a listing.
    return _code(error) in _NO_BUCKET or (_status(error) == 404 and not isinstance(error, FileNotFoundError))


def typed(error: Exception, options: ObjectOptions, key: str | None) -> Exception:
    """The error of the engine, or `OverwrittenError`, for an error of obstore on `key`."""
    tier, answered = options.tier, _status(error)
    answer = f"HTTP {answered} {_code(error)}".rstrip() if answered else type(error).__name__
    if isinstance(error, AlreadyExistsError):
        return Conflict("object exists already", tier=tier, key=key)
    if isinstance(error, PreconditionError):
        return OverwrittenError()
    if is_missing_bucket(error):
        return options.no_bucket()
    if isinstance(error, FileNotFoundError):
        return NotFound("no such object", tier=tier, key=key)
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or answered in (401, 403):
        return options.refused(answer)
    if isinstance(error, InvalidPathError):
        hint = "Delete that object, or give the tier another prefix"
        return UsageError("an object has an empty or a '..' segment in its name", tier=tier, hint=hint)
    if _INSTANCE_METADATA in str(error):
        return options.refused("the instance has no role")
    if _CERTIFICATE.search(str(error)):
        return options.untrusted()
    if _TIMEOUT.search(str(error)):
        hint = "Look at the network, or give the tier a larger deadline_seconds"
        return DeadlineExceeded(f"no answer in time from {options.host}", tier=tier, key=key, hint=hint)
    if _code(error) in ALTERED:
        hint = "The network or its hardware alters bytes; the same call may succeed later"
        return Unavailable(f"other bytes arrived at {options.host}: {answer}", tier=tier, key=key, hint=hint)
    if answered and answered < 500 and answered not in _TRY_LATER:
        hint = "Look at the bucket, region and endpoint_url of the tier"
        return ConfigError(f"refused by {options.host}: {answer}", tier=tier, key=key, hint=hint)
    hint = "Look at the network and at endpoint_url; the same call may succeed later"
    return Unavailable(f"no service from {options.host}: {answer}", tier=tier, key=key, hint=hint)


def _status(error: Exception) -> int | None:
    """The HTTP status that the server answered with, or None where it did not answer."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def _code(error: Exception) -> str:
    """The error code of the S3 or Azure protocol in the body of the answer, or nothing."""
    found = _CODE.search(str(error))
    return found[1] if found else ""
