from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import zarr
from distributed import Client

from tests.tiering.corpora import objects, python, shard_keys, small, small_arrow, tokens, words, wrapped
from tiering import Corpus, Tier, ingest, open_corpus, open_tier, verify
from tiering.digest import Buffer
from tiering.errors import CapacityExceeded, Conflict, Locked, NotFound, UsageError
from tiering.stores.base import ObjectInfo
from tiering.stores.wrappers import Wrapper

ROWS = 22


def columns() -> dict[str, np.ndarray[Any, Any]]:
    return {
        "tokens": tokens(ROWS)["tokens"],
        "weight": np.linspace(0, 1, ROWS, dtype=">f4"),
        "flag": np.arange(ROWS) % 3 == 0,
        "wave": (np.arange(ROWS * 2).reshape(ROWS, 2) * (1 - 2j)).astype(np.complex64),
    }


def read(corpus: Corpus) -> dict[str, Any]:
    """What readers that know nothing of this engine see."""
    path = f"{corpus.tier.url}/{corpus.name}"
    if corpus.format == "arrow":
        found = pads.dataset(path, format="arrow").to_table()
        return {name: found[name].to_pylist() for name in found.column_names}
    group = zarr.open_group(path, mode="r")
    return {name: np.asarray(group[name]).tolist() for name in corpus.schema.names}


def from_text(folder: Path) -> Any:
    (folder / "a.txt").write_bytes(bytes(range(256)))
    return folder / "a.txt"


def from_parquet(folder: Path) -> Any:
    pq.write_table(
        pa.table(
            {"id": np.arange(ROWS), "pair": pa.array([[i, -i] for i in range(ROWS)], pa.list_(pa.int16(), 2))}
        ).cast(
            pa.schema(
                [
                    pa.field("id", pa.int64(), nullable=False),
                    pa.field(
                        "pair", pa.list_(pa.field("item", pa.int16(), nullable=False), 2), nullable=False
                    ),
                ]
            )
        ),
        folder / "a.parquet",
        row_group_size=5,
    )
    return folder / "a.parquet"


SOURCES: dict[str, Callable[[Path], Any]] = {
    "numpy": lambda _folder: columns(),
    "dask": lambda _folder: {
        name: da.from_array(array.astype(array.dtype.newbyteorder("<")), chunks=5)
        for name, array in columns().items()
    },
    "mixed": lambda _folder: {"tokens": da.from_array(tokens()["tokens"], chunks=7), "id": np.arange(ROWS)},
    "table": lambda _folder: pa.table({"id": np.arange(ROWS), "x": np.arange(ROWS) / 7}),
    "dataset": lambda _folder: pads.dataset(pa.table({"id": np.arange(ROWS)})),
    "parquet": from_parquet,
    "text": from_text,
}


def expected(kind: str) -> dict[str, Any]:
    if kind in ("numpy", "dask"):
        return {name: array.tolist() for name, array in columns().items()}
    if kind == "mixed":
        return {"tokens": tokens()["tokens"].tolist(), "id": list(range(ROWS))}
    if kind == "table":
        return {"id": list(range(ROWS)), "x": (np.arange(ROWS) / 7).tolist()}
    if kind == "parquet":
        return {"id": list(range(ROWS)), "pair": [[i, -i] for i in range(ROWS)]}
    if kind == "text":
        return {"tokens": [*np.append(np.arange(256), [256] * 3).reshape(37, 7).tolist()]}
    return {"id": list(range(ROWS))}


@pytest.mark.parametrize(("kind", "format_"), list(itertools.product(SOURCES, ["zarr", "arrow"])))
def test_ingest_of_any_source_in_any_format_is_read_by_others(
    lake: Tier, tmp_path: Path, kind: str, format_: str
) -> None:
    options = {"reader_options": {"row_tokens": 7}} if kind == "text" else {}
    corpus = ingest(
        SOURCES[kind](tmp_path), lake, "web", format=format_, shard_size=4096, block_rows=4, **options
    )
    found, wanted = read(corpus), expected(kind)
    if format_ == "arrow" and "wave" in wanted:
        wanted["wave"] = [[[z.real, z.imag] for z in row] for row in wanted["wave"]]
    assert found == wanted
    assert corpus.format == format_
    assert corpus.contents.shards > 3
    assert verify(corpus).ok
    assert verify(corpus).extra == ()
    assert open_corpus(lake, "web").record == corpus.record


