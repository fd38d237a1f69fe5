"""Which policy the readers of a node cache are best served by, and why: `policies.regime.choose`, kept small.

Invariant: a choice is a function of the readers and the capacity; it is made anew when these change, by
whoever changed them, and all processes go by it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from policies import choose
from policies.regime import Reader as Stream
from tiering.cache.readers import Reader

PIN: Final = "pin"
CLAIRVOYANT: Final = "clairvoyant"
AUTO: Final = "auto"
_SAMPLE: Final = 2048
"""Uses that a choice is made from: some ms for each of the policies compared."""
_ALL: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class Chosen:
    """policy: ``pin`` or ``clairvoyant``. bound: the largest share of bytes that any policy hits."""

    policy: str
    bound: float
    reason: str
    readers: str
    """Whom it was made for, and for which capacity."""

    def to_text(self) -> str:
        """As the index keeps it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: object) -> Chosen | None:
        """From the index; None where it is nothing of this kind."""
        try:
            values = json.loads(text) if isinstance(text, str) else None
            chosen = cls(**values) if isinstance(values, dict) else None
        except (ValueError, TypeError, RecursionError):
            return None
        if chosen is None or chosen.policy not in (PIN, CLAIRVOYANT) or not isinstance(chosen.bound, float):
            return None
        return chosen if isinstance(chosen.reason, str) and isinstance(chosen.readers, str) else None


def identity(readers: Sequence[Reader], capacity_bytes: int) -> str:
    """What `Chosen.readers` says for these."""
    return f"{capacity_bytes}:{','.join(sorted(reader.token for reader in readers))}"


def choose_for(readers: Sequence[Reader], capacity_bytes: int) -> Chosen | None:
    """The policy for these readers; None where none of them foretells anything."""
    told = [reader for reader in readers if len(reader.told.uses)]
    if not told:
        return None
    epochs = [_epochs(reader) for reader in told]
    items = np.unique(np.concatenate([one for each in epochs for one in each]))
    share = min(1.0, _SAMPLE / sum(len(one) for each in epochs for one in each))
    sampled = items[items < np.uint64(min(share * _ALL, _ALL - 1))] if share < 1 else items
    if not len(sampled):
        sampled = items[:1]
    known = [reader.uses_per_second for reader in told if reader.uses_per_second > 0]
    usual = sum(known) / len(known) if known else 1.0
    streams = [
        Stream(
            [np.searchsorted(sampled, one[np.isin(one, sampled)]) for one in each],
            max(1, reader.told.about.shard_bytes),
            reader.told.about.corpus,
            reader.uses_per_second or usual,
        )
        for reader, each in zip(told, epochs, strict=True)
    ]
    if not any(len(epoch) for stream in streams for epoch in stream.epochs):
        return None
    capacity = capacity_bytes if share == 1 else math.ceil(capacity_bytes * len(sampled) / len(items))
    choice = choose(readers=streams, capacity_bytes=capacity)
    policy = PIN if choice.policy.startswith(PIN) else CLAIRVOYANT
    return Chosen(policy, float(choice.bound), choice.reason, identity(readers, capacity_bytes))


def _epochs(reader: Reader) -> list[np.ndarray[Any, np.dtype[np.uint64]]]:
    """What it foretells, cut into epochs; without a part of one at the end, where whole ones are known."""
    uses, ends = reader.told.uses, reader.told.about.epoch_ends
    return np.split(uses[: ends[-1]], ends[:-1]) if ends else [uses]
