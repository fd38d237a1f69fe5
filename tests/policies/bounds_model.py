"""The most hits there can be, found by trying everything and by linear programming."""

from itertools import combinations

import numpy as np
from scipy.optimize import linprog


def best_of_all(ids: list[int], sizes: list[int], capacity: int, *, count_bytes: bool) -> int:
    """The best of all ways to keep items, each at the size it was admitted with; sizes are of requests."""
    states = {frozenset[tuple[int, int]](): 0}
    for item, nbytes in zip(ids, sizes, strict=True):
        after: dict[frozenset[tuple[int, int]], int] = {}
        for held, won in states.items():
            hit = any(one == item for one, _ in held)
            now = won + hit * (nbytes if count_bytes else 1)
            offered = held if hit else held | {(item, nbytes)}
            for count in range(len(offered) + 1):
                for kept in map(frozenset, combinations(offered, count)):
                    if sum(size for _, size in kept) <= capacity:
                        after[kept] = max(now, after.get(kept, 0))
        states = after
    return max(states.values())


def lp_optimum(ids: list[int], sizes: list[int], capacity: int, *, count_bytes: bool) -> float:
    """The same where parts of items may be kept, each of one size: FOO of the SIGMETRICS 2018 paper."""
    reuses, last = [], dict[int, int]()
    for place, item in enumerate(ids):
        if item in last:
            reuses.append((last[item], place))
        last[item] = place
    if not reuses:
        return 0.0
    kept = np.zeros((len(ids), len(reuses)))
    for number, (begin, end) in enumerate(reuses):
        kept[begin:end, number] = sizes[begin]
    worth = [sizes[end] if count_bytes else 1 for _, end in reuses]
    most = [float(sizes[begin] <= capacity) for begin, _ in reuses]
    found = linprog(
        -np.array(worth), A_ub=kept, b_ub=np.full(len(ids), capacity), bounds=[(0, one) for one in most]
    )
    return float(-found.fun)
