"""How a tier opens its store: the store of its kind, and the wrappers that it asks for.

Invariant: this is the only place that composes wrappers, and always in one order, the outermost first::

    Counted(ReadOnly(Encrypted(Retry(Breaker(Throttle(Deadline(store)))))))

- Counted sees what the caller sees: a transfer that took three attempts moved its bytes once.
- ReadOnly refuses before anything is asked, spent or encrypted.
- Encrypted is outside of Retry, so every attempt writes the same ciphertext, and a create whose answer got
  lost recognises its own bytes.
- Retry is outside of Breaker: each attempt counts as one failure, and an open circuit ends the attempts.
- Breaker is outside of Throttle: a call that is refused spends nothing.
- Throttle is outside of Deadline: waiting for one's turn is no fault of the tier.
- Deadline is innermost: an attempt that hangs ends as an error like any other, which may be repeated.

Only what is asked for is there: by default Retry and Breaker on object tiers, nothing but Counted elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from tiering.credentials import ENCRYPTION_OPTIONS, OptionValue
from tiering.errors import ConfigError
from tiering.stores.base import Store
from tiering.stores.memory import MemoryStore
from tiering.stores.wrappers import Breaker, Counted, Deadline, ReadOnly, Retry, Throttle
from tiering.stores.wrappers.options import WrapperOptions

if TYPE_CHECKING:
    from tiering.tier import Tier

OBJECT_SCHEMES: Final = frozenset({"s3", "s3a", "gs", "az", "abfs"})
"""What obstore serves; fsspec serves the others."""

_DRIVERS: Final = ("obstore", "fsspec", "s3fs", "gcsfs", "adlfs")
"""What can serve an object tier; all but the first are fsspec."""

_memories: dict[tuple[str, int], MemoryStore] = {}
_held: dict[tuple[str, int], Store] = {}
"""Memory, of this process and shared, by url and process: it outlives `Tier.close`, for there is nowhere to
read it back from."""


def open_store(tier: Tier) -> Store:
    """A new stack of store and wrappers for `tier`.

    Raises:
        ConfigError: an option is wrong. Other `TieringError`: the store cannot be opened.
    """
    options = tier.options
    plain = {name: value for name, value in options.items() if name not in ENCRYPTION_OPTIONS}
    store = _connect(tier, WrapperOptions.strip(plain))
    try:
        return _wrap(tier, store, WrapperOptions.parse(options, tier.kind, f"tier {tier.name!r}"))
    except BaseException:
        store.close()
        raise


def _wrap(tier: Tier, store: Store, options: WrapperOptions) -> Store:
    if options.operation_deadline_seconds:
        store = Deadline(store, options.operation_deadline_seconds)
    if options.max_bytes_per_second or options.max_requests_per_second:
        store = Throttle(store, options.max_bytes_per_second, options.max_requests_per_second, tier.url)
    if options.breaker_failures:
        seconds = options.breaker_seconds
        store = Breaker(store, options.breaker_failures, seconds, streak_seconds=seconds)
    if options.retry_attempts > 1:
        store = Retry(store, options.retry_attempts, options.retry_seconds)
    if tier.encrypted:
        store = _encrypted(tier, store)
    if tier.read_only:
        store = ReadOnly(store)
    return Counted(store)


def _encrypted(tier: Tier, store: Store) -> Store:
    from tiering.encryption.keyring import Keyring
    from tiering.stores.encrypted import Encrypted

    references = [str(tier.options[option]) for option in ENCRYPTION_OPTIONS if option in tier.options]
    return Encrypted(store, Keyring(f"tier {tier.name!r}", *references))


def _connect(tier: Tier, options: dict[str, OptionValue]) -> Store:
    """Open the store that suits the tier; each module is imported only by those who use it."""
    scheme = urlsplit(tier.url).scheme
    if tier.url.startswith("shm://"):
        from tiering.stores.shared_memory import SharedMemoryStore

        shared = SharedMemoryStore(tier.name, tier.url.removeprefix("shm://"), tier.capacity_bytes)
        place = (tier.url, os.getpid())
        _held[place], before = shared.hold(), _held.get(place)
        if before:
            before.close()  # after the new one: the holder never sees its last user go
        return shared
    if tier.kind == "memory":
        place = (tier.url, os.getpid())
        kept = _memories.setdefault(place, MemoryStore(tier.name, tier.capacity_bytes))
        return kept.called(tier.name, tier.capacity_bytes)
    if tier.kind == "file":
        from tiering.stores.file import FileStore

        return FileStore(tier.name, Path(tier.url))
    if tier.kind == "block":
        from tiering.stores.block import BlockStore

        path = Path(tier.url.removeprefix("block://"))
        return BlockStore(tier.name, path, read_only=tier.read_only)
    driver = options.pop("driver", "obstore" if scheme in OBJECT_SCHEMES else "fsspec")
    if driver not in _DRIVERS:
        hint = f"Use one of {', '.join(_DRIVERS)}"
        raise ConfigError(f"option driver of tier {tier.name!r} is {driver!r}", hint=hint)
    if driver == "obstore":
        from tiering.stores.object import ObjectStore

        return ObjectStore(tier.name, tier.url, options)
    from tiering.stores.fsspec import FsspecStore

    return FsspecStore(tier.name, tier.url, options)
