"""The six steps of the demo, each a function of what came before.

Invariant: every step skips what an earlier run left in place, after verifying it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from dask.utils import format_bytes
from distributed import Client

from loaders.demo.text import library_source
from loaders.demo.training import Epoch, resume_elsewhere, stop_midway, train
from tiering.cache import NodeCache
from tiering.corpus import Corpus
from tiering.errors import Corrupt
from tiering.ingest import ingest
from tiering.monitor import plugin
from tiering.move import MoveReport
from tiering.plan import plan_move
from tiering.scrub import verify
from tiering.sources.text import TextSource
from tiering.stores.block_format import format_volume
from tiering.tier import S3_LIST_PRICES, Tier, open_tier

NAME: Final = f"stdlib-{platform.python_version()}"
SHARD_SIZE: Final = "1MiB"
CACHE_SHARE: Final = 0.4
EPOCHS: Final = 3
_COMPARED_ROWS: Final = 4096
_VOLUME_SPARE_BYTES: Final = 16 << 20

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Places:
    """Where the demo puts things."""

    folder: Path
    lake: Tier
    """The object tier."""
    disk: Tier
    """The NVMe/file tier."""
    block: Tier
    """A volume image."""
    returned: Tier
    """A second file tier, for the way back."""

    @property
    def volume(self) -> Path:
        """The image of the block tier."""
        return self.folder / "volume.img"


def places(folder: Path, object_url: str | None, endpoint_url: str | None) -> Places:
    """The tiers of a demo below `folder`; without a url the object tier is a folder at S3's list prices."""
    folder = folder.absolute()
    options = {"endpoint_url": endpoint_url} if endpoint_url else None
    return Places(
        folder,
        open_tier(object_url or folder / "lake", "lake", options=options, prices=S3_LIST_PRICES),
        open_tier(folder / "nvme", "nvme"),
        open_tier(f"block://{folder}/volume.img", "block"),
        open_tier(folder / "returned", "returned"),
    )


def ingest_text(where: Places, client: Client, say: Say) -> tuple[TextSource, Corpus]:
    """Step 1: shard the text into a Zarr corpus on the object tier, by a Dask graph."""
    source = library_source()
    unreadable = source.notes["unreadable"]
    say(f"{source.notes['files']:,} files of the standard library, {len(unreadable)} unreadable")
    for path, reason in unreadable:
        say(f"  left out {path}: {reason}")
    corpus = ingest(source, where.lake, NAME, shard_size=SHARD_SIZE, client=client)
    say(f"{corpus.rows:,} rows in {corpus.manifest.num_rows} shards, {format_bytes(corpus.nbytes)}")
    return source, corpus


def stage(corpus: Corpus, where: Places, client: Client, say: Say) -> tuple[Corpus, MoveReport, float]:
    """Step 2: plan the move to the file tier, run it on Dask, verify it; also gives the planned dollars."""
    plan = plan_move(corpus, where.disk)
    say(str(plan))
    report = plan.run(client)
    staged = corpus.at(where.disk)
    _check_whole(staged)
    say(f"{report.moved} shards moved, {report.skipped} were there, all verified on {where.disk.name}")
    return staged, report, plan.cost


def train_epochs(corpus: Corpus, where: Places, client: Client, say: Say) -> tuple[NodeCache, list[Epoch]]:
    """Step 3: three epochs from the object tier through a node cache of 40% of the corpus."""
    cache = NodeCache(where.folder / "cache", int(corpus.nbytes * CACHE_SHARE))
    epochs = []
    for epoch in train(corpus, cache, EPOCHS):
        say(
            f"epoch {epoch.epoch}: {epoch.rows_per_second:,.0f} rows/s, "
            f"{format_bytes(epoch.bytes_fetched)} fetched, {epoch.bytes_fetched / corpus.nbytes:.2f} of all, "
            f"hit ratio {epoch.hit_ratio:.3f}, {epoch.distance_from_bound:.3f} below the bound, "
            f"{epoch.bits_per_token} bits a token"
        )
        epochs.append(epoch)
        plugin.publish_counters(client)
    return cache, epochs