@pytest.mark.parametrize("kind", SOURCES)
def test_ingest_is_deterministic(memory: Tier, lake: Tier, tmp_path: Path, kind: str) -> None:
    source = SOURCES[kind](tmp_path)
    options = {
        "shard_size": 4096,
        "block_rows": 4,
        "reader_options": {"row_tokens": 7} if kind == "text" else None,
    }
    made = [ingest(source, tier, "web", **options) for tier in (memory, lake)]
    assert made[0].record == made[1].record
    assert objects(memory, "web").keys() == objects(lake, "web").keys()
    for key, data in objects(memory, "web").items():
        assert data == objects(lake)[key] or "/claims/" in key


def test_ingest_defaults_suit_the_source(lake: Tier, tmp_path: Path) -> None:
    assert ingest(columns(), lake, "a").format == "zarr"
    assert ingest(words(), lake, "b").format == "arrow"
    assert ingest(from_parquet(tmp_path), lake, "c").format == "arrow"
    assert ingest(from_text(tmp_path), lake, "d").format == "zarr"


@pytest.mark.parametrize("codec", ["zstd", "zstd:19"])
def test_ingest_with_a_codec_is_smaller_and_reads_the_same(lake: Tier, codec: str) -> None:
    source = {"a": np.zeros((4096, 32), np.uint32)}
    plain = ingest(source, lake, "plain", block_rows=1024)
    packed = ingest(source, lake, "packed", block_rows=1024, codec=codec)
    assert packed.nbytes * 5 < plain.nbytes
    assert packed.contents.codec == ("zstd:1" if codec == "zstd" else codec)
    assert read(packed) == read(plain)


def test_ingest_shards_are_whole_blocks_of_the_size_asked_for(lake: Tier) -> None:
    source = {"a": np.zeros((1000, 256), np.uint32), "b": np.zeros(1000, np.uint8)}
    corpus = ingest(source, lake, "a", shard_size="64KiB", block_rows=7)
    assert (corpus.contents.block_rows, corpus.contents.shard_rows) == (7, 56)
    assert max(corpus.manifest["nbytes"].to_pylist()) <= 65536 + 4096
    assert corpus.shard_rows.tolist() == [56] * 17 + [48]
    auto = ingest(source, lake, "b", shard_size="64KiB")
    assert (auto.contents.block_rows, auto.contents.shard_rows) == (16, 48)
    whole = ingest(source, lake, "c")
    assert (whole.contents.block_rows, whole.contents.shards) == (1000, 1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"shard_size": 15}, "shard_size 15 is smaller than a row of 16 bytes"),
        ({"shard_size": "2XB"}, "shard_size = '2XB' is not a size"),
        ({"shard_size": 0}, "shard_size = 0"),
        ({"shard_size": 64, "block_rows": 5}, "a block of 5 rows has 80 bytes, more than shard_size 64"),
        ({"block_rows": 0}, "block_rows = 0"),
        ({"block_rows": -3}, "block_rows = -3"),
        ({"block_rows": 2.5}, "block_rows = 2.5"),
        ({"block_rows": "7"}, "block_rows = '7'"),
        ({"block_rows": True}, "block_rows = True"),
        ({"codec": "gzip"}, "codec 'gzip' is not known"),
        ({"codec": "zstd:23"}, "codec 'zstd:23'"),
        ({"codec": "zstd:1", "format": "arrow"}, "Arrow corpora are stored plain"),
        ({"format": "tar"}, "no format 'tar'"),
        ({"reader": "text"}, "are for paths"),
    ],
)
def test_ingest_with_a_wrong_argument_writes_nothing(lake: Tier, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        ingest(tokens(), lake, "web", **options)
    assert told in str(caught.value)
    assert objects(lake) == {}


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "_x", "a\0"])
def test_ingest_under_a_name_that_is_none_is_refused(lake: Tier, name: str) -> None:
    with pytest.raises(UsageError, match="corpus name"):
        ingest(tokens(), lake, name)


