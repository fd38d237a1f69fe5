"""What the dashboard says, without a browser."""

from __future__ import annotations

import math

from tiering.monitor.board import Board, MoveState
from tiering.monitor.rates import Point
from tiering.monitor.stats import Counters
from tiering.monitor.view import (
    BLUE,
    ORANGE,
    RED,
    SHOWN_MOVES,
    move_bars,
    rate_series,
    tier_bars,
    totals_html,
)


def test_tier_bars_have_percent_color_and_text() -> None:
    bars = tier_bars(
        {
            "d": {"kind": "file", "used_bytes": 999, "capacity_bytes": 1000},
            "c": {"kind": "file", "used_bytes": 90, "capacity_bytes": 100},
            "b": {"kind": "file", "used_bytes": 30, "capacity_bytes": 100},
            "a": {"kind": "object", "used_bytes": 3, "capacity_bytes": None},
        }
    )
    assert [(bar.name, bar.percent, bar.color) for bar in bars] == [
        ("a", 0.0, BLUE),
        ("b", 30.0, BLUE),
        ("c", 90.0, ORANGE),
        ("d", 99.9, RED),
    ]
    texts = ["3 B, no limit", "30 B of 100 B, 30%", "90 B of 100 B, 90%", "0.98 kiB of 0.98 kiB, 99%"]
    assert [bar.text for bar in bars] == texts


def test_tier_bars_beyond_capacity_end_at_the_edge() -> None:
    (bar,) = tier_bars({"a": {"kind": "file", "used_bytes": 30, "capacity_bytes": 20}})
    assert (bar.percent, bar.text) == (100.0, "30 B of 20 B, 150%")


def test_move_bars_show_running_moves_first_then_the_newest() -> None:
    moves: dict[str, MoveState] = {
        f"m{number}": MoveState(done_bytes=5, total_bytes=5, state="done") for number in range(20)
    }
    moves["m3"] = MoveState(done_bytes=1, total_bytes=4, state="running")
    moves["m5"] = MoveState(done_bytes=0, total_bytes=0, state="stopped")
    bars = move_bars(moves)
    assert len(bars) == SHOWN_MOVES
    assert [bar.name for bar in bars[:3]] == ["m3", "m19", "m18"]
    assert bars[0].text == "1 B of 4 B, 25%"
    assert bars[1].text == "5 B of 5 B, 100%, done"


def test_rate_series_has_gaps_and_skips_what_never_moved() -> None:
    points = [
        Point(1.0, {}, None),
        Point(2.0, {("lake", "read"): 3.0, ("lake", "write"): 0.0}, None),
    ]
    series = rate_series(points)
    assert list(series) == ["lake read"]
    assert math.isnan(series["lake read"][0])
    assert series["lake read"][1] == 3.0


def test_totals_html_says_every_number() -> None:
    board, counters = Board(), Counters()
    counters.add_moved("lake", "read", 3 * 2**30)
    counters.add_moved("gone", "write", 5 * 2**20)
    counters.add_cache(hits=3, misses=1, hit_bytes=7 * 2**20, miss_bytes=11 * 2**20)
    board.report(counters.snapshot())
    board.event({"tiers": {"lake": {"kind": "object", "used_bytes": 13 * 2**40, "capacity_bytes": None}}})
    board.workers = 1
    html = totals_html(board.observed(), workers=2)
    for text in ("lake", "object", "13.00 TiB", "no limit", "3.00 GiB", "gone", "5.00 MiB", "1 of 2 workers"):
        assert text in html
    assert "75.0% of 4 cache requests hit; 7.00 MiB from the cache, 11.00 MiB fetched" in html


def test_totals_html_without_data_says_so() -> None:
    html = totals_html(Board().observed(), workers=0)
    assert "no cache requests yet" in html
    assert "<table" not in html


def test_totals_html_escapes_names() -> None:
    board = Board()
    name = "<script>alert(1)</script>"
    board.event({"tiers": {name: {"kind": "<b>", "used_bytes": 1, "capacity_bytes": 2}}})
    html = totals_html(board.observed(), workers=0)
    assert "<script>" not in html
    assert "<b>" not in html
    assert "&lt;script&gt;" in html
