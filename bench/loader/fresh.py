"""``python -m bench.loader.fresh``: a loader in a new process, for `bench.loader.start`.

Reads ``{"tier": ..., "batch": ..., "state": null, "epoch": false}`` from the standard input; prints seconds
from `Loader()` to the first batch, the batch's digest, and the largest resident memory, in MiB.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from bench.peers.rows import Seen
from loaders import Loader
from tiering import open_corpus, open_tier


def main() -> None:
    """Do what the standard input asks."""
    asked = json.load(sys.stdin)
    imported = peak_mib()
    begun = time.perf_counter()
    corpus = open_corpus(open_tier(asked["tier"], "disk", options=asked.get("options")), "bench")
    opened = time.perf_counter()
    loader = Loader(corpus, asked["batch"])
    if asked.get("state"):
        loader.load_state_dict(asked["state"])
    batches = iter(loader)
    batch = next(batches)["tokens"]
    first = time.perf_counter()
    seen = Seen()
    seen.add(batch)
    del batch
    if asked.get("epoch"):
        for _ in batches:
            pass
    print(
        json.dumps(
            {
                "first_batch_seconds": first - opened,
                "open_corpus_seconds": opened - begun,
                "digest": seen.digest(),
                "imported_mib": imported,
                "peak_mib": peak_mib(),
            }
        )
    )


def peak_mib() -> float:
    """The largest resident memory of this program so far; getrusage would count what it was started from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
