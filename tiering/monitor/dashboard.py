"""The page "tiering" of the Dask dashboard: tiers, moves, bytes and rows per second, cache hits, stalls.

Invariant: the only module that imports bokeh. A document only reads the scheduler's board; every number on
it is also there as text, and every plot without data says how to fill it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.layouts import column, row
from bokeh.models import (
    AdaptiveTicker,
    ColumnDataSource,
    CustomJSTickFormatter,
    DataRange1d,
    FactorRange,
    HoverTool,
    NumeralTickFormatter,
    Range1d,
)
from bokeh.models.annotations import Legend, LegendItem
from bokeh.models.widgets import Div
from bokeh.palettes import Colorblind8
from bokeh.plotting import figure
from distributed.dashboard.components import add_periodic_callback
from distributed.dashboard.components.scheduler import BOKEH_THEME, env
from distributed.dashboard.core import BokehApplication
from distributed.dashboard.scheduler import template_variables
from tornado.ioloop import IOLoop

from tiering.monitor.board import Board
from tiering.monitor.plugin import find
from tiering.monitor.rates import Point
from tiering.monitor.view import HINTS, Bar, move_bars, rate_series, tier_bars, totals_html

if TYPE_CHECKING:
    from bokeh.document import Document
    from bokeh.server.tornado import BokehTornado
    from distributed import Scheduler

PAGE = "/tiering"
INDIVIDUAL = "/individual-tiering"
UPDATE_MILLISECONDS = 1000
SPAN_MINUTES = 5
BAR_PIXELS = 42
GREY = "#E4E4E4"


class Page:
    """One browser tab's plots; `update` reads the board anew."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._totals = Div(sizing_mode="stretch_width", name="tiering-totals")
        self._tiers = Bars("Tiers", "tiers")
        self._moves = Bars("Moves", "moves")
        self._rates = Lines("Bytes per second", "rates", DataRange1d(start=0), legend=True)
        self._rates.plot.yaxis.formatter = NumeralTickFormatter(format="0.[0] ib")
        self._rates.plot.yaxis.ticker = AdaptiveTicker(
            base=1024, mantissas=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512], desired_num_ticks=4
        )
        self._hits = Lines("Cache hits", "hits", Range1d(start=-0.02, end=1.02), legend=False)
        self._rows = Lines("Rows per second", "rows", DataRange1d(start=0), legend=False)
        self._rows.plot.yaxis.formatter = NumeralTickFormatter(format="0.[0]a")
        self._stalls = Lines(
            "Time that loaders wait for bytes", "stalls", Range1d(start=-0.02, end=1.02), legend=False
        )
        for lines in (self._hits, self._stalls):
            lines.plot.yaxis.formatter = NumeralTickFormatter(format="0%")
        # Side by side where there is room, else one below the other.
        halves = [
            column([each.root for each in half], sizing_mode="stretch_width", min_width=420, max_width=1100)
            for half in ((self._tiers, self._rates, self._rows), (self._moves, self._hits, self._stalls))
        ]
        plots = row(*halves, sizing_mode="stretch_width", styles={"flex-wrap": "wrap"})
        self.root = column(self._totals, plots, sizing_mode="stretch_width")

    def update(self) -> None:
        """Show what the scheduler knows now."""
        plugin = find(self._scheduler)
        observed = Board().observed() if plugin is None else plugin.observed()
        points = [] if plugin is None else list(plugin.board.history.points)
        self._totals.text = totals_html(observed, len(self._scheduler.workers))
        self._tiers.show(tier_bars(observed["tiers"]))
        self._moves.show(move_bars(observed["moves"]))
        self._rates.show(points, rate_series(points))
        self._hits.show(points, _series("hits", [point.hit_ratio for point in points]))
        self._rows.show(points, _series("rows", [point.rows_per_second for point in points]))
        self._stalls.show(points, _series("waiting", [point.stall_share for point in points]))


class Bars:
    """Horizontal bars in percent, each with its name and text above it, or a hint."""

    def __init__(self, title: str, name: str) -> None:
        self._source = ColumnDataSource({"name": [], "percent": [], "color": [], "caption": []})
        self._names = FactorRange()
        self.plot = figure(
            title=title,
            x_range=Range1d(start=0, end=100),
            y_range=self._names,
            tools="",
            toolbar_location=None,
            sizing_mode="stretch_width",
            height=BAR_PIXELS,
            name=f"tiering-{name}",
        )
        self.plot.hbar("name", right=100, height=0.28, fill_color=GREY, line_color=None, source=self._source)
        self.plot.hbar(
            "name", right="percent", height=0.28, fill_color="color", line_color=None, source=self._source
        )
        self.plot.text(
            0, "name", "caption", y_offset=-8, text_font_size="12px", text_color="#333", source=self._source
        )
        self.plot.axis.visible = False
        self.plot.grid.visible = False
        self.plot.outline_line_color = None
        self._hint, self.root = _with_hint(self.plot, title, name)

    def show(self, bars: list[Bar]) -> None:
        """Draw the bars, the first on top."""
        names = [bar.name for bar in bars]
        data = {
            "name": names,
            "percent": [bar.percent for bar in bars],
            "color": [bar.color for bar in bars],
            "caption": [f"{bar.name}: {bar.text}" for bar in bars],
        }
        if data != self._source.data:
            self._names.factors = names[::-1]
            self.plot.height = BAR_PIXELS * (1 + len(bars))
            self._source.data = data
        self.plot.visible, self._hint.visible = bool(bars), not bars


