"""A bar chart as SVG: one horizontal bar a name, with its number beside it.

Invariant: a bar's length is in proportion to its number, from zero; equal numbers give equal bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

COLORS: Final = {"own": "#2f6fab", "bound": "#8a8f98", "peer": "#c9824a"}
_WIDTH, _BAR, _ROW, _LEFT, _TOP, _FONT = 920, 480, 22, 350, 54, 12


def bars(title: str, subtitle: str, values: Sequence[tuple[str, float, str]]) -> str:
    """The chart of (name, number, kind), from the first one down; kinds are the keys of `COLORS`."""
    most = max(number for _, number, _ in values)
    height = _TOP + _ROW * len(values) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="sans-serif" font-size="{_FONT}" role="img" aria-label="{escape(title, quote=True)}">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="10" y="20" font-size="15" font-weight="bold">{escape(title)}</text>',
        f'<text x="10" y="38" fill="#555555">{escape(subtitle)}</text>',
    ]
    for place, (name, number, kind) in enumerate(values):
        top, length = _TOP + place * _ROW, round(number / most * _BAR, 1)
        middle = top + _ROW / 2 + 2
        lines += [
            f'<text x="{_LEFT - 8}" y="{middle}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LEFT}" y="{top}" width="{length}" height="{_ROW - 6}" fill="{COLORS[kind]}"/>',
            f'<text x="{_LEFT + length + 6}" y="{middle}">{number:,.0f}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"
