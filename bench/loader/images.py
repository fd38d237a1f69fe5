"""Pictures: uint8 rows ``[224, 224, 3]``, and JPEG files decoded by Pillow, warm, beside the peers.

The loader reads JPEG files as rows padded to the longest, with their lengths in a column of their own, and
decodes them in its `transform` by as many threads as there are cores: Pillow lets go of the interpreter.
"""

from __future__ import annotations

import io
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.loader.compare import Entrant, beside_peers, compare, gather, of_peers, own
from bench.loader.peer import started
from bench.loader.scale import SETTLE_SECONDS, Array, Scale, images, jpeg_files, own_folder
from bench.peers.rows import Seen, write_jpegs
from loaders import Loader
from tiering import ingest, open_tier

SHAPE = (224, 224, 3)


def run(scale: Scale, folder: Path) -> dict[str, object]:
    """Figures of both kinds."""
    return {
        "rows": raw(scale, own_folder(folder, "rows")),
        "jpeg": jpeg(scale, own_folder(folder, "jpeg")),
    }


def raw(scale: Scale, folder: Path) -> dict[str, object]:
    """Rows as arrays."""
    data = images(scale.image_rows)
    np.save(folder / "rows.npy", data)
    corpus = ingest({"image": data}, open_tier(folder / "disk", "disk"), "bench")
    time.sleep(SETTLE_SECONDS)
    mine = [own(Loader(corpus, scale.image_batch), "image", "loader, defaults")]
    first = [gather(data, scale.image_batch), *mine]
    return beside(scale, folder, folder / "rows.npy", data, first, mine)


def jpeg(scale: Scale, folder: Path) -> dict[str, object]:
    """Rows as JPEG files."""
    files = jpeg_files(scale.jpeg_rows)
    write_jpegs(folder / "files", files)
    padded = np.zeros((len(files), max(map(len, files))), np.uint8)
    for row, file in zip(padded, files, strict=True):
        row[: len(file)] = np.frombuffer(file, np.uint8)
    columns = {"jpeg": padded, "nbytes": np.array([len(file) for file in files], np.int32)}
    corpus = ingest(columns, open_tier(folder / "disk", "disk"), "bench")
    time.sleep(SETTLE_SECONDS)
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        loader = Loader(corpus, scale.image_batch, transform=Decode(pool))
        mine = [own(loader, "image", f"loader, decode in {threads} threads")]
        pictures = np.stack([decode(file) for file in files])
        return beside(scale, folder, folder / "files", pictures, list(mine), mine)


def beside(
    scale: Scale, folder: Path, rows: Path, data: Array, first: list[Entrant], mine: list[Entrant]
) -> dict[str, object]:
    """Figures of the entrants and of the peers that read `rows`, whose arrays are `data`."""
    seen = Seen()
    seen.add(data)
    with started(rows, own_folder(folder, "peers"), scale.image_batch) as (peers, skipped):
        entrants = [*first, *of_peers(peers, len(data), seen.digest(), skipped)]
        figures: dict[str, Any] = compare(entrants, scale.image_rounds, len(data), data[0].nbytes, skipped)
    return {
        "rows": len(data),
        "batch": scale.image_batch,
        "loaders": figures,
        "beside_peers": beside_peers(figures, [one.name for one in mine], {}),
        "skipped": skipped,
    }


class Decode:
    """A transform: the pictures of a batch, decoded by a pool of threads into one array."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def __call__(self, batch: dict[str, Array]) -> dict[str, Array]:
        """Columns ``jpeg`` and ``nbytes`` become ``image``, uint8 ``[batch, 224, 224, 3]``."""
        found = np.empty((len(batch["jpeg"]), *SHAPE), np.uint8)

        def one(row: int) -> None:
            found[row] = decode(batch["jpeg"][row, : batch["nbytes"][row]].tobytes())

        list(self._pool.map(one, range(len(found))))
        return {"image": found}


def decode(file: bytes) -> Array:
    """A picture, uint8 ``[224, 224, 3]``."""
    return np.asarray(Image.open(io.BytesIO(file)))
