"""A corpus in an object store: cold first epochs beside raw GETs, and what a cache of 40% leaves to fetch.

The server is a Ceph gateway on loopback with its objects in memory, or moto where Ceph is not installed, and
figures say little. The raw reads are obstore's, of the same objects: whole ones, and ranges of 1 MiB, each
by eight threads; the faster is the bound. Bytes are counted by a relay before the server, for all alike. A
loader that fetched more than `MOST_SHARE` times the corpus in an epoch, or took longer than `EPOCH_SECONDS`,
is stopped, and that is said.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from bench.loader.cold import epoch
from bench.loader.peer import Peer, PeerError, remote_variants
from bench.loader.relay import Relay, relay
from bench.loader.scale import MB, Scale, own_folder, tokens
from bench.object_store import Raw, raw_client, server
from loaders import Loader
from tests.servers import ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY, Endpoint
from tiering import ingest, open_corpus, open_tier
from tiering.cache import NodeCache
from tiering.corpus import Corpus

RANGE_BYTES, THREADS = 1 << 20, 8
CACHE_SHARE, EPOCHS, MOST_SHARE, EPOCH_SECONDS = 0.4, 3, 4.0, 60.0
PEERS: Final = ("litdata", "streaming")


def run(scale: Scale, folder: Path) -> dict[str, object]:
    """Cold epochs, and shares fetched with a cache."""
    data = tokens(scale)
    with ExitStack() as stack:
        endpoint = stack.enter_context(server())
        counted = stack.enter_context(relay(endpoint.url))
        tier = open_tier(f"s3://{BUCKET}/own", "lake", options=endpoint.options(deadline_seconds=120))
        corpus = ingest({"tokens": data}, tier, "bench", shard_size=shard_bytes(scale))
        cold = first_epochs(scale, corpus, endpoint)
        ways = {"loader": own_cache(scale, folder / "cache", endpoint, counted)}
        skipped: list[str] = []
        np.save(folder / "rows.npy", data)
        for name in PEERS:
            variable = f"BENCH_{name.upper()}"
            if python := os.environ.get(variable):
                ways |= peer_cache(scale, own_folder(folder, name), name, python, endpoint, counted, skipped)
            else:
                skipped.append(f"{name}: {variable} names no python that has it")
    return {"server": endpoint.kind, "cold": cold, "cache": ways, "skipped": skipped}


def shard_bytes(scale: Scale) -> int:
    """Of each shard, for every loader: a cache for 40% holds a dozen."""
    return min(8 << 20, scale.nbytes // 32)


def first_epochs(scale: Scale, corpus: Corpus, endpoint: Endpoint) -> dict[str, object]:
    """MB a second of epochs without a cache, and of raw GETs of the same objects."""
    raw = Raw(raw_client(endpoint, f"own/{corpus.name}"))
    table = corpus.manifest
    objects = list(zip(table["key"].to_pylist(), table["nbytes"].to_pylist(), strict=True))
    nbytes = sum(size for _, size in objects)
    buffers = {key: np.empty(size, np.uint8).data for key, size in objects}

    def get(step: int) -> None:
        def piece(place: tuple[str, int]) -> None:
            key, start = place
            raw.read_into(key, start, buffers[key][start : start + step])

        places = [(key, start) for key, size in objects for start in range(0, size, step)]
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(piece, places))

    ways: dict[str, Callable[[], None]] = {
        "raw, whole objects": lambda: get(max(size for _, size in objects)),
        "raw, ranges of 1 MiB": lambda: get(RANGE_BYTES),
        "loader, defaults": lambda: epoch(Loader(corpus, scale.batch)),
        f"loader, prefetch={THREADS}": lambda: epoch(Loader(corpus, scale.batch, prefetch=THREADS)),
    }
    ways["raw, whole objects"]()  # opens connections, and pages of the buffers
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(scale.cold_rounds):
        for name, one in ways.items():
            begun = time.perf_counter()
            one()
            taken[name].append(nbytes / MB / (time.perf_counter() - begun))
    bound = max(median(speeds) for name, speeds in taken.items() if name.startswith("raw"))
    figures = {
        name: {"mb_per_second": round(median(speeds)), "ratio": round(median(speeds) / bound, 3)}
        for name, speeds in taken.items()
    }
    return {"aim": 0.9, "megabytes": round(nbytes / MB), "rounds": scale.cold_rounds, "ways": figures}


def own_cache(scale: Scale, cache: Path, endpoint: Endpoint, counted: Relay) -> dict[str, object]:
    """Share of the corpus fetched in each epoch."""
    options = replace(endpoint, url=counted.url).options(deadline_seconds=120)
    corpus = open_corpus(open_tier(f"s3://{BUCKET}/own", "relayed", options=options), "bench")
    node = NodeCache(cache, int(CACHE_SHARE * corpus.nbytes))
    loader = Loader(corpus, scale.batch, cache=node)
    order = loader.order
    window = order.lanes * order.window_blocks * order.block_rows * scale.row_bytes
    shares, said = [], []
    for _ in range(EPOCHS):
        before = counted.received_bytes
        epoch(loader)
        shares.append(round((counted.received_bytes - before) / corpus.nbytes, 3))
        said.append(round(loader.stats.bytes_fetched / corpus.nbytes, 3))
    node.close()
    remark = (
        f"its own count: {said}; the least is {1 - CACHE_SHARE:.2f}, a window {window / corpus.nbytes:.2f}"
    )
    return {"fetched_share": shares, "remark": remark}


def peer_cache(
    scale: Scale,
    folder: Path,
    name: str,
    python: str,
    endpoint: Endpoint,
    counted: Relay,
    skipped: list[str],
) -> dict[str, dict[str, object]]:
    """The same of a peer, for each of its settings."""
    rows, found = folder.parent / "rows.npy", {}
    stored = folder / "stored"
    writer = Peer(name, python, rows, stored, scale.batch, shard_bytes(scale), "upload")
    try:
        writer.ready()
        nbytes = upload(endpoint, stored, name)
        for number, variant in enumerate(remote_variants(name)):
            cache = folder / f"cache{number}"
            remote = (f"s3://{BUCKET}/{name}", counted.url, cache, int(CACHE_SHARE * nbytes))
            reader = Peer(
                name,
                python,
                rows,
                folder / f"reader{number}",
                scale.batch,
                shard_bytes(scale),
                *remote,
                env=keys(),
            )
            try:
                reader.ready()
                found[f"{name}, {variant}"] = epochs_of(reader, variant, nbytes, counted, scale.rows)
            finally:
                reader.close()
    except PeerError as error:
        skipped.append(str(error))
    finally:
        writer.close()
    return found


def epochs_of(peer: Peer, variant: str, nbytes: int, counted: Relay, rows: int) -> dict[str, object]:
    """Shares that one peer fetched, until it is done or stopped."""
    shares: list[float] = []
    for _ in range(EPOCHS):
        before, begun = counted.received_bytes, time.monotonic()
        peer.ask(variant)
        while (answer := _answer(peer)) is None:
            share = (counted.received_bytes - before) / nbytes
            if share > MOST_SHARE or time.monotonic() - begun > EPOCH_SECONDS:
                seconds = time.monotonic() - begun
                return {
                    "fetched_share": [*shares, round(share, 3)],
                    "remark": f"stopped in epoch {len(shares) + 1} after {seconds:.0f} s",
                }
        if isinstance(answer, PeerError):
            return {"fetched_share": shares, "remark": str(answer)}
        shares.append(round((counted.received_bytes - before) / nbytes, 3))
        if answer["rows"] != rows:
            return {"fetched_share": shares, "remark": f"an epoch gave {answer['rows']} rows of {rows}"}
    return {"fetched_share": shares}


def _answer(peer: Peer) -> dict[str, Any] | PeerError | None:
    try:
        return peer.answered(0.2)
    except PeerError as error:
        return error


def upload(endpoint: Endpoint, folder: Path, prefix: str) -> int:
    """Copy a folder below a prefix of the bucket; bytes of its data."""
    client, nbytes = endpoint.client(), 0
    for file in files_below(folder):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{file.relative_to(folder)}", Body=file.read_bytes())
        nbytes += file.stat().st_size
    client.close()
    return nbytes


def files_below(folder: Path) -> Iterator[Path]:
    """All files."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def keys() -> dict[str, str]:
    """Credentials by the names that the peers' clients know."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
