"""Requests a second of `replay`, one core, process time: every algorithm, and cachetools beside those it has.

The trace is cloudPhysicsIO of libCacheSim where it lies in ``shared/data`` beside this checkout, else a Zipf
one of as many requests. Caches take a tenth and a half of the items' bytes. Everything takes turns, each time
in a process of its own, for what ran before leaves the heap in pieces: in the fifth round of one process all
are a third slower than in the first. Each figure is the median of the rounds.
The speed of the simulator and of the sample order, from their own benches, stand beside it in one run.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cachetools
import numpy as np

from bench import _streaming, order, prefetch
from policies import replay
from policies.eviction import NAMES, Expiring, make

ROUNDS = 5
FORK = multiprocessing.get_context("fork")
PARTS = (0.1, 0.5)
TRACE = Path(__file__).parents[2] / "shared" / "data" / "cloudPhysicsIO.oracleGeneral.bin"
RECORD = np.dtype([("ts", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
GOALS = {"fifo": 2e6, "lru": 2e6, "sieve": 2e6, "s3fifo": 1e6, "belady": 1e6}
"""Requests a second to reach."""
PEERS: dict[str, Callable[[int], cachetools.Cache]] = {
    "fifo": lambda capacity: cachetools.FIFOCache(capacity, getsizeof=int),
    "lru": lambda capacity: cachetools.LRUCache(capacity, getsizeof=int),
    "lfu": lambda capacity: cachetools.LFUCache(capacity, getsizeof=int),
    "expiring lru": lambda capacity: cachetools.TTLCache(capacity, 3600, timer=float, getsizeof=int),
}


def run() -> dict[str, object]:
    """All figures of speed: eviction, the simulator with time, and the order beside Streaming's planners."""
    name, ids, sizes = trace()
    with tempfile.TemporaryDirectory() as folder:
        _streaming.install(folder)
        return {
            "trace": name,
            "requests": len(ids),
            **eviction(ids, sizes),
            "simulator": prefetch.speed(),
            "order": order.speed(folder),
        }


def trace() -> tuple[str, np.ndarray, np.ndarray]:
    """Name, items and bytes of the requests."""
    if TRACE.exists():
        records = np.fromfile(TRACE, RECORD)
        return "cloudPhysicsIO", records["id"], records["size"]
    random = np.random.default_rng(7)
    chances = 1 / np.arange(1, 50_001)
    ids = random.choice(random.permutation(50_000), 113_872, p=chances / chances.sum())
    return "zipf", ids, random.integers(512, 65_536, 50_000)[ids]


def eviction(ids: np.ndarray, sizes: np.ndarray) -> dict[str, object]:
    """Requests a second of each algorithm and peer at each capacity, with the ratios to peer and goal."""
    known = dict(zip(ids.tolist(), sizes.tolist(), strict=True))
    whole = sum(known.values())
    ours, theirs = {}, {}
    for part in PARTS:
        capacity = int(whole * part)
        work: dict[tuple[str, str], Callable[[], object]] = {
            ("ours", name): lambda name=name, capacity=capacity: replay(name, ids, sizes, capacity)
            for name in NAMES
        }
        work["ours", "expiring lru"] = lambda capacity=capacity: expiring(ids, sizes, capacity)
        for name, peer in PEERS.items():
            work["cachetools", name] = lambda peer=peer, capacity=capacity: serve(peer(capacity), ids, sizes)
        for (side, name), seconds in in_turns(work).items():
            rates = ours if side == "ours" else theirs
            rates.setdefault(name, {})[f"cache of {part:.0%}"] = round(len(ids) / seconds)
    return {
        "requests_per_second": ours,
        "requests_per_second_cachetools": theirs,
        "ratio_to_cachetools": {
            name: {part: round(ours[name][part] / rate, 2) for part, rate in rates.items()}
            for name, rates in theirs.items()
        },
        "ratio_to_goal": {
            name: {part: round(rate / goal, 2) for part, rate in ours[name].items()}
            for name, goal in GOALS.items()
        },
    }


def in_turns(work: dict[tuple[str, str], Callable[[], object]]) -> dict[tuple[str, str], float]:
    """Median process seconds of each piece of work, all of them done once a round."""
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in work}
    for _ in range(ROUNDS):
        for key, piece in work.items():
            seconds[key].append(apart(piece))
    return {key: median(times) for key, times in seconds.items()}


def apart(piece: Callable[[], object]) -> float:
    """Process seconds of a piece of work in a fork of this process."""
    receiver, sender = FORK.Pipe(duplex=False)

    def work() -> None:
        begun = time.process_time()
        piece()
        sender.send(time.process_time() - begun)

    child = FORK.Process(target=work)
    child.start()
    sender.close()
    seconds: float = receiver.recv()
    child.join()
    return seconds


def expiring(ids: np.ndarray, sizes: np.ndarray, capacity: int) -> tuple[int, int]:
    """The decorator around LRU, at one moment."""
    return Expiring(make("lru", capacity), 3600).run(ids.tolist(), sizes.tolist())


def serve(cache: cachetools.Cache, ids: np.ndarray, sizes: np.ndarray) -> int:
    """Misses of a cache from cachetools, asked as its documentation asks it."""
    misses = 0
    for item, nbytes in zip(ids.tolist(), sizes.tolist(), strict=True):
        try:
            cache[item]
        except KeyError:
            misses += 1
            cache[item] = nbytes
    return misses
