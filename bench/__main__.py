"""``python -m bench NAME [--out FILE]``: run one benchmark and print its JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
from pathlib import Path

NAMES = sorted([*(path.stem for path in Path(__file__).parent.glob("[a-z]*.py")), "loader"])


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--out", type=Path, help="also write the JSON here, such as bench/results/NAME.json")
    options = parser.parse_args()
    figures = importlib.import_module(f"bench.{options.name}").run()
    document = {"bench": options.name, "machine": machine(), **figures}
    text = json.dumps(document, indent=2)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "cpu": next((line.split(": ")[1] for line in lines if "model name" in line), platform.processor()),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.release(),
    }


if __name__ == "__main__":
    main()
