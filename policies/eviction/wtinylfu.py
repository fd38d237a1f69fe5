"""W-TinyLFU: a small LRU window for what is new, and a main part that an item enters by being used more
often.

Source: G. Einziger, R. Friedman, B. Manes, "TinyLFU: a highly efficient cache admission policy", ACM
Transactions on Storage 2017; the window adapts by hill climbing as in G. Einziger, O. Eytan, R. Friedman, B.
Manes, "Adaptive software cache management", Middleware 2018. Uses are counted exactly, and halved from time
to time: a cache for shards knows few items, and a sketch would depend on how their names are hashed.
"""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain
from typing import Final

from policies.eviction.base import Algorithm, Item

__all__ = ["WTinyLfu"]

_FIRST_WINDOW_SHARE: Final = 0.01
_MOST_WINDOW_SHARE: Final = 0.8
_PROTECTED_SHARE: Final = 0.8
_CLEARLY: Final = 1.5
"""So many times as often as another an item must have been used to displace it. Where all are used equally
often, as when every epoch takes each once, one use more says only whose turn it was."""
_PERIOD: Final = 10
"""The window may change after so many requests for each resident item."""
_HALVING: Final = 3
"""Uses are halved after so many periods."""
_LEAST_PERIOD: Final = 32
_FIRST_STEP: Final = 0.03
_STEP_DECAY: Final = 0.98
_RESTART: Final = 0.05


