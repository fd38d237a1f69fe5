"""Training in pretence: reads batches, counts tokens, and can be stopped and resumed in another process.

Run as a module it is the fresh process that resumes: a JSON request on standard input, a JSON answer on
standard output.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from loaders.loader import Loader
from tiering.cache import NodeCache
from tiering.corpus import Corpus, open_corpus
from tiering.digest import Hasher
from tiering.errors import TieringError
from tiering.tier import Tier, open_tier

BATCH_ROWS: Final = 128
LANES: Final = 8
RESUME_WORLD: Final = 2
TOKENS: Final = 257
_RESUME_SECONDS: Final = 300


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch of pretended training."""

    epoch: int
    rows: int
    rows_per_second: float
    bytes_fetched: int
    hit_ratio: float
    bound: float
    distance_from_bound: float
    stall_seconds: float
    bits_per_token: float
    """Entropy of the tokens seen: what the best model without context would reach."""


def train(corpus: Corpus, cache: NodeCache, epochs: int) -> Iterator[Epoch]:
    """Run some epochs; yields the figures of each."""
    loader = Loader(corpus, BATCH_ROWS, cache=cache, lanes=LANES, rank=0, world_size=1)
    counts = np.zeros(TOKENS, np.int64)
    for epoch in range(epochs):
        for batch in loader:
            counts += np.bincount(batch["tokens"].reshape(-1), minlength=TOKENS)
        stats = loader.stats
        share = counts[counts > 0] / counts.sum()
        yield Epoch(
            epoch=epoch,
            rows=stats.rows,
            rows_per_second=round(stats.rows_per_second, 1),
            bytes_fetched=stats.bytes_fetched,
            hit_ratio=round(stats.hit_ratio, 4),
            bound=round(stats.bound, 4),
            distance_from_bound=round(stats.distance_from_bound, 4),
            stall_seconds=round(stats.stall_seconds, 4),
            bits_per_token=round(float(-(share * np.log2(share)).sum()), 4),
        )


def stop_midway(corpus: Corpus, cache: NodeCache) -> tuple[dict[str, Any], str]:
    """Stop in the middle of an epoch; the state there, and the digest of the rows that follow."""
    loader = Loader(corpus, BATCH_ROWS, cache=cache, lanes=LANES, rank=0, world_size=1)
    batches = iter(loader)
    for _ in range(len(loader) // 2):
        next(batches)
    state = loader.state_dict()
    hasher = Hasher()
    for batch in batches:
        hasher.update(batch["tokens"].tobytes())
    return state, hasher.hexdigest()


def resume(corpus: Corpus, cache: NodeCache, state: dict[str, Any]) -> str:
    """Digest of the rows after `state`, read by two ranks instead of one."""
    ranks = []
    for rank in range(RESUME_WORLD):
        loader = Loader(corpus, BATCH_ROWS // RESUME_WORLD, cache=cache, rank=rank, world_size=RESUME_WORLD)
        loader.load_state_dict(state)
        ranks.append(loader)
    hasher = Hasher()
    for batches in zip(*ranks, strict=True):
        for batch in batches:
            hasher.update(batch["tokens"].tobytes())
    return hasher.hexdigest()


def resume_elsewhere(tier: Tier, name: str, cache: NodeCache, state_file: Path) -> str:
    """`resume` in a fresh process, which is told nothing but where things are."""
    request = {
        "url": tier.url,
        "options": tier.options,
        "name": name,
        "cache": str(cache.path),
        "capacity": cache.capacity_bytes,
        "state": str(state_file),
    }
    done = subprocess.run(
        [sys.executable, "-m", "loaders.demo.training"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        timeout=_RESUME_SECONDS,
    )
    if done.returncode:
        raise TieringError(f"the process that resumes failed: {done.stderr.strip()[-500:]}")
    answer: str = json.loads(done.stdout)["digest"]
    return answer


def _answer() -> None:
    request = json.load(sys.stdin)
    corpus = open_corpus(open_tier(request["url"], options=request["options"]), request["name"])
    cache = NodeCache(request["cache"], request["capacity"])
    state = json.loads(Path(request["state"]).read_text())
    json.dump({"digest": resume(corpus, cache, state)}, sys.stdout)


if __name__ == "__main__":
    _answer()
