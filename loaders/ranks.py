"""Which rank this process is, and how an epoch is cut into lanes."""

from __future__ import annotations

import os
from typing import Final

from tiering.errors import UsageError

MAX_LANES: Final = 64


def find_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and world size: as given, else from RANK and WORLD_SIZE as torchrun sets them, else 0 of 1.

    Raises:
        UsageError: only one was given, or the rank is outside [0, world_size).
    """
    if (rank is None) != (world_size is None):
        raise UsageError(f"rank = {rank!r} with world_size = {world_size!r}", hint="Give both or neither")
    if rank is None or world_size is None:
        try:
            rank = int(os.environ.get("RANK", "0"))
            world_size = int(os.environ.get("WORLD_SIZE", "1"))
        except ValueError as error:
            raise UsageError(f"RANK or WORLD_SIZE is not a number: {error}", hint="Unset both") from error
    if world_size < 1 or not 0 <= rank < world_size:
        raise UsageError(f"rank {rank} is not one of {world_size}", hint="Ranks count from 0")
    return rank, world_size


def choose_lanes(lanes: int | None, batch_size: int, world_size: int) -> int:
    """Lanes of the global batch: as given, else the largest power of two up to 64 that divides it.

    Raises:
        UsageError: the lanes do not divide the global batch, or the world size does not divide the lanes.
    """
    whole = batch_size * world_size
    if lanes is None:
        lanes = min(MAX_LANES, whole & -whole)
    if lanes < 1 or whole % lanes:
        raise UsageError(
            f"lanes = {lanes} does not divide the global batch of {whole} rows ({batch_size} x {world_size})",
            hint=f"Example: lanes={min(MAX_LANES, whole & -whole)}",
        )
    if lanes % world_size:
        raise UsageError(
            f"world size {world_size} does not divide the {lanes} lanes of an epoch",
            hint=_lanes_hint(batch_size, world_size),
        )
    return lanes


def _lanes_hint(batch_size: int, world_size: int) -> str:
    whole = batch_size * world_size
    fitting = [lanes for lanes in range(world_size, whole + 1, world_size) if whole % lanes == 0]
    return f"Set lanes to one of {fitting[:6]} when the training begins; a saved state keeps its own"
