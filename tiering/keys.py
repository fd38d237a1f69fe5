"""Keys name objects on a tier; this is the only place that turns one into a path.

Invariant: a key that passes `validate` is the same string on every tier and can never leave the tier's
root: relative, NFC, made of segments of 1 to 255 UTF-8 bytes, none of them ``.`` or ``..``.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from pathlib import Path

from tiering.errors import UsageError

MAX_SEGMENT_BYTES = 255
MAX_KEY_BYTES = 1024  # the limit of S3
TEMP_PREFIX = ".tmp-"
"""Segments that start so are unfinished writes of a file tier: never listed, never a key."""

INTERNAL = ".tiering"
"""The folder inside a corpus that holds its manifests, versions, claims and quarantine."""

CONTROL_BYTES = 1 << 20
"""So many bytes of control objects (see `is_control`) a tier takes beyond its capacity."""

_CONTROLS = frozenset({"claims", "versions", "probes", "HEAD"})


def validate(key: str) -> str:
    """Return `key` unchanged, or raise `UsageError` that says which rule it breaks."""
    problem = _problem(key)
    if problem:
        raise UsageError(f"key {key!r} {problem}", hint="Use a relative key such as 'web-text/tokens/c/0'")
    return key


def validate_prefix(prefix: str) -> str:
    """Return a listing prefix unchanged; the empty prefix means the whole tier."""
    return validate(prefix) if prefix else prefix


def validate_name(name: str) -> str:
    """Return a corpus name unchanged: one key segment that does not start with a dot."""
    problem = _problem(name)
    if problem is None and "/" in name:
        problem = "has a slash"
    if problem is None and name.startswith((".", "_")):
        problem = "starts with a dot or an underscore, which readers of Zarr and Arrow skip"
    if problem:
        raise UsageError(f"corpus name {name!r} {problem}", hint="Use a name such as 'web-text'")
    return name


def path_of(root: Path, key: str) -> Path:
    """The path of `key` below `root`.

    Raises:
        UsageError: the key breaks a rule.
    """
    return root.joinpath(*validate(key).split("/"))


def is_control(key: str) -> bool:
    """Whether `key` is a small record of who is at work and what exists, and no data.

    These are let through where a tier's capacity is used up, so that a full tier can still be released.
    """
    match key.split("/"):
        case [first, _, *_] if first == INTERNAL:
            return True
        case [_, second, third, *_] if second == INTERNAL:
            return third in _CONTROLS
    return False


def _problem(key: object) -> str | None:
    return _problem_of_text(key) if isinstance(key, str) else "is not a string"


@lru_cache(maxsize=4096)
def _problem_of_text(key: str) -> str | None:
    if not key:
        return "is empty"
    if "\0" in key:
        return "has a NUL byte"
    if "\\" in key:
        return "has a backslash"
    if key.startswith("/"):
        return "is absolute"
    try:
        raw = key.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if len(raw) > MAX_KEY_BYTES:
        return f"is {len(raw)} bytes long, over {MAX_KEY_BYTES}"
    if any(unicodedata.category(letter) == "Cc" for letter in key):
        return "has a control character"
    if not unicodedata.is_normalized("NFC", key):
        return "is not in Unicode NFC"
    return next((p for p in map(_segment_problem, key.split("/")) if p), None)


def _segment_problem(segment: str) -> str | None:
    if not segment:
        return "has an empty segment"
    if segment in (".", ".."):
        return f"has a {segment!r} segment"
    if len(segment.encode()) > MAX_SEGMENT_BYTES:
        return f"has a segment of {len(segment.encode())} bytes, over {MAX_SEGMENT_BYTES}"
    if segment.startswith(TEMP_PREFIX):
        return f"has a segment that starts with {TEMP_PREFIX!r}, kept for unfinished writes"
    return None
