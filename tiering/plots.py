"""Draws what a simulation found: miss-ratio curves, and stall against egress.

Invariant: matplotlib is imported here alone, when something is drawn, without pyplot and without a display.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Final

from policies.curves import Curve
from policies.simulation import Outcome, front
from tiering.errors import UsageError
from tiering.tier import GB

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS: Final = (".svg", ".png")
_SIZE_INCHES: Final = (11.0, 4.5)
_MARKERS: Final = "osD^vPX*<>"


def check_plot(path: str | os.PathLike[str]) -> Path:
    """The path, if something can be drawn there: asked before long work, not after it.

    Raises:
        UsageError: its ending is none of `FORMATS`, its folder is not there, or matplotlib is missing.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"plot {str(path)!r} ends in neither {' nor '.join(FORMATS)}", hint="Example: misses.svg"
        )
    if not path.absolute().parent.is_dir():
        raise UsageError(f"plot {str(path)!r} is to lie in a folder that is not there", hint="Make it first")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("plots need matplotlib", hint="pip install 'corpus-tiering[plot]'")
    return path


def draw(
    path: str | os.PathLike[str], curves: Sequence[Curve], outcomes: Sequence[Outcome], title: str
) -> None:
    """Draw miss-ratio curves on the left, stall against egress on the right; SVG or PNG by the ending.

    Raises:
        UsageError: as `check_plot`, or the file cannot be written.
    """
    path = check_plot(path)
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    _draw_curves(left, curves)
    _draw_stalls(right, outcomes)
    # No date, no random names: the same figures make the same file.
    dated = {"Date": None} if path.suffix.lower() == ".svg" else None
    try:
        with mpl.rc_context({"svg.hashsalt": "tiering", "svg.fonttype": "none"}):
            figure.savefig(path, metadata=dated)
    except OSError as error:
        raise UsageError(
            f"plot {str(path)!r} cannot be written: {error.strerror}", hint="Look there"
        ) from error


def _draw_curves(axes: Axes, curves: Sequence[Curve]) -> None:
    for curve, marker in zip(curves, cycle(_MARKERS), strict=False):
        axes.errorbar(
            [point.capacity_bytes / GB for point in curve.points],
            [point.byte_miss_ratio for point in curve.points],
            yerr=[point.byte_error for point in curve.points] if curve.method == "sample" else None,
            label=curve.policy,
            marker=marker,
            markersize=4,
            capsize=2,
        )
    axes.set(
        xlabel="cache, GB", ylabel="bytes missed of bytes asked for", ylim=(0, 1.02), title="Miss ratios"
    )
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_stalls(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    policies = dict.fromkeys(outcome.cache.policy for outcome in outcomes)
    for policy, marker in zip(policies, cycle(_MARKERS), strict=False):
        chosen = [outcome for outcome in outcomes if outcome.cache.policy == policy]
        axes.plot(
            [outcome.fetched_bytes / GB for outcome in chosen],
            [outcome.stall_seconds for outcome in chosen],
            label=policy,
            marker=marker,
            linestyle="none",
        )
    best = front(outcomes)
    axes.plot(
        [outcome.fetched_bytes / GB for outcome in best],
        [outcome.stall_seconds for outcome in best],
        color="black",
        linewidth=1,
        label="no other is better in both",
        zorder=0,
    )
    axes.set(xlabel="fetched, GB", ylabel="stall, seconds", title="Stall against egress")
    axes.grid(alpha=0.3)
    axes.legend()
