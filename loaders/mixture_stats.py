"""What a mixture of corpora did in the current loop, together and by corpus."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CorpusStats:
    """Numbers of one corpus and one rank, so far."""

    epoch: int
    """The furthest one that a lane of this rank has begun, or will with its next row."""
    rows: int
    bytes_needed: int
    """Bytes of the blocks that were read, as stored."""
    bytes_fetched: int
    """Bytes that came from beyond the node cache."""
    damaged: tuple[tuple[str, str], ...]
    """Tier and key of each bad copy that was met, and replaced."""

    @property
    def hit_ratio(self) -> float:
        """Share of the bytes needed that the node cache gave."""
        return max(0.0, 1 - self.bytes_fetched / self.bytes_needed) if self.bytes_needed else 0.0


@dataclass(frozen=True, slots=True)
class MixtureStats:
    """Numbers of one rank since its loop began."""

    batches: int
    seconds: float
    """Time since the loop began, the training's own included."""
    stall_seconds: float
    """Time the caller waited for bytes."""
    corpora: dict[str, CorpusStats]

    @property
    def rows(self) -> int:
        """Rows of all corpora."""
        return sum(corpus.rows for corpus in self.corpora.values())

    @property
    def bytes_needed(self) -> int:
        """Bytes of the blocks that were read, as stored."""
        return sum(corpus.bytes_needed for corpus in self.corpora.values())

    @property
    def bytes_fetched(self) -> int:
        """Bytes that came from beyond the node cache."""
        return sum(corpus.bytes_fetched for corpus in self.corpora.values())

    @property
    def damaged(self) -> list[tuple[str, str]]:
        """Tier and key of each bad copy that was met, and replaced."""
        return [copy for corpus in self.corpora.values() for copy in corpus.damaged]

    @property
    def hit_ratio(self) -> float:
        """Share of the bytes needed that the node cache gave."""
        return max(0.0, 1 - self.bytes_fetched / self.bytes_needed) if self.bytes_needed else 0.0

    @property
    def rows_per_second(self) -> float:
        """Rows a second, over all of the loop so far."""
        return self.rows / self.seconds if self.seconds else 0.0