class Lines:
    """Lines over the last minutes, or a hint."""

    def __init__(self, title: str, name: str, y_range: Range1d | DataRange1d, *, legend: bool) -> None:
        self._source = ColumnDataSource({"x": [], "y": [], "label": [], "color": [], "dash": []})
        self.plot = figure(
            title=title,
            x_range=Range1d(start=-SPAN_MINUTES, end=0),
            y_range=y_range,
            tools="",
            toolbar_location=None,
            sizing_mode="stretch_width",
            height=240,
            min_border_left=70,
            min_border_right=24,
            name=f"tiering-{name}",
        )
        lines: Any = self.plot.multi_line(
            "x", "y", line_color="color", line_dash="dash", line_width=2, source=self._source
        )
        labels = Legend(
            items=[LegendItem(label={"field": "label"}, renderers=[lines])],
            orientation="horizontal",
            ncols=4,
            border_line_color=None,
            background_fill_alpha=0,
            location="top_left",
            spacing=16,
            visible=legend,
        )
        self.plot.add_layout(labels, "below")
        self.plot.add_tools(HoverTool(tooltips="@label", renderers=[lines]))
        self.plot.xaxis.formatter = CustomJSTickFormatter(code="return tick == 0 ? 'now' : tick + ' min'")
        self.plot.xaxis.ticker = list(range(-SPAN_MINUTES, 1))
        self.plot.yaxis.minor_tick_line_color = None
        self.plot.outline_line_color = None
        self._hint, self.root = _with_hint(self.plot, title, name)

    def show(self, points: list[Point], series: dict[str, list[float]]) -> None:
        """Draw one line per label, writes dashed and on top; NaN is a gap."""
        x = np.array([(point.seconds - points[-1].seconds) / 60 for point in points])
        labels = sorted(series, key=lambda label: (label.endswith(" write"), label))
        names = sorted({label.rpartition(" ")[0] for label in labels})
        self._source.data = {
            "x": [x] * len(labels),
            "y": [np.array(series[label]) for label in labels],
            "label": labels,
            "color": [Colorblind8[names.index(label.rpartition(" ")[0]) % 8] for label in labels],
            "dash": ["dashed" if label.endswith(" write") else "solid" for label in labels],
        }
        self.plot.visible, self._hint.visible = bool(series), not series


def _series(label: str, values: list[float | None]) -> dict[str, list[float]]:
    """One line, with gaps; none where nothing is known."""
    known = any(value is not None for value in values)
    return {label: [np.nan if value is None else value for value in values]} if known else {}


def _with_hint(plot: Any, title: str, name: str) -> tuple[Div, Any]:
    hint = Div(
        text=f"<b>{title}</b><p style='color:#666; margin:6px 0 24px'>{HINTS[name]}</p>",
        sizing_mode="stretch_width",
        margin=(5, 5, 5, 14),
    )
    return hint, column(plot, hint, sizing_mode="stretch_width")


def individual_document(scheduler: Scheduler, extra: dict[str, Any], doc: Document) -> None:  # noqa: ARG001
    """Fill a document with the page alone, as JupyterLab embeds it."""
    page = Page(scheduler)
    page.update()
    add_periodic_callback(doc, page, UPDATE_MILLISECONDS)
    doc.add_root(page.root)
    doc.title = "Dask: Tiering"
    doc.theme = BOKEH_THEME


def document(scheduler: Scheduler, extra: dict[str, Any], doc: Document) -> None:
    """Fill a document with the page and the dashboard's navigation."""
    individual_document(scheduler, extra, doc)
    doc.template = env.get_template("simple.html")
    doc.template_variables.update(extra)


def mount(scheduler: Scheduler, main: BokehTornado) -> None:
    """Serve the page beside the running dashboard `main` and add its tab; once for each scheduler."""
    served = {
        path for app in scheduler.http_application.applications for path in getattr(app, "app_paths", ())
    }
    documents = {PAGE: document, INDIVIDUAL: individual_document}
    missing = {path: fill for path, fill in documents.items() if path not in served}
    if not missing:
        return
    variables = template_variables(scheduler)
    variables["pages"].insert(-1, PAGE.strip("/"))
    if INDIVIDUAL in missing:
        variables["plots"].append({"url": INDIVIDUAL.strip("/"), "name": "Tiering"})
    beside = BokehApplication(missing, scheduler, prefix=main.prefix, template_variables=variables)
    scheduler.http_application.add_application(beside)
    beside.initialize(IOLoop.current())
    beside.start()
