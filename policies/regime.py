"""Which eviction policy suits which readers, and the hit ratio that no policy can exceed.

Bound. Let k readers share a cache of C bytes and each take every one of N bytes once an epoch. Of the N
bytes, at least N - C are not resident when the epoch begins, and each of those is fetched at least once for
the kN asked for. So at most (k - 1 + C/N) / k of the bytes are hits, and (k - 1) / k in the first epoch,
which begins empty.
"""

from dataclasses import dataclass

from policies.checks import whole

__all__ = ["Choice", "bound", "choose"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What to use and what to hope for.

    policy: a name in `policies.eviction.NAMES`. bound: the largest byte hit ratio of any policy in an epoch
    after the first. reason: one sentence for a person.
    """

    policy: str
    bound: float
    reason: str


def bound(capacity_bytes: int, corpus_bytes: int, epoch: int, *, readers: int = 1) -> float:
    """Return the largest byte hit ratio, in [0, 1], that any policy can reach in this epoch (0 is the first).

    corpus_bytes: what one reader takes in an epoch, each byte once. readers: those that share the cache and
    run through the same epochs together. Raises ValueError for sizes or epochs below 0 and for fewer than 1
    reader.
    """
    capacity_bytes = whole("capacity_bytes", capacity_bytes, least=0, example=500_000_000_000)
    corpus_bytes = whole("corpus_bytes", corpus_bytes, least=0, example=2_000_000_000_000)
    readers = whole("readers", readers, least=1, example=1)
    resident = 0.0
    if whole("epoch", epoch, least=0, example=0) > 0:
        resident = min(1.0, capacity_bytes / corpus_bytes) if corpus_bytes else 1.0
    return (readers - 1 + resident) / readers


def choose(*, corpus_bytes: int, capacity_bytes: int, readers: int = 1) -> Choice:
    """Return the policy for readers that permute one corpus, the bound after the first epoch, and why.

    Raises ValueError for sizes below 0 and for fewer than 1 reader.
    """
    limit = bound(capacity_bytes, corpus_bytes, 1, readers=readers)
    if readers > 1:
        reason = (
            f"{readers} readers share the cache and reuse may cross them, for which nothing better is known "
            "here yet: pin is safe, but how near it comes to the bound is not known"
        )
    elif capacity_bytes >= corpus_bytes:
        reason = "the whole corpus fits: everything is fetched once and stays"
    else:
        reason = (
            f"one reader takes each row once an epoch, so no policy hits more than capacity over corpus, "
            f"{limit:.3f}: pin reaches it to within a shard, and LRU does not"
        )
    return Choice("pin", limit, reason)
