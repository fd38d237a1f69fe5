"""Which rank this process is, and how an epoch is cut into lanes.

Invariant: a rank is never guessed. It is what the first source that speaks says, or it is an error; where no
source speaks, this is the only process.

The sources, in the order in which they are asked:

1. the arguments;
2. ``torch.distributed``, where this process has imported torch and initialised a process group;
3. torchrun and whatever speaks as it does: ``RANK``, ``WORLD_SIZE``;
4. an MPI launcher: Open MPI's ``OMPI_COMM_WORLD_*``, MVAPICH's ``MV2_COMM_WORLD_*``, and the ``PMI_*`` of
   MPICH, Intel MPI and Cray;
5. a Slurm step: ``SLURM_PROCID`` of ``SLURM_STEP_NUM_TASKS``.

MPI is asked before Slurm because mpirun starts its daemons by srun, one a node, and their Slurm variables are
inherited by every rank: they count nodes. Of these two, a source that says there is one process says nothing:
a shell in an interactive step is such a process, and jobs inherit its variables.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from tiering.arguments import whole
from tiering.errors import UsageError

MAX_LANES: Final = 64

_TORCHRUN: Final = ("RANK", "WORLD_SIZE")
_MPI: Final = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)
_PMIX_RANK: Final = "PMIX_RANK"  # PMIx gives the size by calls alone
_SLURM_STEP: Final = "SLURM_STEP_ID"
_SLURM_RANK: Final = "SLURM_PROCID"
_SLURM_SIZES: Final = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
_RESERVED_STEPS: Final = 0xFFFF_FFF0  # from here on: batch scripts, the shells of salloc (slurm.h)


def find_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and world size: as given, else from the first source that has them, else 0 of 1.

    Raises:
        UsageError: only one was given, or a source has only one of them, or no numbers, or a rank outside
            [0, world_size); the message names the variables.
    """
    if (rank is None) != (world_size is None):
        raise UsageError(f"rank = {rank!r} with world_size = {world_size!r}", hint="Give both or neither")
    if rank is not None and world_size is not None:
        rank = whole(rank, "rank", "rank=0, world_size=8")
        world_size = whole(world_size, "world_size", "rank=0, world_size=8")
        if world_size < 1 or not 0 <= rank < world_size:
            raise UsageError(f"rank {rank} is not one of {world_size}", hint="Ranks count from 0")
        return rank, world_size
    return _torch_distributed() or _pair(*_TORCHRUN) or _mpi() or _slurm() or _alone()


def choose_lanes(lanes: int | None, batch_size: int, world_size: int) -> int:
    """Lanes of the global batch: as given, else the largest power of two up to 64 that divides it.

    Raises:
        UsageError: the lanes do not divide the global batch, or the world size does not divide the lanes.
    """
    rows = batch_size * world_size
    lanes = min(MAX_LANES, rows & -rows) if lanes is None else whole(lanes, "lanes", "lanes=64")
    if lanes < 1 or rows % lanes:
        raise UsageError(
            f"lanes = {lanes} does not divide the global batch of {rows} rows ({batch_size} x {world_size})",
            hint=f"Example: lanes={min(MAX_LANES, rows & -rows)}",
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


def _torch_distributed() -> tuple[int, int] | None:
    """What torch says, if somebody else imported it: importing it here would cost seconds."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return int(distributed.get_rank()), int(distributed.get_world_size())


def _mpi() -> tuple[int, int] | None:
    for rank, size in _MPI:
        found = _pair(rank, size)
        if found is not None and found[1] > 1:
            return found
    return None


def _slurm() -> tuple[int, int] | None:
    """The task of a step: batch scripts and interactive shells have a rank too, but are one process."""
    step = os.environ.get(_SLURM_STEP)
    if step is None or _number(_SLURM_STEP) >= _RESERVED_STEPS:
        return None
    # SLURM_NTASKS is that of the whole job where the step was started with --preserve-env.
    size = next((name for name in _SLURM_SIZES if name in os.environ), _SLURM_SIZES[0])
    found = _pair(_SLURM_RANK, size)
    return found if found is not None and found[1] > 1 else None


def _alone() -> tuple[int, int]:
    if _PMIX_RANK in os.environ and _SLURM_STEP not in os.environ:
        raise UsageError(
            f"{_PMIX_RANK} = {os.environ[_PMIX_RANK]!r} says that this is a rank; nothing says of how many",
            hint="Give rank and world_size to the loader, for example those of mpi4py's MPI.COMM_WORLD",
        )
    return 0, 1


def _pair(rank_name: str, size_name: str) -> tuple[int, int] | None:
    """A rank and a world size from two variables; None where neither is set."""
    missing = [name for name in (rank_name, size_name) if name not in os.environ]
    if len(missing) == 2:
        return None
    if missing:
        (there,) = {rank_name, size_name} - set(missing)
        raise UsageError(
            f"the variable {there} is set and {missing[0]} is not",
            hint="Set both or neither, or give rank and world_size to the loader",
        )
    rank, size = _number(rank_name), _number(size_name)
    if not rank < size:
        raise UsageError(
            f"{rank_name} = {rank} is not one of {size_name} = {size}", hint="Ranks count from 0"
        )
    return rank, size


def _number(name: str) -> int:
    text = os.environ[name]
    if not (text.isascii() and text.isdigit()):
        raise UsageError(
            f"the variable {name} = {text!r} is not a whole number",
            hint="Set it right, unset it, or give rank and world_size to the loader",
        )
    return int(text)
