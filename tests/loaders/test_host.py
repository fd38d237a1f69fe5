"""The host feed over a file tier: rows straight to their places, whatever is cut, changed or damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders import Loader
from loaders.host import batches_ahead
from policies import Order
from tests.corpora import promised
from tiering import Corpus, ingest, open_tier
from tiering.errors import Corrupt
from tiering.stores import file_kept
from tiering.stores.scatter import Scatter

ROWS, BLOCK_ROWS = 300, 12
WIDTH = 160  # values of two bytes: long enough to be read straight to their places


def wide(rows: Any) -> np.ndarray[Any, Any]:
    return (np.asarray(rows)[:, None] * 3 + np.arange(WIDTH)).astype(np.uint16)


def make(folder: Path, **options: Any) -> Corpus:
    """300 rows in blocks of 12, four blocks a shard."""
    data = {"row": np.arange(ROWS), "wide": wide(np.arange(ROWS))}
    tier = open_tier(folder, "disk")
    return ingest(
        data, tier, "c", shard_size=4 * BLOCK_ROWS * 400, block_rows=BLOCK_ROWS, progress=False, **options
    )


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Corpus]:
    folder = tmp_path_factory.mktemp("host")
    return {
        "plain": make(folder / "plain"),
        "zstd": make(folder / "zstd", codec="zstd:1"),
        "arrow": make(folder / "arrow", format="arrow"),
    }


@pytest.fixture(autouse=True)
def _old_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are trusted at once, not when they have been left alone for two seconds."""
    monkeypatch.setattr(file_kept, "_SETTLED_NS", 0)


@pytest.fixture
def scattered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bytes of each read that went straight to its places."""
    read, done = Scatter.read, []

    def counting(self: Scatter, fd: int, offset: int) -> int:
        done.append(self.nbytes)
        return read(self, fd, offset)

    monkeypatch.setattr(Scatter, "read", counting)
    return done


def check_epoch(loader: Loader, epoch: int, drop_last: bool = True) -> None:
    wanted = promised(loader.order, loader.batch_size, epoch=epoch, drop_last=drop_last)
    found = list(loader)
    assert [batch["row"].tolist() for batch in found] == wanted
    for batch, rows in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(batch["wide"], wide(rows))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_epoch_is_that_of_the_order(corpora: dict[str, Corpus], data: st.DataObject) -> None:
    lanes = data.draw(st.sampled_from([1, 2, 4, 12]))
    drop_last = data.draw(st.booleans())
    loader = Loader(
        corpora[data.draw(st.sampled_from(["plain", "plain", "zstd", "arrow"]))],
        lanes * data.draw(st.integers(1, 9)),
        lanes=lanes,
        shuffle=data.draw(st.sampled_from(["window", "none", "full"])),
        window_blocks=data.draw(st.sampled_from([None, 1, 3])),
        affinity=data.draw(st.sampled_from(["global", "lane"])),
        seed=data.draw(st.integers(0, 2**64 - 1)),
        drop_last=drop_last,
        prefetch=data.draw(st.sampled_from([1, 3, "auto"])),
        verify=data.draw(st.sampled_from(["first", "first", "always"])),
    )
    for epoch in range(2):
        check_epoch(loader, epoch, drop_last)


def test_blocks_that_were_found_right_are_read_straight_to_their_places(
    corpora: dict[str, Corpus], scattered: list[int]
) -> None:
    loader = Loader(corpora["plain"], 30, lanes=2)
    check_epoch(loader, 0)
    assert not scattered
    check_epoch(loader, 1)
    assert sum(scattered) == ROWS * WIDTH * 2
    assert loader.stats.bytes_needed - sum(scattered) < ROWS * 8 + 30 * BLOCK_ROWS * 8


def test_a_full_shuffle_reads_the_rows_and_not_their_blocks(
    corpora: dict[str, Corpus], scattered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loaders.host._RUN_BYTES", 0)
    loader = Loader(corpora["plain"], 30, lanes=2, shuffle="full", columns=["wide"])
    for _ in range(2):
        scattered.clear()
        for _batch in loader:
            pass
    assert sum(scattered) == loader.stats.bytes_needed == ROWS * WIDTH * 2


@pytest.mark.parametrize("name", ["zstd", "arrow"])
def test_other_blocks_are_read_whole(corpora: dict[str, Corpus], scattered: list[int], name: str) -> None:
    loader = Loader(corpora[name], 30, lanes=2)
    for epoch in range(2):
        check_epoch(loader, epoch)
    assert not scattered


def test_verify_always_reads_whole_blocks(corpora: dict[str, Corpus], scattered: list[int]) -> None:
    loader = Loader(corpora["plain"], 30, lanes=2, verify="always")
    for epoch in range(2):
        check_epoch(loader, epoch)
    assert not scattered


def test_a_file_that_changed_is_checked_anew(tmp_path: Path) -> None:
    corpus = make(tmp_path)
    loader = Loader(corpus, 30, lanes=2)
    check_epoch(loader, 0)
    (shard,) = [path for path in tmp_path.rglob("*") if path.is_file() and path.match("c/wide/c/0/0")]
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(Corrupt, match="no good copy"):
        check_epoch(loader, 1)


def test_a_file_that_was_cut_short_is_an_error_and_no_signal(tmp_path: Path) -> None:
    corpus = make(tmp_path)
    loader = Loader(corpus, 30, lanes=2)
    check_epoch(loader, 0)
    for shard in tmp_path.rglob("c/wide/c/0/0"):
        with shard.open("r+b") as file:
            file.truncate(100)
    with pytest.raises(Corrupt, match="no good copy"):
        check_epoch(loader, 1)


def test_batches_may_be_kept(corpora: dict[str, Corpus]) -> None:
    loader = Loader(corpora["plain"], 10, lanes=2)
    kept = [(batch["row"].tolist(), batch["wide"]) for _ in range(3) for batch in loader]
    assert len({id(array) for _, array in kept}) == 90
    for rows, array in kept:
        np.testing.assert_array_equal(array, wide(rows))


def test_memory_of_batches_is_that_of_two_windows(corpora: dict[str, Corpus]) -> None:
    loader = Loader(corpora["plain"], 8, lanes=2, window_blocks=2)
    seen = set()
    for _ in range(4):
        for batch in loader:
            seen.add(batch["wide"].__array_interface__["data"][0])
    window_batches = 2 * 2 * BLOCK_ROWS // 4
    assert batches_ahead(loader.order, 4) == window_batches + 2
    assert len(seen) <= window_batches + 2 + 3  # those this loop refers to, and one that is looked at


@pytest.mark.parametrize(
    ("order", "step", "ahead"),
    [
        (Order([64], 4, lanes=1, window_blocks=2), 4, 6),
        (Order([64], 4, lanes=1, window_blocks=10**15), 4, 18),
        (Order([64], 4, lanes=4, window_blocks=1), 3, 5),
        (Order([64], 4, lanes=1, mode="full", window_blocks=8), 4, 6),
    ],
)
def test_batches_ahead_are_two_windows_and_two_more(order: Order, step: int, ahead: int) -> None:
    assert batches_ahead(order, step) == ahead
