"""Ingests a text on worker processes and moves it, telling how far it is: ``FILE FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from tiering import ingest, open_tier, plan_move
from tiering.graph import local_cluster

NAME = "text"
SHARD_SIZE = "16KiB"


def main(file: Path, folder: Path) -> None:
    with local_cluster(processes=True, workers=2) as client:
        print("cluster is up", flush=True)
        lake = open_tier(folder / "lake", "lake")
        corpus = ingest(file, lake, NAME, reader="text", shard_size=SHARD_SIZE, client=client)
        print("ingested", flush=True)
        plan_move(corpus, open_tier(folder / "disk", "disk")).run(client)
        print("moved", flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
