from __future__ import annotations

import pytest
from distributed import Client

from tests.tiering.corpora import small
from tiering import Tier, plan_move
from tiering.monitor.stats import COUNTERS
from tiering.progress import track


def test_track_counts_what_was_done_without_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with track("a move", 13, None, show=False) as bar:
        bar.advance(5)
        bar.advance(3)
    assert COUNTERS.snapshot()["moves"]["a move"] == {"done_bytes": 8, "total_bytes": 13}
    assert capsys.readouterr() == ("", "")


def test_track_shows_a_bar_on_standard_error_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with track("a move", 13, None, show=True) as bar:
        bar.advance(13)
    out, err = capsys.readouterr()
    assert out == ""
    assert "a move" in err


def test_track_without_a_terminal_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with track("a move", 13, None, show=None) as bar:
        bar.advance(13)
    assert capsys.readouterr() == ("", "")


def test_track_of_a_cluster_that_is_gone_goes_on(cluster: Client) -> None:
    with Client(cluster.scheduler.address, set_as_default=False) as client:
        pass
    with track("a move to nowhere", 13, client, show=False) as bar:
        bar.advance(13)


def test_track_tells_a_cluster(lake: Tier, disk: Tier, cluster: Client) -> None:
    plan_move(small(lake), disk).run(cluster)
    (event,) = [
        message for _, message in cluster.get_events("tiering") if message.get("move") == "web: lake to disk"
    ][-1:]
    assert event["done_bytes"] == event["total_bytes"] > 0
