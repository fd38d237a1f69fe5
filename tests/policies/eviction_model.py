"""The eviction algorithms in their plainest form: what `policies.eviction` does in constant time."""

MODELLED = ("fifo", "lru", "pin", "pin-smallest", "clock", "sieve", "lfu")


class Model:
    """Each algorithm in its plainest form: a list of [item, bytes, uses], oldest first, searched in full."""

    def __init__(self, name: str, capacity: int) -> None:
        self.name, self.capacity, self.held = name, capacity, list[list[int]]()
        self.hand = 0  # of sieve: the next place to look at

    @property
    def used(self) -> int:
        return sum(nbytes for _, nbytes, _ in self.held)

    @property
    def order(self) -> list[int]:
        """The items, the next victim first where the algorithm has such an order."""
        items = [item for item, _, _ in self.held]
        return items[::-1] if self.name == "pin" else items

    def hit(self, item: int) -> bool:
        for entry in self.held:
            if entry[0] == item:
                entry[2] += 1
                if self.name in ("lru", "lfu"):  # of equally many uses, who got there first leaves first
                    self.held.remove(entry)
                    self.held.append(entry)
                return True
        return False

    def admit(self, item: int, nbytes: int) -> list[int] | None:
        if nbytes > self.capacity:
            return None
        if self.name == "pin" and self.used + nbytes > self.capacity:
            return None
        full = self.used + nbytes > self.capacity
        if self.name == "pin-smallest" and full and max(held for _, held, _ in self.held) <= nbytes:
            return None
        victims = self.shrink(self.capacity - nbytes)
        self.held.append([item, nbytes, 0])
        return victims

    def shrink(self, most: int) -> list[int]:
        victims = []
        while self.used > most:
            victims.append(self.held.pop(self.victim())[0])
        return victims

    def victim(self) -> int:
        """The place of the next victim; changes what looking for it changes."""
        places = range(len(self.held))
        if self.name == "pin":
            return len(self.held) - 1
        if self.name == "pin-smallest":
            return max(places, key=lambda place: (self.held[place][1], place))
        if self.name == "lfu":
            return min(places, key=lambda place: self.held[place][2])
        if self.name == "clock":
            while self.held[0][2]:
                entry = self.held.pop(0)
                self.held.append([*entry[:2], 0])
        if self.name == "sieve":
            while self.held[self.hand][2]:
                self.held[self.hand][2] = 0
                self.hand = (self.hand + 1) % len(self.held)
            place = self.hand
            # At the end of the queue it begins again before anything new comes in.
            self.hand = 0 if place == len(self.held) - 1 else place
            return place
        return 0

    def remove(self, item: int) -> bool:
        for place, entry in enumerate(self.held):
            if entry[0] == item:
                del self.held[place]
                if place < self.hand:
                    self.hand -= 1
                if self.hand >= len(self.held):
                    self.hand = 0
                return True
        return False
