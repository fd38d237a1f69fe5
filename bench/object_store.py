"""The object tier against raw obstore calls: same requests, same concurrency, same reused buffers.

Beside them, for information, the s3fs driver on the same bucket and obstore that does not sign the bytes of
uploads. The server is a Ceph gateway on loopback with its objects in memory, or moto where Ceph is not
installed, whose ranges say little. Processor time is this process's alone. A ratio is the median over rounds
of the tier's figure through the raw call's figure in the same round.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from statistics import median
from typing import Any

import numpy as np
import obstore

from tests.servers import (
    ACCESS_KEY_ID,
    BUCKET,
    REFERENCES,
    SECRET_ACCESS_KEY,
    Endpoint,
    ceph_missing,
    ceph_rgw,
    moto_server,
)
from tiering.stores.base import Store
from tiering.stores.fsspec import FsspecStore
from tiering.stores.object import PIECE_BYTES, ObjectStore
from tiering.stores.pages import aligned_buffer

OBJECT_BYTES, RANGES, THREADS, ROUNDS = 64 << 20, 64, 8, 9
RANGE_BYTES = {"256kib": 256 << 10, "1mib": 1 << 20}
WAYS = ("raw", "tier", "s3fs")


@contextlib.contextmanager
def server() -> Iterator[Endpoint]:
    """Ceph, or moto where it is absent; the credentials are in the environment meanwhile."""
    keys = zip(REFERENCES.values(), (ACCESS_KEY_ID, SECRET_ACCESS_KEY), strict=True)
    os.environ.update({reference.removeprefix("env:"): value for reference, value in keys})
    with moto_server() if ceph_missing() else ceph_rgw() as endpoint:
        yield endpoint


def raw_client(endpoint: Endpoint, prefix: str, **config: Any) -> Any:
    """obstore as its documentation has it."""
    keys = {"access_key_id": ACCESS_KEY_ID, "secret_access_key": SECRET_ACCESS_KEY}
    full: Any = {"endpoint": endpoint.url, "region": "us-east-1", **keys, **config}
    return obstore.store.S3Store(
        BUCKET,
        prefix=prefix,
        config=full,
        client_options={"allow_http": True, "timeout": timedelta(days=1)},
    )


class Turns:
    """What each way of each work took, round by round."""

    def __init__(self) -> None:
        self._rounds: dict[str, dict[str, list[tuple[float, float]]]] = {}

    def take(self, work: str, way: str, nbytes: int, do: Callable[[], object]) -> None:
        """Do it once; it moves `nbytes`."""
        cpu, begun = time.process_time(), time.perf_counter()
        do()
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
        taken = self._rounds.setdefault(work, {}).setdefault(way, [])
        taken.append((nbytes / 1e6 / seconds, cpu_seconds / nbytes * 1e9))

    def figures(self) -> dict[str, dict[str, object]]:
        """Medians of each way, and the ratios of ``tier`` to ``raw``."""
        found: dict[str, dict[str, object]] = {}
        for work, ways in self._rounds.items():
            pairs = list(zip(ways["tier"], ways["raw"], strict=True))
            found[work] = {
                way: {
                    "mb_per_second": round(median(speed for speed, _ in taken)),
                    "cpu_seconds_per_gb": round(median(cost for _, cost in taken), 3),
                }
                for way, taken in ways.items()
            } | {
                "speed_ratio": round(median(tier[0] / raw[0] for tier, raw in pairs), 3),
                "cpu_ratio": round(median(tier[1] / raw[1] for tier, raw in pairs), 3),
            }
        return found


class Raw:
    """What a user of obstore would write to fill the same buffers."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """A range by one request."""
        at = 0
        options: obstore.GetOptions = {"range": (offset, offset + buffer.nbytes)}
        for chunk in obstore.get(self._client, key, options=options).stream(min_chunk_size=1):
            buffer[at : at + len(chunk)] = chunk
            at += len(chunk)

    def write(self, key: str, buffer: memoryview) -> None:
        """An object by one request, as the tier has it."""
        obstore.put(self._client, key, buffer, use_multipart=False)


def run() -> dict[str, object]:
    """Speed, processor time and ratios of each kind of work."""
    turns = Turns()
    data, target = aligned_buffer(OBJECT_BYTES), aligned_buffer(OBJECT_BYTES)
    data[:] = np.random.default_rng(7).bytes(OBJECT_BYTES)
    target[:] = data
    with contextlib.ExitStack() as stack:
        endpoint = stack.enter_context(server())
        url, options = f"s3://{BUCKET}/bench", endpoint.options(deadline_seconds=120)
        stores: dict[str, Store] = {
            "tier": stack.enter_context(ObjectStore("tier", url, options)),
            "s3fs": stack.enter_context(FsspecStore("s3fs", url, options)),
        }
        raw, pool = Raw(raw_client(endpoint, "bench")), stack.enter_context(ThreadPoolExecutor(THREADS))
        unsigned = Raw(raw_client(endpoint, "bench", unsigned_payload=True))
        stores["tier"].write("k", [data])
        for number in range(ROUNDS + 1):
            if number == 1:
                turns = Turns()  # the first round opens connections
            for way in sorted(WAYS, key=lambda way: (WAYS.index(way) + number) % len(WAYS)):
                store = stores.get(way)
                get(turns, pool, way, store, raw, target)
                ranges(turns, pool, way, (store or raw).read_into, target)
                put(turns, way, store, raw, data)
            turns.take("put_64mib", "raw_unsigned", OBJECT_BYTES, lambda: unsigned.write("unsigned", data))
        if target != data:
            raise RuntimeError("a read gave other bytes")
    return {"server": endpoint.kind, "object_bytes": OBJECT_BYTES, "rounds": ROUNDS, **turns.figures()}


def get(
    turns: Turns, pool: ThreadPoolExecutor, way: str, store: Store | None, raw: Raw, target: memoryview
) -> None:
    """A whole object into the buffer, in pieces side by side."""

    def piece(start: int) -> None:
        raw.read_into("k", start, target[start : start + PIECE_BYTES])

    def pieces() -> None:
        list(pool.map(piece, range(0, OBJECT_BYTES, PIECE_BYTES)))

    if store:
        turns.take("get_64mib", way, OBJECT_BYTES, lambda: store.read_into("k", 0, target))
    else:
        turns.take("get_64mib", way, OBJECT_BYTES, pieces)


def ranges(
    turns: Turns,
    pool: ThreadPoolExecutor,
    way: str,
    read_into: Callable[[str, int, memoryview], None],
    target: memoryview,
) -> None:
    """Ranges at scattered places, by eight threads."""
    for name, nbytes in RANGE_BYTES.items():
        numbers = np.random.default_rng(nbytes).integers(0, OBJECT_BYTES // nbytes, RANGES)
        places: list[int] = (numbers * nbytes).tolist()

        def read(place: int, nbytes: int = nbytes) -> None:
            read_into("k", place, target[place : place + nbytes])

        def all_of_them(places: list[int] = places, read: Callable[[int], None] = read) -> None:
            list(pool.map(read, places))

        turns.take(f"ranges_{name}", way, RANGES * nbytes, all_of_them)


def put(turns: Turns, way: str, store: Store | None, raw: Raw, data: memoryview) -> None:
    """A whole object from the buffer."""
    if store:
        turns.take("put_64mib", way, OBJECT_BYTES, lambda: store.write(way, [data]))
    else:
        turns.take("put_64mib", way, OBJECT_BYTES, lambda: raw.write(way, data))
