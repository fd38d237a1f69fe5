"""The one error tree of the engine.

Invariant: every failure a caller can meet is a `TieringError`, names the tier and the key where it has
them, and says what to do. Each class also subclasses the builtin a caller would expect, so that
``except FileNotFoundError`` works without knowing this module.

- TieringError
  - UsageError            a wrong argument                           ValueError
    - ConfigError         a wrong line in a configuration            ValueError
    - OutOfRange          no row of that number                      IndexError
  - NotFound              no such tier, corpus, version or object    FileNotFoundError
  - Corrupt               bytes differ from their digest or CRC      OSError
  - Conflict              somebody else was first                    FileExistsError
    - Locked              somebody else is at work right now         BlockingIOError
  - CapacityExceeded      the tier has no room                       OSError
  - LastCopy              a release would lose the last copy         PermissionError
  - Unavailable           the tier does not answer; try again        ConnectionError
  - DeadlineExceeded      the tier did not answer in time            TimeoutError
  - FormatError           not something this engine wrote            ValueError
    - UnsupportedVersion  written by a newer engine                  NotImplementedError
"""

from __future__ import annotations

from typing import Any, ClassVar


class TieringError(Exception):
    """Base of all errors of this engine.

    Args:
        message: what is wrong, with the value seen.
        tier: name of the tier it happened on.
        key: key of the object it happened to.
        hint: what to do about it.
    """

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, tier: str | None = None, key: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.tier = tier
        self.key = key
        self.hint = hint

    def __str__(self) -> str:
        where = ", ".join(
            f"{label} {value!r}" for label, value in (("tier", self.tier), ("key", self.key)) if value
        )
        text = f"{self.message} ({where})" if where else self.message
        return f"{text}. {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.tier, self.key, self.hint)


def _rebuild(
    kind: type[TieringError], message: str, tier: str | None, key: str | None, hint: str | None
) -> TieringError:
    return kind(message, tier=tier, key=key, hint=hint)


class UsageError(TieringError, ValueError):
    """An argument is wrong; nothing was done."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration is wrong: names the key, the value seen and a right example."""


class OutOfRange(UsageError, IndexError):
    """The corpus has no row of that number."""


class NotFound(TieringError, FileNotFoundError):
    """The named tier, corpus, version or object does not exist."""


class Corrupt(TieringError, OSError):
    """Bytes read back differ from their digest, CRC or length."""


class Conflict(TieringError, FileExistsError):
    """The name is taken by other content, or the world drifted since it was looked at."""


class Locked(Conflict, BlockingIOError):
    """Another live process is doing this work right now."""

    exit_code = 11


class CapacityExceeded(TieringError, OSError):
    """The tier, device or disk has no room for what was asked."""


class LastCopy(TieringError, PermissionError):
    """A release was refused because too few verified copies would remain."""


class Unavailable(TieringError, ConnectionError):
    """The tier cannot be reached or refuses to answer; the same call may succeed later."""

    retryable = True
    retry_after_seconds: float | None = None
    """How long the tier asks to be left alone, where it said so. Not pickled: it is about now."""


class DeadlineExceeded(TieringError, TimeoutError):
    """The tier did not answer within its deadline."""

    retryable = True


class FormatError(TieringError, ValueError):
    """Stored bytes are not in a form that this engine wrote."""


class UnsupportedVersion(FormatError, NotImplementedError):
    """Stored bytes are of a newer format version than this engine reads."""
