"""The state of a loader: where it stands in which order, as a few numbers.

Invariant: a state says which rows come next without saying who reads them: it loads with any number of ranks
that divides the lanes, any cache and any tier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from tiering.errors import FormatError, UnsupportedVersion

STATE_VERSION: Final = 3
_SINCE: Final = {"affinity": 2, "rows": 3}


@dataclass(frozen=True, slots=True)
class LoaderState:
    """Json-able; under 200 bytes."""

    epoch: int
    position: int
    """Rows of each lane that were handed out in this epoch."""
    seed: int
    lanes: int
    mode: str
    group: int
    """Shards whose blocks are shuffled together."""
    window: int
    """Blocks whose rows are shuffled together."""
    corpus: str
    """First 16 digits of the manifest's digest."""
    affinity: str = "global"
    """Whether lanes keep their rows. States of version 1 do not say: theirs did not."""
    rows: str = ""
    """First 16 digits of the digest of the rows that take part; empty where all do, as in all states before
    version 3."""

    def to_dict(self) -> dict[str, Any]:
        """What `Loader.state_dict` gives."""
        values = asdict(self)
        if self.rows:
            return {"v": STATE_VERSION, **values}
        del values["rows"]
        return {"v": _SINCE["rows"] - 1, **values}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> LoaderState:
        """Read back what `to_dict` gave.

        Raises:
            UnsupportedVersion: a newer loader wrote it. FormatError: it is not a state.
        """
        if not isinstance(state, Mapping):
            raise FormatError(f"not a loader state: {state!r:.200}", hint="Give what state_dict() returned")
        version = state.get("v")
        if isinstance(version, int) and version > STATE_VERSION:
            raise UnsupportedVersion(
                f"a loader state of version {version}, this loader reads up to {STATE_VERSION}",
                hint="Upgrade corpus-tiering",
            )
        values = {name: value for name, value in state.items() if name != "v"}
        if type(version) is not int or version < 1:
            version = 0
        kinds = {
            field.name: str if field.type == "str" else int
            for field in fields(cls)
            if _SINCE.get(field.name, 1) <= version
        }
        if not version or values.keys() != kinds.keys():
            raise FormatError(
                f"not a loader state: {dict(state)!r:.200}", hint="Give what state_dict() returned"
            )
        for name, kind in kinds.items():
            value = values[name]
            if not isinstance(value, kind) or isinstance(value, bool) or str(value).startswith("-"):
                raise FormatError(f"a loader state with {name} = {value!r:.80}")
        return cls(**values)
