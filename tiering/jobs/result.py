"""What became of one job, or of one action of a lifecycle job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tiering.errors import TieringError

Status = Literal["planned", "done", "nothing to do", "failed"]


@dataclass(frozen=True, slots=True)
class JobResult:
    """What became of one job."""

    job: str
    status: Status
    moved: int = 0
    skipped: int = 0
    nbytes: int = 0
    """Bytes copied, or to be copied."""
    freed_bytes: int = 0
    """Bytes given back on the source, by demote."""
    dollars: float = 0.0
    """Planned cost."""
    error: TieringError | None = None