def resume_identically(corpus: Corpus, cache: NodeCache, where: Places, say: Say) -> tuple[bool, str]:
    """Step 4: stop in mid-epoch, resume in a fresh process with two ranks, compare the rows that follow."""
    state, expected = stop_midway(corpus, cache)
    state_file = where.folder / "state.json"
    state_file.write_text(json.dumps(state))
    found = resume_elsewhere(corpus.tier, corpus.name, cache, state_file)
    say(f"state of {len(json.dumps(state))} bytes at position {state['position']} of {state['lanes']} lanes")
    say(f"rows that follow here      {expected[:32]}\nrows that follow elsewhere {found[:32]}")
    return found == expected, found


def round_trip(staged: Corpus, where: Places, client: Client, say: Say) -> Corpus:
    """Step 5a: on to a block volume and back to a file tier, both verified."""
    if not where.volume.exists():
        size = staged.nbytes + staged.manifest.num_rows * 8192 + _VOLUME_SPARE_BYTES
        info = format_volume(where.volume, size)
        say(f"formatted a volume of {format_bytes(info.nbytes)}")
    try:
        out = plan_move(staged, where.block).run(client)
        on_block = staged.at(where.block)
        _check_whole(on_block)
        back = plan_move(on_block, where.returned).run(client)
    finally:
        where.block.close()
    returned = on_block.at(where.returned)
    _check_whole(returned)
    say(f"to the volume: {out.moved} moved, {out.skipped} were there; back: {back.moved} and {back.skipped}")
    return returned


def compare_with_zarr(source: TextSource, copy: Corpus, say: Say) -> int:
    """Step 5b: read a copy with plain zarr and compare every row with the text it was made of."""
    array = zarr.open_array(f"{copy.tier.url}/{copy.name}/tokens", mode="r")
    for start in range(0, source.rows, _COMPARED_ROWS):
        stop = min(source.rows, start + _COMPARED_ROWS)
        expected = source.part(start, stop)()["tokens"]
        if not np.array_equal(np.asarray(array[start:stop]), expected):
            raise Corrupt(
                f"zarr reads other rows than the text has, in [{start}, {stop})", tier=copy.tier.name
            )
    say(f"plain zarr reads {source.rows:,} rows from {copy.tier.url}/{copy.name}, all as in the text")
    return source.rows


def summary(
    where: Places, corpus: Corpus, source: TextSource, epochs: list[Epoch], **figures: Any
) -> dict[str, Any]:
    """What `tiering demo --json` prints."""
    return {
        **figures,
        "rows": corpus.rows,
        "shards": corpus.manifest.num_rows,
        "corpus_bytes": corpus.nbytes,
        "files": source.notes["files"],
        "unreadable": len(source.notes["unreadable"]),
        "object_path": f"{where.lake.url}/{corpus.name}",
        "staged_path": f"{where.disk.url}/{corpus.name}",
        "volume_path": str(where.volume),
        "returned_path": f"{where.returned.url}/{corpus.name}",
        "cache_path": str(where.folder / "cache"),
        "manifest": corpus.record.manifest,
        "epochs": [asdict(epoch) for epoch in epochs],
    }


def watch(client: Client, where: Places) -> None:
    """Show the tiers on the dashboard."""
    plugin.publish_tiers(
        client,
        {
            tier.name: {
                "kind": tier.kind,
                "used_bytes": tier.used_bytes(),
                "capacity_bytes": tier.capacity_bytes,
            }
            for tier in (where.lake, where.disk, where.returned)
        },
    )


def _check_whole(corpus: Corpus) -> None:
    report = verify(corpus)
    if not report.ok:
        raise Corrupt(
            f"{len(report.missing)} shards missing and {len(report.corrupt)} corrupt",
            tier=corpus.tier.name,
            hint="Run the demo again: it copies them anew",
        )
