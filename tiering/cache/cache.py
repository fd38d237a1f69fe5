"""The node cache: one node's bounded, shared, disposable copies of shards, by digest.

Invariant: the bytes of whole copies and of reserved fills never exceed the capacity, whatever processes do at
the same time; a copy is readable only after its digest was checked; a process that dies at any instant
leaves nothing that another takes for whole or waits for. Nothing here is needed: a cache that is full,
sick or gone makes training slower, never wrong.

Below its folder: ``objects/`` (a file tier; keys are digests), ``index.sqlite`` (`tiering.cache.index`),
``locks/`` (one flock for each fill, which the kernel frees when its process dies) and ``readers/`` (one file
for each reader, locked likewise: `tiering.cache.registration`). The files are the truth, the index only
counts them: whoever opens it takes over what a crash kept from it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from tiering.access_log import AccessLog
from tiering.cache.admission import Admission
from tiering.cache.choice import AUTO
from tiering.cache.content import SICKNESS, STORE_NAME, Content, key_of
from tiering.cache.index import count, is_damage
from tiering.cache.registration import Outlook, Registration
from tiering.cache.status import CacheStatus, look
from tiering.digest import Buffer, digest
from tiering.errors import ConfigError, Corrupt, Unavailable
from tiering.monitor.stats import COUNTERS
from tiering.sizes import parse_size
from tiering.stores.base import Extent, Reader
from tiering.transfer import is_verified

log = logging.getLogger("tiering.cache")

WAIT_SECONDS: Final = 60.0


class NodeCache:
    """Copies of shards on this node, shared by all processes that name the same folder.

    Args:
        path: a folder on a local disk; made when it is not there.
        capacity: bytes, or ``"500GB"``. What ``tiering cache resize`` said counts instead, where it did.
        policy: ``auto``, ``clairvoyant``, or an eviction policy by name (`policies.eviction`). ``auto`` looks
            who reads: it is ``pin``, which keeps what it has, the best for one job that reads each row once
            an epoch; and ``clairvoyant``, by which what all registered readers use last leaves, where reuse
            crosses epochs, ranks or jobs.
        access_log: a file that is told of every request (docs/traces.md), or an `AccessLog`.

    Raises:
        ConfigError: no such policy, or no size.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        capacity: str | int,
        policy: str = AUTO,
        access_log: AccessLog | str | os.PathLike[str] | None = None,
    ) -> None:
        if not os.fspath(path) or "://" in os.fspath(path):
            raise ConfigError(
                f"the path of a node cache is {os.fspath(path)!r}",
                hint="Give a local folder: /mnt/nvme/cache",
            )
        self.path = Path(path).expanduser().absolute()
        self.policy = policy
        self.access_log = AccessLog.of(access_log)
        self._admission = Admission(self.path, parse_size(capacity, "capacity"), policy)
        self._content = Content(self.path, self._admission.opened)
        self._sick = self._renewed = False

    def __getstate__(self) -> dict[str, Any]:
        state = {"path": self.path, "capacity": self._admission.asked_bytes, "policy": self.policy}
        return {**state, "access_log": self.access_log}

    def __setstate__(self, state: dict[str, Any]) -> None:
        NodeCache.__init__(self, **state)

    def __repr__(self) -> str:
        return f"NodeCache({str(self.path)!r}, {self._admission.asked_bytes}, {self.policy!r})"

    @property
    def capacity_bytes(self) -> int:
        """The most bytes that copies take; as of the last use, for it may be resized from outside."""
        return self._admission.capacity_bytes

    def get(
        self,
        name: str,
        nbytes: int,
        fetch: Callable[[], Sequence[Buffer]],
        reader: Registration | None = None,
        *,
        verified: bool = False,
    ) -> bool:
        """Have the shard of digest `name` here if the policy wants it; whether it can be read now.

        `fetch` is called, by one process of the node at a time, when the shard is wanted and not here; errors
        it raises come out. What it gives is hashed, unless `verified` says that `fetch` has done that.
        `reader` is who asks, if it is registered (`foretell`). After an error of the cache itself, which is
        logged once, it takes no more shards and goes on giving those it has.
        """
        try:
            done = 0 if reader is None or self._sick else reader.ask(name)
            hit = self._use(name, nbytes, counts=True)
            self._tell(name, nbytes, hit)
            if hit or self._sick:
                return hit
            with self._content.locked(name[:3], WAIT_SECONDS) as alone:
                if not alone or self._use(name, nbytes):  # filled by another process meanwhile
                    return alone
                if not self._reserve(name, nbytes, reader, done):
                    return False
                return self._fill(name, fetch, verified=verified)
        except _FetchError as error:
            raise error.reason from error.reason.__cause__
        except SICKNESS as error:
            self._fall_sick(error)
            return self._content.is_present(name, nbytes)

    def foretell(self, reader: Registration, outlook: Outlook) -> None:
        """Register a reader, or say what a registered one will use from now on.

        It is registered until it is gone or its process ends. A cache that is sick is told nothing.
        """
        if self._sick:
            return
        try:
            with self._content.transaction():
                reader.renew(self._content.folder("readers"), outlook)
            self._admission.choose(self._content)
        except SICKNESS as error:
            self._fall_sick(error)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with bytes of a shard from `offset` on.

        Raises:
            NotFound: it was evicted, or never here. Corrupt: it is truncated.
        """
        self._content.files.read_into(key_of(name), offset, buffer)

    def reader(self, name: str) -> Reader:
        """What reads as `read_into` of a shard does, for many blocks; drop it when these are read."""
        return self._content.files.reader(key_of(name))

    def locate(self, name: str) -> Extent:
        """The file of a shard; whoever opened it may read on after it was evicted.

        Raises:
            NotFound: it was evicted, or never here.
        """
        return self._content.files.locate(key_of(name))

    def verify(self, name: str, nbytes: int) -> bool:
        """Read a shard back, and discard it where it has not its digest; whether it has."""
        with contextlib.suppress(*SICKNESS):
            if is_verified(self._content.files, key_of(name), nbytes, name):
                return True
        self.discard(name)
        return False

    def discard(self, name: str) -> None:
        """Forget a shard, because its bytes turned out bad."""
        try:
            with self._content.transaction() as db:
                self._content.discard(db, name)
        except SICKNESS as error:
            self._fall_sick(error)
            with contextlib.suppress(*SICKNESS):
                self._content.files.delete(key_of(name))

    def status(self) -> CacheStatus:
        """What is here now, and who reads.

        Raises:
            Unavailable: the cache is sick.
        """
        try:
            with self._content.transaction() as db:
                return look(self._content, db, self._admission)
        except SICKNESS as error:
            hint = "Look at the folder and its disk; it may be deleted while nobody uses it"
            raise Unavailable(f"{self.path}: {error}", tier=STORE_NAME, hint=hint) from error

    def resident_bytes(self, names: Iterable[str]) -> int:
        """Bytes of those of the named shards that are here; 0 where the cache cannot tell."""
        wanted = {key_of(name) for name in names}
        try:
            return sum(info.nbytes for info in self._content.files.list() if info.key in wanted)
        except SICKNESS as error:
            self._fall_sick(error)
            return 0

    def close(self) -> None:
        """Close the index; the next use opens it again."""
        self._content.close()

    def _tell(self, name: str, nbytes: int, hit: bool) -> None:
        """Tell a request to the counters of this process and to the access log."""
        if hit:
            COUNTERS.add_cache(hits=1, hit_bytes=nbytes)
        else:
            COUNTERS.add_cache(misses=1, miss_bytes=nbytes)
        if self.access_log is not None:
            self.access_log.add(name, nbytes, hit=hit)

    def _use(self, name: str, nbytes: int, *, counts: bool = False) -> bool:
        """Whether the shard can be read here; counts as a use of it, and with `counts` as a request."""
        if self._sick:
            return self._content.is_present(name, nbytes)
        with self._content.transaction() as db:
            touched = self._content.touch(db, name)
            hit = touched and self._content.is_present(name, nbytes)
            if touched and not hit:  # killed between file and index, or somebody tidied up by hand
                self._content.discard(db, name)
            if counts:
                count(db, nbytes, hit=hit)
        return hit

    def _reserve(self, name: str, nbytes: int, reader: Registration | None, done: int) -> bool:
        """Make room for a shard and claim it, in one transaction; False when the policy refuses it."""
        content = self._content
        with content.transaction() as db:
            content.take_over(db, name)
            content.drop_abandoned(db)
            if not self._admission.admit(content, db, name, nbytes, reader, done):
                return False
            content.reserve(db, name, nbytes)
            return True

    def _fill(self, name: str, fetch: Callable[[], Sequence[Buffer]], *, verified: bool) -> bool:
        content = self._content
        try:
            content.files.write(key_of(name), _fetched(name, fetch, verified=verified))
            with content.transaction() as db:
                whole = content.finish(db, name)
                if content.used_bytes(db) > self._admission.limit_bytes(db):  # it was resized meanwhile
                    self._admission.fit(content, db)
                return whole
        except BaseException:
            with contextlib.suppress(*SICKNESS), content.transaction() as db:
                content.evict(db, name)
            raise

    def _fall_sick(self, error: Exception) -> None:
        if is_damage(error) and not self._renewed:  # the next transaction makes the index anew
            self._renewed = True
            return
        if _is_short_of_files(error):  # passes; until then the shard is read from its tier
            log.info("node cache %s: %s", self.path, error)
            return
        first, self._sick = not self._sick, True
        if first:
            log.warning("node cache %s takes no more shards; reading is slower: %s", self.path, error)


def _is_short_of_files(error: BaseException | None) -> bool:
    """Whether this process or machine has as many files open as it may."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        error = error.__cause__
    return False


class _FetchError(Exception):
    """Carries an error of the tier through the handlers of the cache's own errors."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _fetched(name: str, fetch: Callable[[], Sequence[Buffer]], *, verified: bool) -> Sequence[Buffer]:
    try:
        buffers = fetch()
    except Exception as error:
        raise _FetchError(error) from error
    if not verified and digest(buffers) != name:
        raise _FetchError(Corrupt(f"the bytes fetched are not those of digest {name[:12]}"))
    return buffers