def test_ingest_of_a_ragged_column_as_zarr_names_it(lake: Tier) -> None:
    with pytest.raises(UsageError, match="column 'text' of type string has no fixed shape"):
        ingest(words(), lake, "web", format="zarr")


def test_ingest_with_tiny_shards_holds_one_block_a_shard(lake: Tier) -> None:
    corpus = ingest(tokens(5), lake, "web", shard_size=16)
    assert (corpus.contents.block_rows, corpus.contents.shards) == (1, 5)


def test_ingest_again_reads_back_nothing_and_writes_nothing(lake: Tier) -> None:
    corpus = small(lake)
    before = objects(lake)
    assert small(lake).record == corpus.record
    assert objects(lake) == before


def test_ingest_again_replaces_shards_that_are_gone(lake: Tier) -> None:
    corpus = small(lake)
    lake.store.delete(shard_keys(corpus)[3])
    lake.store.write(shard_keys(corpus)[1], [b"short"])
    assert corpus.absent() == ["tokens/c/1/0", "tokens/c/3/0"]
    assert small(lake).record == corpus.record
    assert verify(corpus).ok


@pytest.mark.parametrize(
    "other", [{"seed": 4}, {"rows": 23}, {"block_rows": 5}, {"codec": "zstd"}, {"shard_size": 8192}], ids=str
)
def test_ingest_of_other_content_under_a_taken_name_is_a_conflict(lake: Tier, other: dict[str, Any]) -> None:
    corpus = small(lake)
    before = objects(lake)
    with pytest.raises(Conflict, match="exists already, made from another source or with another layout"):
        small(lake, **other)
    assert objects(lake) == before
    assert verify(corpus).ok


def test_ingest_over_foreign_objects_is_a_conflict(lake: Tier) -> None:
    group = zarr.open_group(f"{lake.url}/web", mode="w")
    group.create_array("tokens", data=np.arange(10))
    before = objects(lake)
    with pytest.raises(Conflict, match="holds objects that are not of a corpus"):
        small(lake)
    assert objects(lake) == before


def test_ingest_without_room_is_refused_before_it_writes(make_tier: Callable[..., Tier]) -> None:
    needed = small(make_tier("other")).nbytes
    tier = make_tier("lake", capacity=needed - 1)
    with pytest.raises(CapacityExceeded, match="more bytes, there is room for"):
        small(tier)
    assert objects(tier) == {}
    with pytest.raises(CapacityExceeded, match=r"a shard of corpus 'web' has 64 bytes, the whole tier 63"):
        small(make_tier("tiny", capacity=63))


def test_ingest_with_a_codec_stops_where_the_room_ends(make_tier: Callable[..., Tier]) -> None:
    noise = {"a": np.random.default_rng(1).integers(0, 256, (64, 4096), np.uint8)}
    tier = make_tier("lake", capacity=100_000)
    with pytest.raises(CapacityExceeded, match="more bytes, there is room for"):
        ingest(noise, tier, "web", shard_size=4096, block_rows=1, codec="zstd")
    with pytest.raises(NotFound):
        open_corpus(tier, "web")
    zeros = {"a": np.zeros((64, 4096), np.uint8)}
    assert verify(
        ingest(
            zeros, make_tier("disk", capacity=100_000), "web", shard_size=65536, block_rows=16, codec="zstd"
        )
    ).ok


def test_ingest_resumed_counts_what_is_there_as_room(make_tier: Callable[..., Tier]) -> None:
    whole = small(make_tier("other"))
    size = sum(map(len, objects(whole.tier, "web").values()))
    tier = make_tier("lake", capacity=size)
    for key in shard_keys(whole)[:4]:
        tier.store.write(key, [whole.tier.store.read(key)])
    tier.store.write(
        "web/.tiering/claims/00000001.json", [objects(whole.tier)["web/.tiering/claims/00000001.json"]]
    )
    assert small(tier).record == whole.record


