"""How far ahead to fetch, in bytes of the order: twice the bandwidth-delay product at first, then as it
goes.

Invariant: least_bytes <= nbytes <= most_bytes.
"""

from typing import Final

from policies.checks import number, whole

__all__ = ["Lookahead", "bandwidth_delay_bytes"]

_FLAT: Final = 1.02  # egress that grows by less than this from round to round is flat


def bandwidth_delay_bytes(
    latency_seconds: float, bandwidth_bytes_per_second: float, item_bytes: int = 0
) -> int:
    """Return the bytes that must be asked for ahead so that a link is never idle: bandwidth times delay.

    The delay of an item ends with its last byte, so `item_bytes`, what one item has, is added.
    Raises ValueError for a latency or size below 0 or a bandwidth not above 0.
    """
    number("latency_seconds", latency_seconds, example=0.03)
    number("bandwidth_bytes_per_second", bandwidth_bytes_per_second, above=0, example=1e9)
    item_bytes = whole("item_bytes", item_bytes, least=0, example=67_108_864)
    return round(latency_seconds * bandwidth_bytes_per_second) + item_bytes


class Lookahead:
    """A lookahead that adapts: wider while there are stalls and egress stays flat, else narrower or as it
    is.

    start_bytes: the first lookahead. least_bytes, most_bytes: limits, inclusive; None means half of and
    sixteen times the start. Raises ValueError for numbers below 0 or a start outside the limits.
    """

    __slots__ = ("_least_bytes", "_most_bytes", "_nbytes", "_share", "_widened")

    def __init__(
        self, start_bytes: int, *, least_bytes: int | None = None, most_bytes: int | None = None
    ) -> None:
        start = whole("start_bytes", start_bytes, least=0, example=134_217_728)
        least = start // 2 if least_bytes is None else least_bytes
        most = 16 * start if most_bytes is None else most_bytes
        self._least_bytes = whole("least_bytes", least, least=0, below=start + 1, example=start)
        self._most_bytes = whole("most_bytes", most, least=start, example=16 * start)
        self._nbytes = start
        self._share: float | None = None
        self._widened = False

    @property
    def nbytes(self) -> int:
        """The lookahead now."""
        return self._nbytes

    @property
    def round_bytes(self) -> int:
        """After so many bytes of requests `observe` is to be called: long enough to see a change work."""
        return 4 * self._nbytes + 1

    def observe(
        self, *, requested_bytes: int, fetched_bytes: int, wasted_bytes: int, stall_seconds: float
    ) -> int:
        """Take in what one round cost and return the lookahead for the next one.

        wasted_bytes: prefetched and evicted before their use. Waste narrows the lookahead by a quarter, and
        so does egress that grew after it was widened; stalls with flat egress widen it by half.
        """
        share = fetched_bytes / requested_bytes if requested_bytes else 0.0
        grew = self._share is not None and share > self._share * _FLAT
        widened, self._widened, self._share = self._widened, False, share
        if wasted_bytes or (grew and widened):
            self._nbytes = max(self._least_bytes, self._nbytes * 3 // 4)
        elif stall_seconds > 0 and not grew:
            self._widened = True
            self._nbytes = min(self._most_bytes, self._nbytes * 3 // 2 + 1)
        return self._nbytes
