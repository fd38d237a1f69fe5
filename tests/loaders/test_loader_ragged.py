"""The loader over ragged corpora: each way to collate against the order, resumes, damage and caches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from loaders import Loader, Pack, Pad
from tests.corpora import make_corpus, memory_corpus, memory_tier, promised
from tiering import Corpus, NodeCache, ingest, open_tier, plan_move
from tiering.errors import Corrupt, UsageError

ROWS = 200


def tokens_of(row: int) -> list[int]:
    return [row * 10 + n for n in range(row * 7 % 11)]


def table() -> pa.Table:
    rows = range(ROWS)
    return pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "tokens": pa.array([tokens_of(row) for row in rows], pa.list_(pa.int32())),
            "text": [f"row {row} " * (row % 4) for row in rows],
            "meta": pa.array([{"id": row, "tags": ["t"] * (row % 3)} for row in rows]),
        }
    )


@pytest.fixture(scope="module")
def corpus() -> Iterator[Corpus]:
    """Blocks of 8 rows, some of them in each shard."""
    with memory_tier() as tier:
        made = ingest(table(), tier, "c", block_rows=8, shard_size="4KiB", progress=False)
        assert len(made.shard_rows) > 2
        yield made


@pytest.mark.parametrize(
    "options", [{}, {"lanes": 1, "window_blocks": 3}, {"shuffle": "none"}, {"shuffle": "full"}]
)
def test_arrow_batches_are_the_rows_of_the_order(corpus: Corpus, options: dict[str, Any]) -> None:
    loader = Loader(corpus, 12, collate="arrow", drop_last=False, **options)
    wanted = promised(loader.order, 12, drop_last=False)
    for _ in range(2):
        found = list(loader)
        assert [batch["row"].to_pylist() for batch in found] == wanted
        whole = pa.Table.from_batches(found)
        assert whole.to_pylist() == table().take(list(chain(*wanted))).to_pylist()
        wanted = promised(loader.order, 12, epoch=1, drop_last=False)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_give_the_same_global_batches(corpus: Corpus, world: int) -> None:
    options: dict[str, Any] = {"collate": "arrow", "columns": ["text", "row"], "lanes": 4}
    alone = [batch["row"].to_pylist() for batch in Loader(corpus, 24, **options)]
    ranks = [Loader(corpus, 24 // world, rank=rank, world_size=world, **options) for rank in range(world)]
    parts = zip(*ranks, strict=True)
    assert [[row for part in batch for row in part["row"].to_pylist()] for batch in parts] == alone


def test_padded_and_packed_batches_hold_the_rows_of_the_order(corpus: Corpus) -> None:
    columns = ["row", "tokens"]
    padded = Loader(corpus, 12, collate=Pad(value=-1), columns=columns)
    packed = Loader(corpus, 12, collate="pack", columns=columns)
    fixed = Loader(corpus, 12, collate=Pack(length=16), columns=columns)
    wanted = promised(padded.order, 12)
    for pad, pack, rows_of_16, rows in zip(padded, packed, fixed, wanted, strict=True):
        assert pad["row"].tolist() == pack["row"].tolist() == rows_of_16["row"].tolist() == rows
        tokens = [tokens_of(row) for row in rows]
        assert [t[:n].tolist() for t, n in zip(pad["tokens"], pad["tokens_lengths"], strict=True)] == tokens
        assert np.split(pack["tokens"], pack["tokens_cu_seqlens"][1:-1])[-1].tolist() == tokens[-1]
        assert pack["tokens"].tolist() == list(chain(*tokens))
        inside = rows_of_16["tokens_segments"] > 0
        assert sorted(rows_of_16["tokens"][inside].tolist()) == sorted(chain(*tokens))


def test_a_function_collates_and_its_batches_are_transformed(corpus: Corpus) -> None:
    def lengths(batch: pa.RecordBatch) -> list[int]:
        return [len(text) for text in batch["text"].to_pylist()]

    loader = Loader(corpus, 12, collate=lengths, transform=max)
    wanted = [max(len(f"row {row} " * (row % 4)) for row in rows) for rows in promised(loader.order, 12)]
    assert list(loader) == wanted


def test_rows_of_arrow_batches_are_transformed(corpus: Corpus) -> None:
    def decode(row: dict[str, Any]) -> dict[str, Any]:
        return {"row": row["row"], "sum": row["tokens"].sum(), "text": row["text"].upper()}

    loader = Loader(corpus, 12, collate="arrow", transform=decode, per_row=True, workers=2)
    for batch, rows in zip(loader, promised(loader.order, 12), strict=True):
        assert batch["row"].tolist() == rows
        assert batch["sum"].tolist() == [sum(tokens_of(row)) for row in rows]
        assert batch["text"] == [f"ROW {row} " * (row % 4) for row in rows]


def test_fixed_columns_come_as_record_batches_too_from_zarr() -> None:
    with memory_corpus(100, 16, 2) as zarr:
        loader = Loader(zarr, 12, collate="arrow")
        for batch, rows in zip(loader, promised(loader.order, 12), strict=True):
            assert batch.schema.equals(zarr.schema)
            assert batch["row"].to_pylist() == rows
        assert isinstance(next(iter(Loader(zarr, 12, collate="pad"))), dict)


def test_state_goes_on_where_it_was_taken(corpus: Corpus) -> None:
    loader = Loader(corpus, 12, collate="arrow", transform=lambda batch: batch["row"].to_pylist(), workers=2)
    wanted = promised(loader.order, 12)
    batches = iter(loader)
    assert [next(batches) for _ in range(5)] == wanted[:5]
    fresh = Loader(corpus, 12, collate=lambda batch: batch["row"].to_pylist())
    fresh.load_state_dict(loader.state_dict())
    assert list(fresh) == wanted[5:]
    batches.close()  # type: ignore[attr-defined]


def test_nulls_reach_arrow_batches() -> None:
    rows = pa.table({"n": pa.array([None if n % 3 else n for n in range(64)], pa.int32())})
    with memory_tier() as tier:
        made = ingest(rows, tier, "c", format="arrow", block_rows=8, progress=False)
        found = pa.Table.from_batches(list(Loader(made, 8, collate="arrow", shuffle="none", lanes=1)))
    assert found["n"].to_pylist() == rows["n"].to_pylist()


@pytest.fixture
def staged(tmp_path: Path) -> Corpus:
    lake, disk = open_tier(tmp_path / "lake", "lake"), open_tier(tmp_path / "disk", "disk")
    made = ingest(table(), lake, "c", block_rows=8, shard_size="4KiB", progress=False)
    plan_move(made, disk).run(progress=False)
    return made.at(disk)


@pytest.mark.parametrize("cached", [False, True])
def test_damaged_blocks_are_healed_and_told(staged: Corpus, tmp_path: Path, cached: bool) -> None:
    file = Path(staged.tier.url, staged.key(staged.manifest["key"][1].as_py()))
    good = file.read_bytes()
    start, stop = staged.manifest["block_offsets"][1].as_py()[:2]
    middle = (start + stop) // 2
    file.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    cache = NodeCache(tmp_path / "cache", "1MiB") if cached else None
    loader = Loader(staged, 8, collate="arrow", cache=cache)
    found = sorted(row for batch in loader for row in batch["row"].to_pylist())
    assert found == sorted(chain(*promised(loader.order, 8)))
    assert loader.stats.damaged == [("disk", str(file.relative_to(staged.tier.url)))]
    assert file.read_bytes() == good
    if cache is not None:
        list(loader)
        assert loader.stats.hit_ratio == 1.0
        cache.close()


def test_damage_without_a_good_copy_is_an_error_and_later_loops_work(tmp_path: Path) -> None:
    made = ingest(table(), open_tier(tmp_path), "c", block_rows=8, shard_size="4KiB", progress=False)
    file = Path(tmp_path, made.key(made.manifest["key"][0].as_py()))
    good = file.read_bytes()
    file.write_bytes(good[:4200] + bytes(100) + good[4300:])
    loader = Loader(made, 8, collate="arrow", prefetch=2)
    with pytest.raises(Corrupt, match="no good copy"):
        list(loader)
    file.write_bytes(good)
    assert sum(batch.num_rows for batch in loader) == ROWS


def test_ragged_columns_want_a_choice_and_a_device_takes_none(corpus: Corpus) -> None:
    with pytest.raises(UsageError, match=r"'tokens' of type list.*no fixed shape.*collate='arrow'"):
        Loader(corpus, 8)
    with pytest.raises(UsageError, match=r"'meta' of type struct.*cannot be padded"):
        Loader(corpus, 8, collate="pad")
    with pytest.raises(UsageError, match="collate gives no batches on device 'cuda:0'"):
        Loader(corpus, 8, collate="arrow", device="cuda:0")
    with memory_tier() as tier:
        zarr = make_corpus(tier, 64, 8, 2)
        with pytest.raises(UsageError, match="collate = 'stack'"):
            Loader(zarr, 8, collate="stack")


@pytest.mark.parametrize(
    "options",
    [
        {"collate": "arrow"},
        {"collate": "pad"},
        {"collate": "pack"},
        {"collate": Pack(length=16)},
        {"collate": lambda batch: batch.num_rows},
        {"collate": "pad", "transform": dict, "per_row": True},
    ],
)
@pytest.mark.parametrize("format_", ["arrow", "zarr"])
def test_last_batch_without_rows_for_this_rank_is_an_empty_one(
    tmp_path: Path, format_: str, options: dict[str, Any]
) -> None:
    """Else its epoch could never end, and all other ranks would wait for it."""
    tokens: Any = {"x": np.arange(33 * 4).reshape(33, 4)}
    if format_ == "arrow":
        tokens = pa.table({"x": pa.array([[i] * (i % 5) for i in range(33)], pa.list_(pa.int32()))})
    elif options["collate"] != "arrow":
        options = {"transform": dict, "per_row": True}
    tier = open_tier(tmp_path)
    corpus = ingest(tokens, tier, "c", format=format_, shard_size=16384, block_rows=8, progress=False)
    for rank in (0, 1):
        loader = Loader(corpus, 4, drop_last=False, rank=rank, world_size=2, lanes=8, **options)
        for epoch in range(2):
            batches = list(loader)
            assert len(batches) == 5
            assert loader.stats.rows == 16 + rank
            assert loader.state_dict()["epoch"] == epoch + 1
