"""Epochs of several loaders in interleaved rounds, once with batches left alone and once with each copied.

A gather into one small array leaves the batch in the processor's cache, where a training finds it; a batch
that the kernel wrote, or another process, has to come from memory. So each is measured with two consumers:
one that takes the batches and looks at nothing, and one that copies each into one preallocated array, as a
transfer to a device would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

import numpy as np

from bench.loader.peer import Peer, PeerError, quality, variants
from bench.peers import NAMES
from loaders import Loader

SLOW_SECONDS, SLOW_ROUNDS = 0.7, 3
BOUND: Final = "gather from RAM"
CONSUMERS: Final = {False: "left", True: "copied"}
AIMS: Final = {
    "torch": 1.1,
    "datasets": 4.0,
    "litdata": 15.0,
    "grain": 30.0,
    "webdataset": 70.0,
    "streaming": 70.0,
}
"""How many times as fast as each the loader is to be, by issue."""

Array = np.ndarray[Any, Any]


@dataclass
class Entrant:
    """One way to read an epoch.

    Attributes:
        name: unique in a comparison.
        run: an epoch whose batches are copied or not; seconds by the clock and of processors.
        shuffle: what it mixes.
        warm_seconds: what the first epoch took; slow ones run in three rounds of a long comparison.
        peer: the module it is a variant of.
        more: further figures.
    """

    name: str
    run: Callable[[bool], tuple[float, float]]
    shuffle: str
    warm_seconds: float = 0.0
    peer: str | None = None
    more: dict[str, object] = field(default_factory=dict)


def compare(
    entrants: Sequence[Entrant], rounds: int, rows: int, row_bytes: int, skipped: list[str]
) -> dict[str, dict[str, Any]]:
    """Rows a second, processor seconds a GB and rounds of each entrant, by name."""
    taken: dict[str, dict[bool, list[tuple[float, float]]]] = {
        one.name: {False: [], True: []} for one in entrants
    }
    running = list(entrants)
    for number in range(rounds):
        for copy in CONSUMERS:
            for one in list(running):
                if number % max(1, rounds // SLOW_ROUNDS) and one.warm_seconds > SLOW_SECONDS:
                    continue
                try:
                    taken[one.name][copy].append(one.run(copy))
                except PeerError as error:
                    running.remove(one)
                    skipped.append(f"{one.name}: {error}")
    figures: dict[str, dict[str, Any]] = {}
    for one in entrants:
        ways = taken[one.name]
        if not all(ways.values()):
            continue
        figures[one.name] = {"shuffle": one.shuffle, "rounds": len(ways[False]), "peer": one.peer, **one.more}
        for copy, consumer in CONSUMERS.items():
            seconds, cpu = (median(values) for values in zip(*ways[copy], strict=True))
            figures[one.name][consumer] = {
                "rows_per_second": round(rows / seconds),
                "mb_per_second": round(rows * row_bytes / seconds / 1e6),
                "cpu_seconds_per_gb": round(cpu / (rows * row_bytes) * 1e9, 4),
            }
    if bound := figures.get(BOUND):
        for one in figures.values():
            for consumer in CONSUMERS.values():
                ratio = one[consumer]["rows_per_second"] / bound[consumer]["rows_per_second"]
                one[consumer]["ratio_to_gather"] = round(ratio, 3)
    return figures


def own(loader: Loader, column: str, name: str) -> Entrant:
    """This project's loader."""
    template: Array | None = None

    def run(copy: bool) -> tuple[float, float]:
        nonlocal template
        cpu, begun = time.process_time(), time.perf_counter()
        for batch in loader:
            rows = batch[column]
            if template is None:
                template = np.empty_like(rows)
            if copy:
                np.copyto(template[: len(rows)], rows)
        return time.perf_counter() - begun, time.process_time() - cpu

    return Entrant(name, run, shuffle(loader), warm_seconds=run(False)[0])


def gather(data: Array, batch: int) -> Entrant:
    """Random batches from memory: the bound."""
    out, copied = (np.zeros((batch, *data.shape[1:]), data.dtype) for _ in range(2))

    def run(copy: bool) -> tuple[float, float]:
        order = np.random.default_rng().permutation(len(data))
        cpu, begun = time.process_time(), time.perf_counter()
        for start in range(0, len(data) - batch + 1, batch):
            np.take(data, order[start : start + batch], axis=0, out=out, mode="clip")
            if copy:
                np.copyto(copied, out)
        return time.perf_counter() - begun, time.process_time() - cpu

    return Entrant(BOUND, run, "a permutation of all rows", warm_seconds=run(False)[0])


def of_peers(peers: Iterable[Peer], rows: int, digest: str, skipped: list[str]) -> list[Entrant]:
    """Every variant of peers that gave each row once in an epoch that warmed it."""
    found = []
    for peer in peers:
        for variant in variants(peer.name):
            try:
                first = peer.epoch(variant, digest=True)
                if (first["rows"], first["digest"]) != (rows, digest):
                    skipped.append(
                        f"{peer.name}, {variant}: an epoch gave {first['rows']} rows of {rows}, or other ones"
                    )
                    continue
                warm = peer.epoch(variant)
            except PeerError as error:
                skipped.append(f"{variant}: {error}")
                break
            more = {
                "opening_seconds": round(first["opening_seconds"], 4),
                "first_batch_seconds": round(first["first_seconds"], 4),
            }

            def run(copy: bool, peer: Peer = peer, variant: str = variant) -> tuple[float, float]:
                answer = peer.epoch(variant, copy=copy)
                return answer["seconds"], answer["cpu_seconds"]

            found.append(
                Entrant(f"{peer.name}, {variant}", run, quality(peer.name), warm["seconds"], peer.name, more)
            )
    return found


def shuffle(loader: Loader) -> str:
    """What a loader's order mixes, in words."""
    order = loader.order
    return (
        f"each batch from {order.lanes} places of the corpus, rows mixed over "
        f"{order.lanes * order.window_blocks} blocks of {order.block_rows} rows, blocks over groups of "
        f"{order.group_shards} shards, shards over all"
    )


def beside_peers(
    figures: dict[str, Any], mine: Sequence[str], aims: Mapping[str, float]
) -> dict[str, dict[str, object]]:
    """Of each peer its fastest variant, and how many times as fast each of `mine` is, by consumer."""
    found: dict[str, dict[str, object]] = {}
    for name in NAMES:
        ways = {way: one for way, one in figures.items() if one["peer"] == name}
        if not ways:
            continue
        entry: dict[str, object] = {"aim": aims.get(name)}
        for consumer in CONSUMERS.values():
            best = max(ways, key=lambda way: ways[way][consumer]["rows_per_second"])
            theirs = ways[best][consumer]["rows_per_second"]
            times = {one: round(figures[one][consumer]["rows_per_second"] / theirs, 2) for one in mine}
            entry[consumer] = {"fastest": best, "rows_per_second": theirs, "times_as_fast": times}
        found[name] = entry
    return found
