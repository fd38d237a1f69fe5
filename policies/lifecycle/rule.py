"""One rule: which copies it is about, and what shall become of them.

Invariant: a rule that exists is right by itself: its action has all it needs and nothing it does not know,
and some copy could match it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Final, Literal, get_args

from policies.checks import whole
from policies.lifecycle.units import duration_seconds, size_bytes

__all__ = ["ACTIONS", "Action", "Order", "Rule", "read_rule"]

Action = Literal["move", "copy", "release", "forget", "pin"]
Order = Literal["listed", "oldest", "newest", "idlest", "largest", "smallest", "least-read"]
ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
ORDERS: Final[tuple[Order, ...]] = get_args(Order)
_REMOVES: Final = ("move", "release", "forget")


@dataclass(frozen=True, slots=True)
class Rule:
    """Copies on `tier` (None: on any) that match all that is given; what is None does not matter.

    idle_for (at least), used_within (less than): seconds since the last access. older_than, younger_than:
    since it was made. min_size, max_size: bytes, both included; so are min_accesses and max_accesses. tags:
    all of them. keep_newest: not the newest so many versions of a corpus. keep_tags: none of them.
    high_water, low_water: shares of the tier's capacity; above the first, copies go until the second is
    reached. min_copies: how many must remain. limit_bytes, limit_objects: the most in one evaluation.
    order_by: who goes first where not all may.
    """

    name: str
    action: Action
    to: str | None = None
    tier: str | None = None
    idle_for: float | None = None
    used_within: float | None = None
    older_than: float | None = None
    younger_than: float | None = None
    min_size: int | None = None
    max_size: int | None = None
    min_accesses: int | None = None
    max_accesses: int | None = None
    tags: tuple[str, ...] = ()
    keep_newest: int | None = None
    keep_tags: tuple[str, ...] = ()
    high_water: float | None = None
    low_water: float | None = None
    min_copies: int = 1
    limit_bytes: int | None = None
    limit_objects: int | None = None
    order_by: Order = "listed"

    @property
    def removes(self) -> bool:
        """Whether a copy goes."""
        return self.action in _REMOVES

    def __post_init__(self) -> None:
        where = f"rule {self.name!r}: "
        if self.action not in ACTIONS:
            raise ValueError(
                f"{where}action = {self.action!r} is not known; e.g. {_known(self.action, ACTIONS)}"
            )
        if self.order_by not in ORDERS:
            raise ValueError(
                f"{where}order_by = {self.order_by!r} is not known; e.g. {_known(self.order_by, ORDERS)}"
            )
        self._check_target(where)
        self._check_ranges(where)
        self._check_water(where)
        self._check_keeping(where)

    def _check_target(self, where: str) -> None:
        if (self.to is None) == (self.action in ("move", "copy")):
            need = "needs a tier to go to" if self.to is None else f"goes nowhere, but to = {self.to!r}"
            raise ValueError(f"{where}action = {self.action!r} {need}; e.g. action = 'move', to = 'lake'")
        if self.to is not None and self.to == self.tier:
            raise ValueError(f"{where}tier and to are both {self.to!r}; e.g. tier = 'disk', to = 'lake'")

    def _check_ranges(self, where: str) -> None:
        for low, high, strict in (
            ("idle_for", "used_within", True),
            ("older_than", "younger_than", True),
            ("min_size", "max_size", False),
            ("min_accesses", "max_accesses", False),
        ):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and (least > most or (strict and least == most)):
                raise ValueError(f"{where}{low} and {high} leave nothing between; e.g. leave one of them out")
        both = sorted(set(self.tags) & set(self.keep_tags))
        if both:
            raise ValueError(f"{where}{both[0]!r} is in tags and in keep_tags; e.g. leave it out of one")

    def _check_water(self, where: str) -> None:
        if self.high_water is None and self.low_water is None:
            return
        right = "e.g. tier = 'disk', high_water = 0.9, low_water = 0.8"
        if self.high_water is None or self.low_water is None:
            raise ValueError(f"{where}high_water and low_water go together; {right}")
        for name in ("high_water", "low_water"):
            share = getattr(self, name)
            if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
                raise ValueError(f"{where}{name} = {share!r} is not a share of 1; {right}")
        if self.low_water >= self.high_water:
            raise ValueError(
                f"{where}low_water = {self.low_water} is not below high_water = {self.high_water}; {right}"
            )
        if self.tier is None or self.action not in ("move", "release"):
            raise ValueError(f"{where}water marks are for moves and releases from one tier; {right}")

    def _check_keeping(self, where: str) -> None:
        whole(f"{where}min_copies", self.min_copies, least=0 if self.action == "forget" else 1, example=1)
        for name in ("keep_newest", "limit_bytes", "limit_objects"):
            if getattr(self, name) is not None:
                whole(f"{where}{name}", getattr(self, name), least=1, example=2)
        if self.action == "forget" and self.keep_newest is None:
            raise ValueError(f"{where}forget needs keep_newest, or all would go; e.g. keep_newest = 2")
        idle = [
            name
            for name in ("limit_bytes", "limit_objects", "keep_newest")
            if self.action == "pin" and getattr(self, name) is not None
        ]
        if idle:
            raise ValueError(f"{where}{idle[0]} does nothing for a pin; e.g. leave it out")


def read_rule(where: str, table: Mapping[str, Any], min_copies: int) -> Rule:
    """The rule of a plain table, as `tomllib` gives it; `min_copies` where the table names none.

    Raises ValueError naming the key, the value seen and a right example.
    """
    if not isinstance(table, Mapping):
        raise ValueError(  # noqa: TRY004  # one class for all mistakes in rules
            f"{where} = {table!r} is not a table; e.g. {{action = 'move', to = 'lake'}}"
        )
    known = [field.name for field in fields(Rule)]
    for key in table:
        if key not in known:
            raise ValueError(f"{where}.{key} is not a known key; e.g. {_known(key, known)}")
    for key, example in (("name", "cold"), ("action", "move")):
        if key not in table:
            raise ValueError(f"{where}.{key} is missing; e.g. {key} = {example!r}")
    values = {key: _READERS[key](f"{where}.{key}", value) for key, value in table.items()}
    return Rule(**{"min_copies": min_copies} | values)


def _known(seen: object, names: Sequence[str]) -> str:
    close = get_close_matches(str(seen), names, 1)
    return repr(close[0]) if close else ", ".join(map(repr, names))


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} = {value!r} is not a text; e.g. 'disk'")
    return value


def _texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) and one for one in value):
        raise ValueError(f"{name} = {value!r} is not a list of texts; e.g. ['golden']")
    return tuple(value)


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError(  # noqa: TRY004
            f"{name} must be a whole number, not {value!r}; e.g. {name}=2"
        )
    return whole(name, value, least=0, example=2)


def _share(_name: str, value: Any) -> Any:
    return value  # Rule checks it, against the other mark


_READERS: Final = {
    **dict.fromkeys(("name", "action", "to", "tier", "order_by"), _text),
    **dict.fromkeys(("idle_for", "used_within", "older_than", "younger_than"), duration_seconds),
    **dict.fromkeys(("min_size", "max_size", "limit_bytes"), size_bytes),
    **dict.fromkeys(("min_accesses", "max_accesses", "keep_newest", "min_copies", "limit_objects"), _count),
    **dict.fromkeys(("tags", "keep_tags"), _texts),
    **dict.fromkeys(("high_water", "low_water"), _share),
}
