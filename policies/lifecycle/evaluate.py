"""What rules want done with a catalogue.

The rules work on a picture of the catalogue, one after the other and again until none has anything left to
do; where the picture then differs from the catalogue, something is to be done. So a copy that two rules would
send on in turn travels once, and asking again afterwards says nothing.

Invariant: no action leaves an item fewer copies than its rule's `min_copies`, nor than that of any other
removing rule whose conditions the item meets (`forget` heeds its own alone).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from policies.lifecycle.catalogue import Bools, Catalogue
from policies.lifecycle.conditions import Facts, check_facts, facts, matches
from policies.lifecycle.rule import Rule
from policies.lifecycle.rules import Rules

__all__ = ["Picture", "evaluate"]

Ints = npt.NDArray[np.int64]


@dataclass
class Picture:
    """Where copies are while rules work. by_add, by_removal: the rule that changed a cell last, or -1."""

    catalogue: Catalogue
    present: Bools
    used_bytes: dict[str, int]
    by_add: npt.NDArray[np.int16]
    by_removal: npt.NDArray[np.int16]
    left_bytes: dict[str, int] = field(default_factory=dict)
    left_objects: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, Bools] = field(default_factory=dict)
    """By rule, the items that would go but for its limit or for room at the target."""

    def after(self, rule: Rule, needed: Ints) -> tuple[Ints, Ints]:
        """How many copies an item would have when one more is removed by a rule, and how many it must, [N].

        needed: by the strictest rule that the item meets, which counts where the copies become fewer.
        """
        fewer = np.ones(len(needed), bool)
        if rule.action == "move" and rule.to is not None:
            fewer = self.present[:, self.catalogue.tiers.index(rule.to)]
        own = np.full(len(needed), rule.min_copies)
        least = own if rule.action == "forget" else np.where(fewer, np.maximum(needed, own), own)
        return self.present.sum(axis=1) - fewer, least

    def wait(self, rule: Rule, rows: Ints) -> None:
        """Note who would go but for a limit or for room."""
        if len(rows):
            self.waiting.setdefault(rule.name, np.zeros(len(self.present), bool))[rows] = True

    def free_bytes(self, tier: str) -> float:
        """Room that is left on a tier, infinite where its capacity is not known."""
        return self.catalogue.capacity_bytes.get(tier, float("inf")) - self.used_bytes[tier]


def evaluate(rules: Rules, catalogue: Catalogue, now_seconds: float) -> tuple[Picture, Facts, Ints]:
    """The picture after all rules have worked, the facts they saw, and how many copies each item must keep.

    Raises ValueError where the catalogue lacks what a rule needs.
    """
    for rule in rules.rules:
        check_facts(rule, catalogue)
    used = (catalogue.nbytes @ catalogue.present.astype(np.int64)).tolist()
    nobody = np.full(catalogue.present.shape, -1, np.int16)
    picture = Picture(
        catalogue,
        catalogue.present.copy(),
        dict(zip(catalogue.tiers, used, strict=True)),
        nobody,
        nobody.copy(),
        {rule.name: rule.limit_bytes for rule in rules.rules if rule.limit_bytes is not None},
        {rule.name: rule.limit_objects for rule in rules.rules if rule.limit_objects is not None},
    )
    ranked = any(rule.keep_newest is not None for rule in rules.rules)
    while True:
        alive: Bools = np.logical_or.reduce(picture.present, axis=1)
        known = facts(catalogue, now_seconds, alive, ranked=ranked)
        met = [matches(rule, known) for rule in rules.rules]
        needed = np.ones(len(catalogue.names), np.int64)
        for rule, mask in zip(rules.rules, met, strict=True):
            if rule.removes and rule.action != "forget":
                np.maximum(needed, np.where(mask, rule.min_copies, 1), out=needed)
        taken = np.zeros_like(picture.present)
        done = [
            _work(number, rule, column, picture, known, mask, needed, taken)
            for number, (rule, mask) in enumerate(zip(rules.rules, met, strict=True))
            for column in _columns(rule, catalogue)
        ]
        if not any(done):
            return picture, known, needed


def _columns(rule: Rule, catalogue: Catalogue) -> Iterator[int]:
    for column, tier in enumerate(catalogue.tiers):
        if rule.tier in (None, tier) and rule.to != tier:
            yield column


def _work(
    number: int,
    rule: Rule,
    column: int,
    picture: Picture,
    known: Facts,
    met: Bools,
    needed: Ints,
    taken: Bools,
) -> bool:
    """Let one rule work on one tier; whether it changed anything. `taken` are the cells that are decided."""
    ready = met & picture.present[:, column] & ~taken[:, column]
    if rule.action == "pin":
        taken[:, column] |= ready
        return False
    target = None if rule.to is None else picture.catalogue.tiers.index(rule.to)
    if rule.action == "copy":
        ready &= ~picture.present[:, target]
    else:
        left, least = picture.after(rule, needed)
        ready &= left >= least
    rows = _in_order(rule, np.flatnonzero(ready), known)
    rows = _to_the_mark(rule, rows, picture)
    going = _within_limits(rule, _with_room(rows, target, picture), picture)
    taken[rows, column] = True  # who has to wait is nobody else's meanwhile
    picture.wait(rule, rows[len(going) :])
    rows = going
    if not len(rows):
        return False
    nbytes = picture.catalogue.nbytes
    if target is not None and rule.to is not None:
        new = rows[~picture.present[rows, target]]
        picture.present[new, target] = taken[new, target] = True
        picture.by_add[new, target] = number
        picture.used_bytes[rule.to] += int(nbytes[new].sum())
    if rule.removes:
        picture.present[rows, column] = False
        picture.by_removal[rows, column] = number
        picture.used_bytes[picture.catalogue.tiers[column]] -= int(nbytes[rows].sum())
    return True


def _in_order(rule: Rule, rows: Ints, known: Facts) -> Ints:
    """The rows, who goes first first; ties in the order of the catalogue."""
    nbytes, accesses = known.catalogue.nbytes, known.catalogue.accesses
    if rule.order_by in ("oldest", "newest") and known.age is not None:
        key = known.age[rows] if rule.order_by == "newest" else -known.age[rows]
    elif rule.order_by == "idlest" and known.idle is not None:
        key = -known.idle[rows]
    elif rule.order_by in ("largest", "smallest"):
        key = nbytes[rows].astype(np.float64) * (1 if rule.order_by == "smallest" else -1)
    elif rule.order_by == "least-read" and accesses is not None:
        key = accesses[rows].astype(np.float64)
    else:
        return rows
    return rows[np.argsort(key, kind="stable")]


def _to_the_mark(rule: Rule, rows: Ints, picture: Picture) -> Ints:
    """As many as must go to come from above the high water mark down to the low one."""
    if rule.high_water is None or rule.low_water is None or rule.tier is None:
        return rows
    capacity, used = picture.catalogue.capacity_bytes[rule.tier], picture.used_bytes[rule.tier]
    if used <= rule.high_water * capacity:
        return rows[:0]
    gone = np.cumsum(picture.catalogue.nbytes[rows])
    return rows[: int(np.searchsorted(gone, used - rule.low_water * capacity)) + 1]


def _with_room(rows: Ints, target: int | None, picture: Picture) -> Ints:
    """As many, from the first on, as the target has room for."""
    if target is None:
        return rows
    new = np.where(picture.present[rows, target], 0, picture.catalogue.nbytes[rows])
    free = picture.free_bytes(picture.catalogue.tiers[target])
    return rows[: int(np.searchsorted(np.cumsum(new), free, side="right"))]


def _within_limits(rule: Rule, rows: Ints, picture: Picture) -> Ints:
    """As many, from the first on, as the limits still allow."""
    nbytes = picture.catalogue.nbytes
    if rule.name in picture.left_objects:
        rows = rows[: picture.left_objects[rule.name]]
        picture.left_objects[rule.name] -= len(rows)
    if rule.name in picture.left_bytes:
        total = np.cumsum(nbytes[rows])
        rows = rows[: int(np.searchsorted(total, picture.left_bytes[rule.name], side="right"))]
        picture.left_bytes[rule.name] -= int(nbytes[rows].sum())
    return rows
