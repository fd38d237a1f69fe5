"""The eviction algorithms in their plainest form: what `policies.eviction` does in constant time."""


class Model:
    """Each algorithm in its plainest form: a list of (item, bytes), oldest first, searched in full."""

    def __init__(self, name: str, capacity: int) -> None:
        self.name, self.capacity, self.held = name, capacity, list[tuple[int, int]]()

    @property
    def used(self) -> int:
        return sum(nbytes for _, nbytes in self.held)

    @property
    def order(self) -> list[int]:
        items = [item for item, _ in self.held]
        return items[::-1] if self.name == "pin" else items

    def hit(self, item: int) -> bool:
        for entry in self.held:
            if entry[0] == item:
                if self.name == "lru":
                    self.held.remove(entry)
                    self.held.append(entry)
                return True
        return False

    def admit(self, item: int, nbytes: int) -> list[int] | None:
        if nbytes > self.capacity or (self.name == "pin" and self.used + nbytes > self.capacity):
            return None
        victims = self.shrink(self.capacity - nbytes)
        self.held.append((item, nbytes))
        return victims

    def shrink(self, most: int) -> list[int]:
        victims = []
        while self.used > most:
            victims.append(self.held.pop(-1 if self.name == "pin" else 0)[0])
        return victims

    def remove(self, item: int) -> bool:
        before = len(self.held)
        self.held = [entry for entry in self.held if entry[0] != item]
        return len(self.held) < before
