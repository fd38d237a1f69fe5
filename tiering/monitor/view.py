"""What the dashboard says, as plain values: bars, series and the table of totals. No bokeh.

Invariant: names come from outside, so they are escaped wherever they become HTML.
"""

from __future__ import annotations

import math
from html import escape
from typing import NamedTuple

from dask.utils import format_bytes

from tiering.monitor.board import MoveState, Observed, TierUse
from tiering.monitor.rates import Point
from tiering.monitor.stats import MovedBytes

SHOWN_MOVES = 12
BLUE, ORANGE, GREEN, RED = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
)  # Okabe and Ito: safe for color-blind eyes
STATE_COLORS = {"running": BLUE, "done": GREEN, "stopped": RED}

HINTS = {
    "tiers": "No tier has said how full it is. Call <code>publish_tiers(client, ...)</code>.",
    "moves": "No move yet. Start one with <code>tiering move</code> or <code>plan.run(client)</code>.",
    "rates": "No bytes moved in the last five minutes. A move or a loader on this cluster shows here.",
    "rows": "No rows in the last five minutes. A loader in a worker, or one watched, shows here.",
    "stalls": "No loader in the last five minutes: nobody waits.",
    "hits": "No cache requests in the last five minutes. A loader with a <code>NodeCache</code> shows here.",
}


class Bar(NamedTuple):
    """One horizontal bar: `percent` is 0 to 100, `text` stands beside it."""

    name: str
    percent: float
    color: str
    text: str


def tier_bars(tiers: dict[str, TierUse]) -> list[Bar]:
    """Return one bar per tier, by name; without a capacity the bar is empty and its text says so."""
    return [_tier_bar(name, tiers[name]) for name in sorted(tiers)]


def move_bars(moves: dict[str, MoveState]) -> list[Bar]:
    """Return bars of the moves that fit on the page: running ones first, then the newest."""
    newest_first = list(moves)[::-1]
    shown = sorted(newest_first, key=lambda name: moves[name]["state"] != "running")[:SHOWN_MOVES]
    return [_move_bar(name, moves[name]) for name in shown]


def rate_series(points: list[Point]) -> dict[str, list[float]]:
    """Return bytes per second of each (tier, direction) that moved anything, by label, NaN where unknown."""
    keys = {key for point in points for key, rate in point.bytes_per_second.items() if rate}
    return {
        f"{tier} {direction}": [point.bytes_per_second.get((tier, direction), math.nan) for point in points]
        for tier, direction in keys
    }


def totals_html(observed: Observed, workers: int) -> str:
    """Return the table of all numbers; names are escaped, for they come from outside."""
    counters = observed["counters"]
    rows = [
        _row("td", name, *_tier_cells(observed["tiers"].get(name), counters["moved"].get(name)))
        for name in sorted(observed["tiers"].keys() | counters["moved"].keys())
    ]
    heads = _row("th", "Tier", "Kind", "Used", "Capacity", "Read", "Written")
    table = f"<table style='border-collapse:collapse'>{heads}{''.join(rows)}</table>" if rows else ""
    cache = counters["cache"]
    requests = cache["hits"] + cache["misses"]
    hits = (
        f"{cache['hits'] / requests:.1%} of {requests:,} cache requests hit; "
        f"{format_bytes(cache['hit_bytes'])} from the cache, {format_bytes(cache['miss_bytes'])} fetched"
        if requests
        else "no cache requests yet"
    )
    reporting = f"{observed['workers']} of {workers} workers report"
    loaded = counters["loaded"]
    share = loaded["stall_nanoseconds"] / loaded["nanoseconds"] if loaded["nanoseconds"] else 0.0
    rows_text = f"{loaded['rows']:,} rows loaded, {share:.1%} of the time waiting for bytes"
    said = [reporting, hits, *([rows_text] if loaded["rows"] else [])]
    return f"{table}<p style='color:#444; margin:6px 0'>{' &middot; '.join(said)}</p>"


def _tier_bar(name: str, use: TierUse) -> Bar:
    capacity_bytes = use["capacity_bytes"]
    if capacity_bytes is None:
        return Bar(name, 0.0, BLUE, f"{format_bytes(use['used_bytes'])}, no limit")
    percent = _percent(use["used_bytes"], capacity_bytes)
    color = RED if percent > 95 else ORANGE if percent > 80 else BLUE
    text = f"{format_bytes(use['used_bytes'])} of {format_bytes(capacity_bytes)}, {int(percent)}%"
    return Bar(name, min(percent, 100.0), color, text)


def _move_bar(name: str, move: MoveState) -> Bar:
    percent = _percent(move["done_bytes"], move["total_bytes"])
    text = f"{format_bytes(move['done_bytes'])} of {format_bytes(move['total_bytes'])}, {int(percent)}%"
    note = "" if move["state"] == "running" else f", {move['state']}"
    return Bar(name, min(percent, 100.0), STATE_COLORS[move["state"]], text + note)


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 100.0


def _tier_cells(use: TierUse | None, moved: MovedBytes | None) -> tuple[str, str, str, str, str]:
    kind = used = capacity = ""
    if use is not None:
        limit_bytes = use["capacity_bytes"]
        kind, used = use["kind"], format_bytes(use["used_bytes"])
        capacity = "no limit" if limit_bytes is None else format_bytes(limit_bytes)
    read, written = (moved["read"], moved["write"]) if moved is not None else (0, 0)
    return kind, used, capacity, format_bytes(read), format_bytes(written)


def _row(tag: str, name: str, kind: str, *numbers: str) -> str:
    style = "padding:3px 0 3px 28px; border-bottom:1px solid #E4E4E4"
    texts = [f"<{tag} style='{style}; text-align:left; padding-left:0'>{escape(name)}</{tag}>"]
    texts.append(f"<{tag} style='{style}; text-align:left'>{escape(kind)}</{tag}>")
    texts.extend(f"<{tag} style='{style}; text-align:right'>{number}</{tag}>" for number in numbers)
    return f"<tr>{''.join(texts)}</tr>"