class Watched(Wrapper):
    """Remembers who wrote."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.written: list[str] = []

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        self.written.append(key)
        return super().write(key, buffers, if_absent=if_absent, digest=digest)


def test_ingest_of_what_lies_in_memory_is_written_from_here(lake: Tier, cluster: Client) -> None:
    with wrapped(lake, Watched(lake.store)) as store:
        corpus = small(lake, client=cluster)
        assert set(shard_keys(corpus)) <= set(store.written)
    assert verify(corpus, client=cluster).ok


def test_ingest_on_a_cluster_writes_there_and_is_the_same(
    lake: Tier, disk: Tier, cluster: Client, tmp_path: Path
) -> None:
    source = {"a": da.from_array(np.arange(220).reshape(22, 10), chunks=5)}
    here = ingest(source, disk, "web", shard_size=4096, block_rows=4)
    with wrapped(lake, Watched(lake.store)) as store:
        there = ingest(source, lake, "web", shard_size=4096, block_rows=4, client=cluster)
        assert not set(shard_keys(there)) & set(store.written)
    assert there.record == here.record
    text = ingest(from_text(tmp_path), lake, "text", reader_options={"row_tokens": 7}, client=cluster)
    assert verify(text, client=cluster).ok


def broken_block(block: Any) -> Any:
    raise CapacityExceeded("no room in this block", tier="source")


@pytest.mark.parametrize("on_cluster", [False, True])
def test_ingest_whose_task_fails_raises_its_error_and_publishes_nothing(
    lake: Tier, cluster: Client, on_cluster: bool
) -> None:
    source = {"a": da.zeros((22, 3), chunks=4).map_blocks(broken_block, dtype=float, meta=np.zeros((0, 0)))}
    with pytest.raises(CapacityExceeded, match="no room in this block"):
        ingest(source, lake, "web", shard_size=4096, block_rows=4, client=cluster if on_cluster else None)
    with pytest.raises(NotFound):
        open_corpus(lake, "web")
    assert verify(ingest({"a": np.zeros(22)}, lake, "web")).ok  # the name is free again


def test_ingest_of_a_source_that_gives_fewer_rows_than_it_says_is_a_conflict(lake: Tier) -> None:
    lying = da.zeros((22, 3), chunks=4).map_blocks(
        lambda block: block[:3], dtype=float, meta=np.zeros((0, 0))
    )
    with pytest.raises(Conflict, match=r"gave \[3\] rows for the 4 of shard \d"):
        ingest({"a": lying}, lake, "web", shard_size=4096, block_rows=4)


TWO = """
import sys
import numpy as np
from tiering import ingest, open_tier
from tiering.errors import Conflict, Locked
seed = int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
try:
    source = {"a": np.random.default_rng(seed).integers(0, 99, (300, 8))}
    print(ingest(source, open_tier(sys.argv[1]), "web", shard_size=4096, block_rows=4).record.manifest)
except Conflict as error:
    print(type(error).__name__)
"""


def race(tier: Tier, seeds: Sequence[int]) -> list[str]:
    children = [python(TWO, tier.url, seed) for seed in seeds]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    return [child.communicate()[0].strip() for child in children]


def test_ingest_twice_at_once_of_different_content_has_one_winner(lake: Tier) -> None:
    told = race(lake, [1, 2])
    corpus = open_corpus(lake, "web")
    assert sorted(told) == sorted(["Conflict", corpus.record.manifest])
    assert verify(corpus).ok
    assert verify(corpus).extra == ()


def test_ingest_twice_at_once_of_the_same_content_makes_one_corpus(lake: Tier) -> None:
    told = race(lake, [1, 1])
    corpus = open_corpus(lake, "web")
    assert set(told) <= {"Locked", corpus.record.manifest}
    assert corpus.record.manifest in told
    assert verify(corpus).ok


def test_ingest_beside_one_of_the_same_content_in_this_process_is_locked(lake: Tier) -> None:
    class Second(Wrapper):
        def write(
            self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
        ) -> ObjectInfo:
            if key.startswith("web/tokens/c/0"):
                with pytest.raises(Locked):
                    small(open_tier(lake.url, "again"))
                with pytest.raises(Conflict):
                    small(open_tier(lake.url, "again"), seed=7)
            return super().write(key, buffers, if_absent=if_absent, digest=digest)

    with wrapped(lake, Second(lake.store)):
        assert verify(small(lake)).ok


def test_ingest_leaves_no_thread_process_or_temporary_file(lake: Tier) -> None:
    small_arrow(lake)
    for folder, _folders, names in os.walk(lake.url):
        assert not [name for name in names if name.startswith(".tmp-")], folder
