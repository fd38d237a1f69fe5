"""What came out of an evaluation: what to do, and which rule applies to an item, and why no other does."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from policies.lifecycle.catalogue import Bools, Catalogue
from policies.lifecycle.conditions import Facts, conditions
from policies.lifecycle.evaluate import Picture, evaluate
from policies.lifecycle.rule import Rule
from policies.lifecycle.rules import Rules
from policies.lifecycle.units import size_text

__all__ = ["Outcome", "Step", "Verdict", "apply_rules"]

Kind = Literal["copy", "move", "release", "forget"]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do with one item.

    source: where a copy is read, or given up. target: where one is made, or None. min_copies: how many
    must remain when it is done.
    """

    kind: Kind
    row: int
    source: str
    target: str | None
    rule: str
    min_copies: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a rule acts on the copy of an item on a tier, and why or why not."""

    rule: str
    tier: str
    applies: bool
    because: str

    def __str__(self) -> str:
        return f"{self.tier}: {self.rule} {'applies' if self.applies else 'does not apply'}: {self.because}"


@dataclass(frozen=True)
class Outcome:
    """Made by `apply_rules`. waiting: by rule, how many items a limit or a full target left for next time."""

    catalogue: Catalogue
    present: Bools
    """Where copies will be, bool [N, T]."""
    waiting: Mapping[str, int]
    _rules: Rules = field(repr=False)
    _picture: Picture = field(repr=False)
    _facts: Facts = field(repr=False)
    _needed: npt.NDArray[np.int64] = field(repr=False)

    @property
    def added(self) -> Bools:
        """Copies to make, bool [N, T]."""
        made: Bools = self.present & ~self.catalogue.present
        return made

    @property
    def removed(self) -> Bools:
        """Copies to give up, bool [N, T]."""
        gone: Bools = self.catalogue.present & ~self.present
        return gone

    def __len__(self) -> int:
        """How many items have something to do."""
        return int((self.added | self.removed).any(axis=1).sum())

    def steps(self) -> Iterator[Step]:
        """What to do, in an order in which every step finds what it needs: copies, moves, then what goes.

        Of what goes, that comes first which wants the most copies to remain.
        """
        rules, tiers = self._rules.rules, self.catalogue.tiers
        added, moves = self.added, self._moves
        nth_leaving, nth_added = moves.cumsum(axis=1), added.cumsum(axis=1) * added
        plain = added & (nth_added > moves.sum(axis=1)[:, None])
        for row, column in np.argwhere(plain).tolist():
            source = tiers[int(self.catalogue.present[row].argmax())]
            rule = rules[self._picture.by_add[row, column]]
            yield Step("copy", row, source, tiers[column], rule.name, rule.min_copies)
        for row, column in np.argwhere(moves).tolist():
            target = int((nth_added[row] == nth_leaving[row, column]).argmax())
            rule = rules[self._picture.by_removal[row, column]]
            yield Step("move", row, tiers[column], tiers[target], rule.name, rule.min_copies)
        for (row, column), number in self._ends.items():
            kind: Kind = "forget" if rules[number].action == "forget" else "release"
            yield Step(kind, row, tiers[column], None, rules[number].name, self._must_remain(number, row))

    @cached_property
    def _moves(self) -> Bools:
        """Copies that go as others of their item come, bool [N, T]: those that a move took, from the left."""
        moves = np.array([rule.action == "move" for rule in self._rules.rules])
        leaving = self.removed & moves[self._picture.by_removal]
        pairs: Bools = leaving & (leaving.cumsum(axis=1) <= self.added.sum(axis=1)[:, None])
        return pairs

    @cached_property
    def _ends(self) -> dict[tuple[int, int], int]:
        """The copies that go and are not moved, by row and column, each with the rule that ends it, in order.

        That is the rule that took it or, where fewer copies remain by then than that one keeps, the rule that
        keeps the fewest of those that took a copy of the item: a copy is forgotten where another rule had
        sent it.
        """
        ends = {}
        takers = self._picture.by_removal
        going = self.removed & ~self._moves
        for row in np.flatnonzero(going.any(axis=1)).tolist():
            columns = np.flatnonzero(going[row]).tolist()
            columns.sort(key=lambda column: -self._must_remain(takers[row, column], row))
            last = min(takers[row][takers[row] >= 0].tolist(), key=lambda rule: self._must_remain(rule, row))
            remaining = int((self.present[row] | going[row]).sum())
            for column in columns:
                remaining -= 1
                own = int(takers[row, column])
                ends[row, column] = own if self._must_remain(own, row) <= remaining else last
        return ends

    def _must_remain(self, number: int, row: int) -> int:
        """How many copies of an item a rule keeps where it makes them fewer."""
        rule = self._rules.rules[number]
        return rule.min_copies if rule.action == "forget" else max(int(self._needed[row]), rule.min_copies)

    def explain(self, name: str, version: int | None = None) -> list[Verdict]:
        """For each copy of an item, what each rule does with it and why, in the order of the rules.

        Raises ValueError for an item that the catalogue has not.
        """
        row = self.catalogue.row(name, version)
        verdicts = []
        for column in np.flatnonzero(self.catalogue.present[row]).tolist():
            decided = None
            for number, rule in enumerate(self._rules.rules):
                against = self._against(rule, row, column)
                acted = self._acted(number, rule, row, column)
                if acted:
                    because = f"all conditions hold, {rule.action}{f' to {rule.to}' if rule.to else ''}"
                elif against is not None:
                    because = against
                elif decided is not None:
                    because = f"{decided!r} comes first"
                else:
                    because = self._held_up(rule, row)
                verdicts.append(Verdict(rule.name, self.catalogue.tiers[column], acted, because))
                if acted or (against is None and decided is None):
                    decided = decided or rule.name
        return verdicts

    def _acted(self, number: int, rule: Rule, row: int, column: int) -> bool:
        if rule.action == "pin":
            return self._against(rule, row, column) is None and not self.removed[row, column]
        if rule.action == "copy" and rule.to is not None:
            target = self.catalogue.tiers.index(rule.to)
            return bool(self._picture.by_add[row, target] == number)
        return self._ends.get((row, column), int(self._picture.by_removal[row, column])) == number

    @property
    def _before(self) -> Picture:
        return replace(self._picture, present=self.catalogue.present)

    def _against(self, rule: Rule, row: int, column: int) -> str | None:
        """Why a rule is not about a copy, as things were at first; None where it is."""
        tier = self.catalogue.tiers[column]
        if rule.tier not in (None, tier):
            return f"it is about copies on {rule.tier}"
        if rule.to == tier:
            return f"it is on {tier} already"
        for mask, words in conditions(rule, self._facts):
            if not mask[row]:
                return words(row)
        present = self.catalogue.present[row]
        if rule.action == "copy" and rule.to is not None and present[self.catalogue.tiers.index(rule.to)]:
            return f"there is a copy on {rule.to} already"
        if rule.high_water is not None:
            capacity = self.catalogue.capacity_bytes[tier]
            used = int(self.catalogue.nbytes @ self.catalogue.present[:, column])
            if used <= rule.high_water * capacity:
                return (
                    f"{tier} holds {size_text(used)} of {size_text(capacity)}, not over its high_water of"
                    f" {rule.high_water:.0%}"
                )
        if rule.removes:
            left, least = (column[row] for column in self._before.after(rule, self._needed))
            if left < least:
                return f"{left} {'copy' if left == 1 else 'copies'} would remain, and min_copies is {least}"
        return None

    def _held_up(self, rule: Rule, row: int) -> str:
        """Why a rule that is about a copy did nothing."""
        if rule.name in self._picture.waiting and self._picture.waiting[rule.name][row]:
            limits = [name for name in ("limit_objects", "limit_bytes") if getattr(rule, name) is not None]
            return f"waits for the next time: {' or '.join(limits) or f'room on {rule.to}'} was used up"
        if rule.high_water is not None:
            return f"{rule.tier} came down to its low_water of {rule.low_water:.0%} without it"
        return "other rules had changed what it needs by then"


def apply_rules(rules: Rules, catalogue: Catalogue, now_seconds: float) -> Outcome:
    """Return what the rules want done with a catalogue at `now_seconds`.

    Raises ValueError where the catalogue lacks a fact, tier, tag or capacity that a rule needs.
    """
    picture, known, needed = evaluate(rules, catalogue, now_seconds)
    waiting = {name: int(rows.sum()) for name, rows in picture.waiting.items()}
    return Outcome(catalogue, picture.present, waiting, rules, picture, known, needed)
