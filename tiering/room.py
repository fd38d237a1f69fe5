"""Whether a tier can take a corpus: room for its bytes, and a name that is nobody else's."""

from __future__ import annotations

from collections.abc import Collection

from tiering.errors import CapacityExceeded, Conflict
from tiering.keys import INTERNAL
from tiering.tier import Tier


def refuse_foreign(tier: Tier, name: str, keys: Collection[str]) -> None:
    """Raise `Conflict` when `keys`, all below the folder `name`, are not the work of this engine.

    Every ingest and move begins with a claim, and a claim stays; so where objects lie without any, they are
    somebody else's and must not be written over.
    """
    if keys and not any(key.startswith(f"{name}/{INTERNAL}/") for key in keys):
        raise Conflict(
            f"the folder {name!r} holds objects that are not of a corpus",
            tier=tier.name,
            key=next(iter(keys)),
            hint="Choose another name, or empty that folder",
        )


def check_room(tier: Tier, needed_bytes: int, largest_bytes: int, what: str) -> None:
    """Raise `CapacityExceeded` unless `needed_bytes` more fit on the tier."""
    if tier.capacity_bytes is not None and largest_bytes > tier.capacity_bytes:
        raise CapacityExceeded(
            f"a shard of {what} has {largest_bytes} bytes, the whole tier {tier.capacity_bytes}",
            tier=tier.name,
            hint="Ingest with a smaller shard_size, or give the tier a larger capacity",
        )
    room = tier.room_bytes() if needed_bytes else None
    if room is not None and needed_bytes > room:
        raise CapacityExceeded(
            f"{what} needs {needed_bytes} more bytes, there is room for {room}",
            tier=tier.name,
            hint="Release something from this tier, or give it a larger capacity",
        )
