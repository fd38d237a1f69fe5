"""Warm epochs of token rows: this loader with several orders, the bound and the peers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.loader.compare import AIMS, Entrant, beside_peers, compare, gather, of_peers, own
from bench.loader.peer import started
from bench.loader.scale import SETTLE_SECONDS, Scale, own_folder, tokens
from bench.peers.rows import Seen
from loaders import Loader
from tiering import ingest, open_tier


@dataclass(frozen=True, slots=True)
class Setting:
    """One loader as it is measured: how many blocks of how many rows a batch is drawn from."""

    lanes: int | None = None
    window_blocks: int | None = None
    block_rows: int | None = None
    verify: str = "first"

    @property
    def name(self) -> str:
        """What tells it from the others."""
        if self == Setting():
            return "loader, defaults"
        words = ["loader"]
        if self.lanes is not None:
            words.append(f"{self.lanes} lanes")
        if self.window_blocks is not None:
            words.append(f"{self.window_blocks} blocks a window")
        if self.block_rows is not None:
            words.append(f"blocks of {self.block_rows} rows")
        if self.verify == "always":
            words.append("verify always")
        return ", ".join(words)


SETTINGS = (
    Setting(),
    Setting(verify="always"),
    Setting(8),
    Setting(8, 1),
    Setting(8, 1, 128),
    Setting(64, 1, 64),
)


def run(scale: Scale, folder: Path) -> dict[str, object]:
    """Figures of each loader, and ratios to the bound and the peers."""
    data = tokens(scale)
    np.save(folder / "rows.npy", data)
    with started(folder / "rows.npy", own_folder(folder, "peers"), scale.batch) as (peers, skipped):
        entrants = [gather(data, scale.batch)]
        mine = [_entrant(setting, scale, folder, data) for setting in SETTINGS]
        entrants += mine
        seen = Seen()
        seen.add(data)
        entrants += of_peers(peers, scale.rows, seen.digest(), skipped)
        figures: dict[str, Any] = compare(entrants, scale.rounds, scale.rows, scale.row_bytes, skipped)
    return {
        "rows": scale.rows,
        "row_bytes": scale.row_bytes,
        "batch": scale.batch,
        "loaders": figures,
        "beside_peers": beside_peers(figures, [one.name for one in mine], AIMS),
        "skipped": skipped,
    }


def _entrant(setting: Setting, scale: Scale, folder: Path, data: Any) -> Entrant:
    place = folder / f"blocks-{setting.block_rows}"
    fresh = not place.exists()
    corpus = ingest({"tokens": data}, open_tier(place, place.name), "bench", block_rows=setting.block_rows)
    if fresh:
        time.sleep(SETTLE_SECONDS)
    options = {"lanes": setting.lanes, "window_blocks": setting.window_blocks, "verify": setting.verify}
    loader = Loader(corpus, scale.batch, **options)  # type: ignore[arg-type]
    return own(loader, "tokens", setting.name)
