"""What a tier can do, found out by doing it: writes, ranges, conditional create, listing, and how fast.

Invariant: everything happens below ``.tiering/probe/`` under a name of its own and is removed again, whatever
goes wrong; what a killed one left goes with the next. A read-only tier is only read. What is missing is said
in words of what it means to a user.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from dask.utils import format_bytes

from tiering.errors import Conflict, Corrupt, NotFound, TieringError, UsageError
from tiering.probe_keys import PROBES, abandoned, probe_key
from tiering.stores.base import Store
from tiering.tier import Tier

Verdict = Literal["ok", "optional", "bad"]
Attempt = Callable[[Store, str], tuple[Verdict, str]]

_SAMPLE_BYTES: Final = 8 << 20
_SMALL_BYTES: Final = 10_000
_LATENCY_ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried."""

    name: str
    verdict: Verdict
    """``optional``: it is not there, and nothing needs it unless you use it."""
    detail: str


def probe(tier: Tier) -> list[Check]:
    """Try what the engine asks of a tier; never raises for what the tier cannot do."""
    what = f"tier {tier.name}"
    try:
        store = tier.store
        names = store.children()
        checks = [Check(what, "ok", f"{tier.kind}, {len(names)} names, {store!r}"), _room(tier)]
        if (strays := store.strays()).count:
            told = f"{strays.count}, {format_bytes(strays.nbytes)}, perhaps of writers that live elsewhere"
            told += f"; when nobody writes here: {strays.command}"
            checks.append(Check(f"{what}: unfinished writes", "optional", told))
        if strays.unlisted:
            checks.append(Check(f"{what}: unfinished writes", "optional", strays.unlisted))
    except TieringError as error:
        return [Check(what, "bad", str(error))]
    if tier.read_only:
        return [*checks, Check(f"{what}: writing", "optional", "opened read_only: it was only listed")]
    checks += _tidied(what, store)
    with _scratch(store) as key:
        for name, attempt in _ATTEMPTS.items():
            checks.append(_try(f"{what}: {name}", attempt, store, key))
            if checks[-1].verdict == "bad":  # the rest would only say the same again
                break
    return checks


def _tidied(what: str, store: Store) -> list[Check]:
    """Remove what killed probes left; a check that says so, where there was any."""
    try:
        left = list(abandoned(store, time.time()))
        for info in left:
            store.delete(info.key)
    except TieringError as error:
        return [Check(f"{what}: earlier probes", "bad", str(error))]
    return [Check(f"{what}: earlier probes", "ok", f"{len(left)} removed that were killed")] if left else []


@contextlib.contextmanager
def _scratch(store: Store) -> Iterator[str]:
    key = probe_key()
    try:
        yield key
    finally:
        with contextlib.suppress(TieringError):  # it was told already that deleting fails
            store.delete(key)


def _try(name: str, attempt: Attempt, store: Store, key: str) -> Check:
    try:
        verdict, detail = attempt(store, key)
    except TieringError as error:
        return Check(name, "bad", str(error))
    return Check(name, verdict, detail)


def _write(store: Store, key: str) -> tuple[Verdict, str]:
    data = os.urandom(_SMALL_BYTES)
    store.write(key, [data])
    if store.read(key) != data or store.stat(key).nbytes != len(data):
        raise Corrupt("read back other bytes than were written", tier=store.name, key=key)
    return "ok", "what is written is there at once, byte for byte"


def _range(store: Store, key: str) -> tuple[Verdict, str]:
    data, piece = store.read(key), bytearray(100)
    store.read_into(key, 4096, memoryview(piece))
    if piece != data[4096:4196]:
        raise Corrupt("a range has other bytes than the whole", tier=store.name, key=key)
    return "ok", "a part can be read alone"


def _listing(store: Store, key: str) -> tuple[Verdict, str]:
    if [info.key for info in store.list(PROBES)].count(key) != 1:
        return "bad", "a new object is not listed at once: moves would not find what is there"
    return "ok", "new objects are listed at once"


def _overwrite(store: Store, key: str) -> tuple[Verdict, str]:
    store.write(key, [b"second"])
    if store.read(key) != b"second":
        return "bad", "old bytes are read after an overwrite: HEAD would lag behind its versions"
    return "ok", "new bytes are read at once"


def _create(store: Store, key: str) -> tuple[Verdict, str]:
    try:
        store.write(key, [b"third"], if_absent=True)
    except Conflict:
        return "ok", "of several writers of a version exactly one wins"
    except UsageError as error:
        return "optional", f"corpora can be read here, not written: {error.message}"
    return "bad", "what was there was overwritten: two writers could publish one version"


def _delete(store: Store, key: str) -> tuple[Verdict, str]:
    store.delete(key)
    with contextlib.suppress(NotFound):
        store.stat(key)
        return "bad", "a deleted object is still there"
    return "ok", "what is deleted is gone at once"


def _speed(store: Store, key: str) -> tuple[Verdict, str]:
    """One sample: a hint for planning, no benchmark."""
    data = os.urandom(_SAMPLE_BYTES)
    begun = time.monotonic()
    store.write(key, [data])
    written = time.monotonic()
    store.read(key)
    read = time.monotonic()
    rounds = []
    for _ in range(_LATENCY_ROUNDS):
        start = time.monotonic()
        store.stat(key)
        rounds.append(time.monotonic() - start)
    rates = [format_bytes(int(_SAMPLE_BYTES / max(s, 1e-9))) for s in (written - begun, read - written)]
    latency = statistics.median(rounds) * 1000
    return "ok", f"wrote {rates[0]}/s, read {rates[1]}/s, {latency:.2f} ms a look, one at a time"


def _room(tier: Tier) -> Check:
    free = tier.store.free_bytes()
    told = "the medium does not tell" if free is None else f"{format_bytes(free)} free on the medium"
    if tier.capacity_bytes is not None:
        told += f", capacity {format_bytes(tier.capacity_bytes)}"
    return Check(f"tier {tier.name}: room", "ok" if free is None or free > _SAMPLE_BYTES else "bad", told)


_ATTEMPTS: Final[dict[str, Attempt]] = {
    "write and read back": _write,
    "range": _range,
    "listing": _listing,
    "overwrite": _overwrite,
    "conditional create": _create,
    "delete": _delete,
    "speed": _speed,
}
