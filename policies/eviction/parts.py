"""Bytes that are held in equal parts with others, added up without rounding."""

__all__ = ["Parts"]


class Parts:
    """Sums of bytes by how many share them; a float only when they are asked for."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes: dict[int, int] = {}

    def add(self, nbytes: int, holders: int) -> None:
        """Add one of `holders` equal parts of so many bytes, or take it away where they are below 0."""
        self._bytes[holders] = self._bytes.get(holders, 0) + nbytes

    @property
    def total_bytes(self) -> float:
        """The sum of all parts."""
        return sum(nbytes / holders for holders, nbytes in self._bytes.items())
