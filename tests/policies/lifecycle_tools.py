"""Catalogues, rules and what came of them, in short."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from policies.lifecycle import Catalogue, Outcome, Rules, load_rules

TIERS = ("archive", "disk", "lake")
DAY = 86_400
NOW = 1000.0 * DAY
MIB = 1 << 20


def catalogue(*rows: Mapping[str, Any], capacity: Mapping[str, int] | None = None) -> Catalogue:
    """Rows like ``{"on": "disk lake", "idle": 5, "age": 9, "mib": 3, "version": 2, "tags": "golden"}``."""

    def column(key: str, default: int) -> Any:
        return np.array([row.get(key, default) for row in rows])

    return Catalogue(
        [row.get("name", f"c{n}") for n, row in enumerate(rows)],
        TIERS,
        np.array([[tier in row.get("on", "disk").split() for tier in TIERS] for row in rows], bool),
        column("mib", 1).astype(np.int64) * MIB,
        NOW - column("age", 9) * float(DAY),
        NOW - column("idle", 9) * float(DAY),
        column("reads", 0).astype(np.int64),
        column("version", 1).astype(np.int64),
        {"golden": np.array(["golden" in row.get("tags", "") for row in rows], bool)},
        capacity or {},
    )


def rules(*tables: Mapping[str, Any], min_copies: int = 1) -> Rules:
    named = [{"name": f"r{n}", **table} for n, table in enumerate(tables)]
    return load_rules(named, TIERS, min_copies=min_copies)


def told(outcome: Outcome) -> list[str]:
    names = outcome.catalogue.names
    return [
        f"{s.kind} {names[s.row]} {s.source}{f' {s.target}' if s.target else ''}" for s in outcome.steps()
    ]


COOL = {"action": "move", "tier": "disk", "to": "lake"}
