"""The state of a mixture of corpora: where it stands, in which orders, by which weights, as a few numbers.

Invariant: as of `loaders.state`: it says which rows come next without saying who reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Final

from tiering.errors import FormatError, UnsupportedVersion

MIXTURE_VERSION: Final = 1
_HINT: Final = "Give what state_dict() of a Mixture returned"


@dataclass(frozen=True, slots=True)
class MixtureState:
    """Json-able; under 400 bytes for a few corpora and changes of their weights."""

    position: int
    """Rows of each lane that were handed out."""
    seed: int
    lanes: int
    mode: str
    group: int
    """Shards whose blocks are shuffled together."""
    window: int
    """Blocks whose rows are shuffled together."""
    affinity: str
    corpora: dict[str, str]
    """First 16 digits of the digest of each corpus's manifest."""
    weights: list[tuple[int, list[int]]]
    """From which position on which weights of the corpora apply."""

    def to_dict(self) -> dict[str, Any]:
        """What `Mixture.state_dict` gives."""
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"v": MIXTURE_VERSION, **state, "weights": [[start, each] for start, each in self.weights]}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> MixtureState:
        """Read back what `to_dict` gave.

        Raises:
            UnsupportedVersion: a newer mixture wrote it. FormatError: it is not a state.
        """
        if not isinstance(state, Mapping):
            raise FormatError(f"not a mixture's state: {state!r:.200}", hint=_HINT)
        values = {name: value for name, value in state.items() if name != "v"}
        version = state.get("v")
        if type(version) is int and version > MIXTURE_VERSION and "corpora" in state:
            raise UnsupportedVersion(
                f"a mixture's state of version {version}, this one reads up to {MIXTURE_VERSION}",
                hint="Upgrade corpus-tiering",
            )
        if type(version) is not int or version < 1 or values.keys() != {each.name for each in fields(cls)}:
            raise FormatError(f"not a mixture's state: {dict(state)!r:.200}", hint=_HINT)
        corpora, weights = values["corpora"], values["weights"]
        right = {
            **{name: _is_number(values[name]) for name in ("position", "seed", "lanes", "group", "window")},
            **{name: isinstance(values[name], str) for name in ("mode", "affinity")},
            "corpora": isinstance(corpora, Mapping) and all(map(_are_texts, corpora.items())),
        }
        right["weights"] = right["corpora"] and _are_phases(weights, len(corpora))
        for name in values:
            if not right[name]:
                raise FormatError(f"a mixture's state with {name} = {values[name]!r:.80}", hint=_HINT)
        phases = [(start, list(each)) for start, each in weights]
        return cls(**{**values, "corpora": dict(corpora), "weights": phases})


def _is_number(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_texts(pair: tuple[Any, Any]) -> bool:
    return all(isinstance(part, str) for part in pair)


def _are_phases(value: Any, corpora: int) -> bool:
    """Whether these are weights of so many corpora, from position 0 on, in the order of their positions."""
    if not isinstance(value, list | tuple) or not value:
        return False
    if not all(isinstance(phase, list | tuple) and len(phase) == 2 for phase in value):
        return False
    starts = [start for start, _ in value]
    return (
        all(map(_is_number, starts))
        and starts[0] == 0
        and all(a < b for a, b in pairwise(starts))
        and all(
            isinstance(each, list | tuple) and len(each) == corpora and all(map(_is_number, each))
            for _, each in value
        )
    )
