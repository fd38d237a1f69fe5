"""What a loader did in the current epoch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class LoaderStats:
    """Numbers of one epoch of one rank, so far."""

    epoch: int
    bound: float
    """Largest hit ratio that any cache policy could reach in this epoch, to within the padding of blocks, if
    this rank were the only one that reads from the cache."""
    passed_batches: int = 0
    """Batches of the epoch that were handed out before this loop, after a resume."""
    rows: int = 0
    batches: int = 0
    seconds: float = 0.0
    """Time since the epoch began, the training's own included."""
    stall_seconds: float = 0.0
    """Time the caller waited for bytes."""
    transform_seconds: float = 0.0
    """Time the caller spent on transforms, or waited for those ahead of it."""
    bytes_needed: int = 0
    """Bytes of the blocks that were read, as stored."""
    bytes_fetched: int = 0
    """Bytes that came from beyond the node cache."""
    bytes_read: dict[str, int] = field(default_factory=dict)
    """Bytes read from each tier, and from the node cache (``node cache``)."""
    damaged: list[tuple[str, str]] = field(default_factory=list)
    """Tier and key of each bad copy that was met, and replaced."""

    @property
    def hit_ratio(self) -> float:
        """Share of the bytes needed that the node cache gave."""
        return max(0.0, 1 - self.bytes_fetched / self.bytes_needed) if self.bytes_needed else 0.0

    @property
    def distance_from_bound(self) -> float:
        """What `hit_ratio` is short of `bound`: at the end of an epoch, all that another policy could gain.

        At least 0 to within the padding of blocks, unless another reader of the cache fetched for this one.
        """
        return self.bound - self.hit_ratio

    @property
    def stall_share(self) -> float:
        """Share of the time that the caller waited for bytes."""
        return self.stall_seconds / self.seconds if self.seconds else 0.0

    @property
    def rows_per_second(self) -> float:
        """Rows a second, over all of the epoch so far."""
        return self.rows / self.seconds if self.seconds else 0.0
