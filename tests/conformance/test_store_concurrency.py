"""The contract under threads: one winner, whole versions, nothing lost."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conformance.patterns import pattern, read_range
from tiering.errors import Conflict, Unavailable
from tiering.stores.base import Store

WRITERS = 8
OVERWRITES = 12


def test_write_if_absent_raced_has_one_winner(creating_store: Store) -> None:
    barrier = threading.Barrier(WRITERS, timeout=60)

    def write(writer: int) -> bool:
        barrier.wait()
        try:
            creating_store.write("k", [pattern(10_000, writer)], if_absent=True)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(WRITERS) as pool:
        won = list(pool.map(write, range(WRITERS)))
    assert won.count(True) == 1
    assert creating_store.read("k") == pattern(10_000, won.index(True))


@pytest.mark.parametrize("nbytes", [100_000, 9 << 20])
def test_read_into_raced_by_overwrites_sees_one_version(
    request: pytest.FixtureRequest, store: Store, nbytes: int
) -> None:
    if nbytes > 1 << 20 and "moto" in request.node.callspec.params["store"]:
        # moto 5.2.5, s3/models.py: FakeKey.etag seeks and reads the buffer that FakeKey.value reads, without
        # its lock. Of 240 calls of `value` beside one of `etag` 8 gave no byte of 9 MiB.
        pytest.skip("moto reads the buffer of a new object in two threads without a lock; Ceph runs this")
    versions = [pattern(nbytes, seed) for seed in range(3)]
    store.write("k", [versions[0]])
    finished = threading.Event()

    def overwrite() -> None:
        try:
            for i in range(OVERWRITES):
                store.write("k", [versions[i % len(versions)]])
        finally:
            finished.set()

    def read() -> int:
        reads = 0
        while not finished.is_set() or reads == 0:
            # Both servers answer 500 to some reads of what is overwritten; the contract says: call again.
            with contextlib.suppress(Unavailable):
                assert read_range(store, "k", 0, nbytes) in versions
                reads += 1
        return reads

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read), pool.submit(read)]
        pool.submit(overwrite).result()
        assert all(reader.result() >= 1 for reader in readers)


def test_write_from_many_threads_keeps_every_object(store: Store) -> None:
    def work(writer: int) -> None:
        for i in range(5):
            store.write(f"w{writer}/{i}", [pattern(1000 + i, writer)])

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(work, range(WRITERS)))
    assert len(list(store.list())) == 5 * WRITERS
    for writer in range(WRITERS):
        assert store.read(f"w{writer}/4") == pattern(1004, writer)
