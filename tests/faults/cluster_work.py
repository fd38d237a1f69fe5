"""Ingests a text on worker processes and moves it, telling how far it is: ``FILE FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from tiering import ingest, open_tier, plan_move
from tiering.graph import local_cluster

NAME = "text"
SHARD_SIZE = "16KiB"


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main(file: Path, folder: Path) -> None:
    with local_cluster(processes=True, workers=2) as client:
        say("cluster is up")
        lake = open_tier(folder / "lake", "lake")
        corpus = ingest(file, lake, NAME, reader="text", shard_size=SHARD_SIZE, client=client)
        say("ingested")
        plan_move(corpus, open_tier(folder / "disk", "disk")).run(client)
        say("moved")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
