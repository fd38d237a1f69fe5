"""Which eviction policy and lookahead suit which readers, why, and the hit ratio that no policy can exceed.

Invariant: a choice is a pure function of its arguments, and its cost is bounded: replays take a sample of the
requests.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from policies.bounds import bound, most_hit_bytes
from policies.checks import whole
from policies.eviction import NAMES, ONLINE
from policies.eviction.lru import Lru
from policies.eviction.pin import Pin
from policies.eviction.pin_smallest import PinSmallest
from policies.eviction.sieve import Sieve
from policies.regime.pace import Pace, lookahead_shards
from policies.regime.readers import Reader, Requests, Sample, merge, sample
from policies.replay import replay

__all__ = ["Choice", "choose"]

_CLAIRVOYANT: Final = tuple(name for name in NAMES if name not in ONLINE)
_SAMPLE: Final = 50_000
_SHARPENING: Final = 2_000_000  # requests times rounds of the bound
_NEARLY: Final = 0.05  # what differs by less is taken for equal
_WORTH_IT: Final = 1.02  # times pin: clairvoyance that gains less is not worth its bookkeeping
_SHARD_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Choice:
    """What to use and what to hope for.

    policy: a name in `policies.eviction.NAMES`. bound: the largest byte hit ratio of any policy; in an epoch
    after the first where every epoch takes the same shards, else over all requests known, the cache being
    empty at first. reason: one sentence for a person. lookahead_shards: how far before their need fetches
    begin; None where no pace was given, 0 where nobody knows what comes. gain: byte hit ratio over that of
    pin, measured on a sample of the requests; None where there was nothing to measure.
    """

    policy: str
    bound: float
    reason: str
    lookahead_shards: int | None = None
    gain: float | None = None


def choose(
    *,
    capacity_bytes: int,
    corpus_bytes: int | None = None,
    readers: int | Sequence[Reader] = 1,
    past: Requests | None = None,
    pace: Pace | None = None,
) -> Choice:
    """Return the policy and lookahead for a cache of `capacity_bytes`, the bound, and why.

    What is known of the requests to come is said in one of three ways. corpus_bytes and, as a number, how
    many readers permute that corpus every epoch. readers: each with its future. past: the requests so far,
    perhaps none, where nobody knows what comes. The lookahead is for a shard of the mean size, or of 64 MiB.
    Raises ValueError for fewer or more ways than one, for sizes below 0, and for readers without a future.
    """
    capacity_bytes = whole("capacity_bytes", capacity_bytes, least=0, example=500_000_000_000)
    shard_bytes = _SHARD_BYTES
    if isinstance(readers, Sequence) and corpus_bytes is None and past is None:
        requests = merge(readers)
        if not len(requests):
            raise ValueError("readers must have a future; e.g. readers=[Reader([[0, 1], [1, 0]], 4096)]")
        shard_bytes = max(1, int(requests.item_bytes.mean()))
        choice = _for_futures(readers, requests, capacity_bytes)
    elif past is not None and corpus_bytes is None and not isinstance(readers, Sequence):
        choice = _for_past(past, capacity_bytes)
    elif corpus_bytes is not None and past is None and not isinstance(readers, Sequence):
        choice = _for_corpus(corpus_bytes, capacity_bytes, readers)
    else:
        raise ValueError(
            "give one of corpus_bytes, readers with their futures, and past; e.g. "
            "choose(corpus_bytes=2_000_000_000_000, capacity_bytes=500_000_000_000)"
        )
    if pace is None:
        return choice
    return replace(choice, lookahead_shards=0 if past is not None else lookahead_shards(pace, shard_bytes))


def _for_corpus(corpus_bytes: int, capacity_bytes: int, readers: int) -> Choice:
    limit = bound(capacity_bytes, corpus_bytes, 1, readers=readers)
    if readers > 1:
        return Choice(
            Pin.name,
            limit,
            f"{readers} readers share the cache and reuse may cross them: pin is safe, but how near it comes "
            "to the bound, and what their futures would gain, is not known until they are given",
        )
    if capacity_bytes >= corpus_bytes:
        return _fitting(limit)
    return Choice(Pin.name, limit, _why_pin("one reader takes each row once an epoch", limit))


def _for_futures(readers: Sequence[Reader], requests: Requests, capacity_bytes: int) -> Choice:
    sizes = requests.item_bytes
    corpus_bytes = int(sizes.sum())
    if corpus_bytes <= capacity_bytes:
        return _fitting(1.0)
    epoch_bytes = _epoch_bytes(readers)
    if epoch_bytes is not None and epoch_bytes <= (1 + _NEARLY) * corpus_bytes:
        who = f"{len(readers)} readers keep their shards and together take each"
        if len(readers) == 1:
            who = "one reader takes each of its shards"
        limit = (epoch_bytes - corpus_bytes + capacity_bytes) / epoch_bytes
        return _for_epochs(sizes, capacity_bytes, limit, _why_pin(f"{who} once an epoch", limit))
    limit = _bound(requests, capacity_bytes)
    if not limit:
        return Choice(Pin.name, limit, "nothing known to come can be a hit: give more epochs, or more room")
    part = sample(requests, capacity_bytes, _SAMPLE)
    ratios = {name: _hit_ratio(name, part) for name in (*_CLAIRVOYANT, Pin.name)}
    best = max(_CLAIRVOYANT, key=ratios.__getitem__)
    known, pinned = ratios[best], ratios[Pin.name]
    gain = known / pinned if pinned else math.inf if known else 1.0
    measured = (
        f"{known:.3f} of the bytes hit, with pin {pinned:.3f}, in {len(part.requests):,} of "
        f"{len(requests):,} requests"
    )
    if gain < _WORTH_IT:
        return Choice(
            Pin.name, limit, f"knowing the future gains next to nothing here: {measured}", gain=gain
        )
    reason = (
        f"{_why_not_pin(readers)}, so what is needed next should stay: {measured}; lookahead is bounded, for "
        "what is fetched too early pushes out what is needed before it"
    )
    return Choice(best, limit, reason, gain=gain)


def _for_epochs(sizes: npt.NDArray[np.int64], capacity_bytes: int, limit: float, reason: str) -> Choice:
    """Pin, by size where that saves requests: every full cache fetches the same bytes."""
    smallest = int(np.searchsorted(np.cumsum(np.sort(sizes)), capacity_bytes, side="right"))
    first = int(sizes.size * capacity_bytes / sizes.sum())
    if smallest <= (1 + _NEARLY) * first:
        return Choice(Pin.name, limit, reason)
    return Choice(
        PinSmallest.name,
        limit,
        f"{reason}; the {smallest:,} smallest shards fit instead of about {first:,} of any size, which makes "
        "the fewest requests at equal egress",
    )


def _for_past(past: Requests, capacity_bytes: int) -> Choice:
    limit = _bound(past, capacity_bytes)
    part = sample(past, capacity_bytes, _SAMPLE)
    ratios = {name: _hit_ratio(name, part) for name in ONLINE}
    best = max(ONLINE, key=lambda name: (ratios[name], name == Sieve.name))
    if not ratios[best]:
        return Choice(best, limit, "what comes is not known, and nothing so far tells: sieve is a good start")
    reason = (
        f"what comes is not known, and of {len(ONLINE)} policies that need not know it {best} would have hit "
        f"most, {ratios[best]:.3f} of the bytes, with lru {ratios[Lru.name]:.3f}, in "
        f"{len(part.requests):,} of {len(past):,} requests so far"
    )
    return Choice(best, limit, reason, gain=ratios[best] / ratios[Pin.name] if ratios[Pin.name] else math.inf)


def _epoch_bytes(readers: Sequence[Reader]) -> int | None:
    """Bytes of an epoch of all, where they go through epochs together and each repeats its shards."""
    if not all(reader.repeats for reader in readers):
        return None
    seconds = [len(reader.epochs[0]) / reader.speed for reader in readers]
    if max(seconds) > (1 + _NEARLY) * min(seconds):
        return None
    return sum(int(reader.nbytes.sum()) // len(reader.epochs) for reader in readers)


def _fitting(limit: float) -> Choice:
    return Choice(Pin.name, limit, "the whole corpus fits: everything is fetched once and stays")


def _why_pin(who: str, limit: float) -> str:
    return (
        f"{who}, so no policy hits more than capacity over corpus, {limit:.3f}: pin reaches it to within a "
        "shard, and LRU does not"
    )


def _why_not_pin(readers: Sequence[Reader]) -> str:
    corpora = len({reader.corpus for reader in readers})
    if len(readers) == 1:
        return "one reader takes other shards every epoch"
    if corpora == 1:
        return f"{len(readers)} readers take the shards of one corpus at different times"
    return f"{len(readers)} readers of {corpora} corpora take their shards at different times"


def _bound(requests: Requests, capacity_bytes: int) -> float:
    """The largest byte hit ratio of these requests; 1 where there are none."""
    asked_bytes = int(np.sum(requests.nbytes))
    if not asked_bytes:
        return 1.0
    rounds = min(32, _SHARPENING // len(requests))
    return most_hit_bytes(requests.items, requests.nbytes, capacity_bytes, rounds=rounds) / asked_bytes


def _hit_ratio(name: str, part: Sample) -> float:
    if not part.expected_bytes:
        return 0.0
    run = replay(name, part.requests.items, part.requests.nbytes, part.capacity_bytes)
    return max(0.0, 1 - run.miss_bytes / part.expected_bytes)
