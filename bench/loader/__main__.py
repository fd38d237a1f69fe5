"""``python -m bench.loader [CASE...] [--out FILE] [--trial]``: measure; ``--show FILE``: tables and chart.

Cases: warm codec cold start objects images; all by default. What FILE has of other cases is kept. Peers run
where environment variables name their Pythons (``scripts/peer-environments``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench.__main__ import machine
from bench.loader import CASES, measure
from bench.loader.report import SVG, embed, markdown, svg
from bench.loader.scale import TRIAL, Scale


def main() -> None:
    """Parse the command line; measure or show."""
    parser = argparse.ArgumentParser(prog="python -m bench.loader", description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE")
    parser.add_argument(
        "--out", type=Path, help="add the JSON to this file, such as bench/results/loader.json"
    )
    parser.add_argument("--trial", action="store_true", help="small and once: whether it runs, no figures")
    parser.add_argument("--show", type=Path, help="measure nothing: print the tables of this file")
    parser.add_argument("--svg", type=Path, help=f"also draw the chart, such as docs/{SVG}")
    parser.add_argument("--docs", type=Path, help="also put the tables into this page, docs/performance.md")
    options = parser.parse_args()
    scale = TRIAL if options.trial else Scale()
    if options.show:
        document = json.loads(options.show.read_text())
    else:
        document = {"bench": "loader", "machine": machine(), "cases": {}}
        if options.out and options.out.exists():
            document["cases"] = json.loads(options.out.read_text()).get("cases", {})
        for name in options.cases or CASES:  # one at a time: what was measured is kept
            document["cases"] |= {name: measure(name, scale)}
            if options.out:
                options.out.write_text(json.dumps(document, indent=2) + "\n")
    if options.svg:
        options.svg.write_text(svg(document))
    if options.docs:
        embed(document, options.docs)
    print(markdown(document))


if __name__ == "__main__":
    main()
