"""Tables and the chart of what `bench.loader` measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from bench.loader.chart import bars
from bench.loader.compare import CONSUMERS

BEGIN, END = "<!-- figures of bench.loader: begin -->", "<!-- figures of bench.loader: end -->"
SVG: Final = "loader.svg"
Figures = dict[str, Any]


def markdown(document: Figures) -> str:
    """All figures as tables, the chart above them."""
    cases, machine = document["cases"], document["machine"]
    parts = [f"{machine['cores']} cores of {machine['cpu']}, Python {machine['python']}."]
    for name, tables in TABLES.items():
        if name in cases:
            parts += tables(cases[name])
    return "\n\n".join(parts)


def svg(document: Figures) -> str:
    """The chart of warm rows a second, batches copied once by the consumer."""
    case = document["cases"]["warm"]
    loaders = case["loaders"]
    chosen = [(name, one) for name, one in loaders.items() if one["peer"] is None]
    chosen += [
        (best, loaders[best]) for best in (one["copied"]["fastest"] for one in case["beside_peers"].values())
    ]
    kinds = {"gather from RAM": "bound"}
    return bars(
        "Rows a second, warm, shuffled, batches read once by the training",
        f"{case['rows']:,} rows of {case['row_bytes']:,} bytes, batches of {case['batch']}; peers at best",
        [
            (name, one["copied"]["rows_per_second"], "peer" if one["peer"] else kinds.get(name, "own"))
            for name, one in chosen
        ],
    )


def embed(document: Figures, page: Path) -> None:
    """Put the tables, and the chart beside the page, between the marks of a page."""
    text = page.read_text()
    found = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)
    if not found.search(text):
        raise ValueError(f"{page} has no {BEGIN} ... {END}")
    picture = f"![Rows a second of each loader]({SVG})\n\n" if (page.parent / SVG).exists() else ""
    inside = f"{BEGIN}\n{picture}{markdown(document)}\n{END}"
    page.write_text(found.sub(lambda _: inside, text))


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join('' if cell is None else str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def _compared(case: Figures, title: str) -> Iterator[str]:
    shuffles = dict.fromkeys(one["shuffle"] for one in case["loaders"].values())
    numbers = {shuffle: number for number, shuffle in enumerate(shuffles, 1)}
    yield (
        f"{title}: {case['rows']:,} rows, batches of {case['batch']}. *Left*: "
        "batches are not looked at; *copied*: each is copied once."
    )
    yield _table(
        (
            "loader",
            "rows/s, left",
            "of the gather",
            "rows/s, copied",
            "of the gather",
            "CPU s/GB",
            "rounds",
            "shuffle",
        ),
        (
            (
                name,
                f"{one['left']['rows_per_second']:,}",
                one["left"].get("ratio_to_gather"),
                f"{one['copied']['rows_per_second']:,}",
                one["copied"].get("ratio_to_gather"),
                one["left"]["cpu_seconds_per_gb"],
                one["rounds"],
                numbers[one["shuffle"]],
            )
            for name, one in case["loaders"].items()
        ),
    )
    yield "Shuffles: " + "; ".join(f"{number}. {shuffle}" for shuffle, number in numbers.items()) + "."
    if case["beside_peers"]:
        yield _beside(case["beside_peers"])
    yield from (f"Skipped: {line}" for line in case["skipped"])


def _beside(peers: Figures) -> str:
    """How many times as fast the loader is as each peer: with its defaults (the first), and at its best."""
    head = [text for way in CONSUMERS.values() for text in (f"{way}: rows/s", "defaults", "best")]
    rows = []
    for name, one in peers.items():
        cells: list[object] = [name]
        for way in CONSUMERS.values():
            times = list(one[way]["times_as_fast"].values())
            cells += [f"{one[way]['rows_per_second']:,} ({one[way]['fastest']})", times[0], max(times)]
        rows.append((*cells, one["aim"]))
    return _table(("peer", *head, "aim"), rows)


def _ways(case: Figures, title: str, first: str) -> Iterator[str]:
    ways = case["ways"]
    fields = list(next(iter(ways.values())))
    yield f"{title}, aim {case['aim']}:"
    yield _table(
        (first, *(field.replace("_", " ") for field in fields)),
        ((name, *one.values()) for name, one in ways.items()),
    )


def _start(case: Figures) -> Iterator[str]:
    yield "Seconds from `Loader()` to the first batch, in a fresh process:"
    yield _table(
        ("", "seconds", "aim", "open_corpus before"),
        (
            (name, one["seconds"], one["aim"], one["open_corpus_seconds"])
            for name, one in case["first_batch_seconds"].items()
        ),
    )
    memory = case["memory"]
    yield (
        f"A state has {case['state_bytes']} bytes. Largest resident memory of an epoch: "
        f"{memory['peak_mib']} MiB, "
        f"{memory['imported_mib']} of them when all was imported; aim {memory['aim_mib']} (two windows of "
        f"{memory['two_windows_mib'] // 2} MiB, and 256)."
    )


def _objects(case: Figures) -> Iterator[str]:
    yield from _ways(case["cold"], f"Cold first epoch from {case['server']}", "way")
    yield "Bytes fetched in each epoch, as a share of the corpus, with a cache for 40% of it:"
    epochs = max(len(one["fetched_share"]) for one in case["cache"].values())
    yield _table(
        ("loader", *(f"epoch {number + 1}" for number in range(epochs)), "remark"),
        (
            (name, *(one["fetched_share"] + [None] * epochs)[:epochs], one.get("remark"))
            for name, one in case["cache"].items()
        ),
    )
    yield from (f"Skipped: {line}" for line in case["skipped"])


def _images(case: Figures) -> Iterator[str]:
    yield from _compared(case["rows"], "Pictures of 224 x 224 x 3 uint8, warm")
    yield from _compared(case["jpeg"], "JPEG files of 224 x 224 x 3, decoded, warm")


TABLES: Final = {
    "warm": lambda case: _compared(case, "Warm token rows"),
    "codec": lambda case: _ways(case, "Warm zstd corpus, ratios to numcodecs on one core", "way"),
    "cold": lambda case: _ways(case, "Cold local disk", "way"),
    "start": _start,
    "objects": _objects,
    "images": _images,
}
