"""Names of the small objects that probes of a tier write: they tell whose they are.

Invariant: a probe's object goes only when its process has ended, or when it is old and of nobody that can be
known here (another machine, an earlier boot). Nothing else lies below `PROBES`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Final

from tiering import process
from tiering.keys import INTERNAL
from tiering.process import ProcessId
from tiering.stores.base import ObjectInfo, Store

PROBES: Final = f"{INTERNAL}/probe"
"""The folder of a tier where probes write their temporary objects."""
_LONGEST_SECONDS: Final = 3600.0
"""No probe takes so long."""


def probe_key() -> str:
    """A new name for an object of this process.

    Raises:
        Unavailable: ``/proc`` cannot be read.
    """
    return f"{PROBES}/{process.current().text().replace('/', '.')}.{secrets.token_hex(8)}"


def abandoned(store: Store, now_seconds: float) -> Iterator[ObjectInfo]:
    """What killed probes left on a store; `now_seconds`, since 1970, tells the age of others' objects."""
    for info in store.list(PROBES):
        owner, written = _owner(info.key), info.modified_seconds
        is_old = written is not None and now_seconds - written >= _LONGEST_SECONDS
        if (owner and owner.is_dead()) or (is_old and not (owner and owner.is_alive())):
            yield info


def _owner(key: str) -> ProcessId | None:
    try:
        return ProcessId.parse(key.rpartition("/")[2].rpartition(".")[0].replace(".", "/"))
    except ValueError:
        return None