class WTinyLfu(Algorithm[Item]):
    """Three LRU queues of item to bytes: the window, and the main part's on probation and protected."""

    name = "wtinylfu"

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._window: OrderedDict[Item, int] = OrderedDict()
        self._probation: OrderedDict[Item, int] = OrderedDict()
        self._protected: OrderedDict[Item, int] = OrderedDict()
        self._window_bytes = self._protected_bytes = 0
        self._uses: dict[Item, int] = {}
        self._window_share = _FIRST_WINDOW_SHARE
        self._step = _FIRST_STEP
        self._period = _PERIOD * _LEAST_PERIOD  # in requests
        self._periods = self._requests = self._hits = 0
        self._last_hit_ratio = 0.0
        self._gone: list[Item] = []  # evicted by a call that could not say so

    def hit(self, item: Item) -> bool:
        """Return whether the item is resident, and count the use; a miss is counted too."""
        self._requests += 1
        if self._requests >= self._period:
            self._end_period()
        if item in self._window:  # again so soon, which says nothing of later: it is not counted
            self._window.move_to_end(item)
            self._hits += 1
            return True
        self._uses[item] = self._uses.get(item, 0) + 1
        if item in self._protected:
            self._protected.move_to_end(item)
        elif item in self._probation:
            self._protect(item)
        else:
            return False
        self._hits += 1
        return True

    def __contains__(self, item: object) -> bool:
        return item in self._window or item in self._probation or item in self._protected

    def __len__(self) -> int:
        return len(self._window) + len(self._probation) + len(self._protected)

    def __iter__(self) -> Iterator[Item]:
        return chain(self._probation, self._protected, self._window)

    def _make_room(self, item: Item, nbytes: int) -> list[Item] | None:
        if nbytes > self._capacity_bytes:
            return None
        if self._used_bytes + nbytes <= self._capacity_bytes:
            return self._all_gone(item)
        window_bytes = self._window_share * self._capacity_bytes
        large = nbytes > window_bytes  # for the window: it must win its place in the main part now
        victims = []
        while self._window and self._window_bytes + (0 if large else nbytes) > window_bytes:
            victims += self._leave_window()
        displaced = self._contest(item, nbytes) if large else self._shrink(self._capacity_bytes - nbytes)
        if displaced is None:
            self._gone += victims
            return None
        self._gone += victims + displaced
        return self._all_gone(item)

    def resize(self, capacity_bytes: int) -> list[Item]:
        """Set the capacity and return the victims; see `Eviction.resize`."""
        self._gone += super().resize(capacity_bytes)
        return self._all_gone()

    def _insert(self, item: Item, nbytes: int) -> None:
        if nbytes > self._window_share * self._capacity_bytes:
            self._probation[item] = nbytes
        else:
            self._window[item] = nbytes
            self._window_bytes += nbytes

    def _take(self, item: Item) -> int:
        if item in self._window:
            nbytes = self._window.pop(item)
            self._window_bytes -= nbytes
            return nbytes
        if item in self._protected:
            nbytes = self._protected.pop(item)
            self._protected_bytes -= nbytes
            return nbytes
        return self._probation.pop(item)

    def _evict(self) -> tuple[Item, int]:
        item = next(iter(self))
        return item, self._take(item)

    def _leave_window(self) -> list[Item]:
        """Let the oldest item of the window into the main part, or evict it; the victims."""
        item, nbytes = next(iter(self._window.items()))
        self._window_bytes -= self._window.pop(item)
        self._used_bytes -= nbytes
        victims = self._contest(item, nbytes)
        if victims is None:
            return [item]
        self._probation[item] = nbytes
        self._used_bytes += nbytes
        return victims

    def _contest(self, item: Item, nbytes: int) -> list[Item] | None:
        """Evict what an item has to displace from the main part; None where it was not clearly used more."""
        main_bytes = self._used_bytes - self._window_bytes
        needed_bytes = main_bytes + nbytes - (1 - self._window_share) * self._capacity_bytes
        queues = [self._probation, self._protected]
        if needed_bytes > main_bytes:  # larger than the whole main part: the window gives way too
            needed_bytes = self._used_bytes + nbytes - self._capacity_bytes
            queues.append(self._window)
        victims: list[Item] = []
        uses = self._uses.get(item, 0)
        for victim, victim_bytes in chain.from_iterable(queue.items() for queue in queues):
            if needed_bytes <= 0:
                break
            if self._uses.get(victim, 0) * _CLEARLY >= uses:
                return None
            victims.append(victim)
            needed_bytes -= victim_bytes
        for victim in victims:
            self._used_bytes -= self._take(victim)
        return victims

    def _all_gone(self, coming: Item | None = None) -> list[Item]:
        """Whom nobody was told of yet; one that comes back now is not among them."""
        gone, self._gone = self._gone, []
        return [victim for victim in gone if victim != coming]

    def _protect(self, item: Item) -> None:
        nbytes = self._protected[item] = self._probation.pop(item)
        self._protected_bytes += nbytes
        most_bytes = _PROTECTED_SHARE * (1 - self._window_share) * self._capacity_bytes
        while self._protected_bytes > most_bytes:
            demoted, demoted_bytes = self._protected.popitem(last=False)
            self._protected_bytes -= demoted_bytes
            self._probation[demoted] = demoted_bytes

    def _end_period(self) -> None:
        self._period = _PERIOD * max(_LEAST_PERIOD, len(self))
        if self._requests < self._period:  # more items are resident than when it began
            return
        self._climb()
        self._periods += 1
        if self._periods % _HALVING == 0:
            self._uses = {known: uses // 2 for known, uses in self._uses.items() if uses > 1}
        self._requests = self._hits = 0

    def _climb(self) -> None:
        """Go on in the direction that brought more hits, in smaller and smaller steps; else turn round."""
        hit_ratio = self._hits / self._requests
        change = hit_ratio - self._last_hit_ratio
        if change < 0:
            self._step = -self._step
        if abs(change) >= _RESTART:
            self._step = _FIRST_STEP if self._step > 0 else -_FIRST_STEP
        share = self._window_share + self._step
        self._window_share = min(max(share, _FIRST_WINDOW_SHARE), _MOST_WINDOW_SHARE)
        self._step *= _STEP_DECAY
        self._last_hit_ratio = hit_ratio
