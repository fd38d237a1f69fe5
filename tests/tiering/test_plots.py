"""What is drawn of a simulation, and what cannot be."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from policies.curves import curve, sampled_curve
from policies.simulation import CacheModel, TierModel
from policies.trace import Trace
from tiering.errors import UsageError
from tiering.plots import check_plot, draw
from tiering.sweep import sweep

IDS = np.random.default_rng(5).integers(0, 2000, 5000)
TRACE = Trace(np.arange(5000.0), IDS, np.full(5000, 10**6))
TIER = TierModel(0.01, 1e8)
CACHES = [CacheModel(size * 10**6, policy, 0) for policy in ("lru", "fifo") for size in (100, 400, 1000)]
CURVES = [
    curve("lru", IDS, 10**6, [10**8, 10**9]),
    sampled_curve("fifo", IDS, 10**6, [10**8, 10**9], rate=0.2),
]


def test_draw_makes_an_svg_that_names_what_it_shows(tmp_path: Path) -> None:
    outcomes = sweep(TRACE, TIER, CACHES)
    draw(tmp_path / "a.svg", CURVES, outcomes, "a trace")
    root = ET.parse(tmp_path / "a.svg").getroot()
    told = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {"a trace", "lru", "fifo", "cache, GB", "stall, seconds", "no other is better in both"} <= told
    draw(tmp_path / "b.svg", CURVES, outcomes, "a trace")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_draw_makes_a_png_without_a_display(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    draw(tmp_path / "a.PNG", CURVES, sweep(TRACE, TIER, CACHES), "a trace")
    image = imread(tmp_path / "a.PNG", format="png")
    assert image.shape == (450, 1100, 4)
    assert len(np.unique(image.reshape(-1, 4), axis=0)) > 10
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.pdf", "ends in neither .svg nor .png"), ("none/a.svg", "in a folder that is not there")],
)
def test_check_plot_refuses_where_nothing_can_be_drawn(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_plot(tmp_path / name)


def test_check_plot_says_how_to_get_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"plots need matplotlib. pip install 'corpus-tiering\[plot\]'"):
        check_plot(tmp_path / "a.svg")


def test_draw_into_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.svg").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        draw(tmp_path / "a.svg", CURVES, sweep(TRACE, TIER, CACHES[:1]), "a trace")
