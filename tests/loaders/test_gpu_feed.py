"""Batches copied to a device, on one without a GPU whose copies come as late as they may."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loaders import Loader, Mixture, gpu
from loaders.gpu_feed import MOST_COPYING, TOGETHER, GpuFeed
from loaders.host import HostFeed
from tests.gpu.host_device import COLUMNS, ROWS, HostDevice, assert_same, make
from tiering import Corpus, open_tier


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostDevice]:
    found = HostDevice(compat=True)
    monkeypatch.setattr(gpu, "open_device", lambda name: found)
    yield found
    assert not found.let_go_early


def loaders(corpus: Corpus, **options: Any) -> tuple[Loader, Loader]:
    """One on the host, one on the device."""
    options = {"lanes": 4, "group_shards": 2, "window_blocks": 1, "drop_last": False} | options
    return Loader(corpus, 32, **options), Loader(corpus, 32, device="cuda:0", **options)


def compare(expected: Iterator[Any], found: list[Any]) -> int:
    rows = 0
    for left, right in zip(expected, found, strict=True):
        assert_same(left, right)
        rows += len(left["label"])
    return rows


@pytest.mark.parametrize(("form", "codec"), [("zarr", None), ("zarr", "zstd:1"), ("arrow", None)])
@pytest.mark.parametrize("ready", [None, False])
def test_batches_are_those_of_the_host_however_late_the_copies_are(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: HostDevice,
    form: str,
    codec: str | None,
    ready: bool | None,
) -> None:
    if ready is not None:  # as if the next batch were never read in time
        monkeypatch.setattr(HostFeed, "is_ready", lambda feed, stop: ready)
    corpus = make(open_tier(tmp_path / "lake", name="lake"), form, codec)
    host, other = loaders(corpus)
    for _epoch in range(3):
        found = list(other)
        device.copies[-1].synchronize()
        assert compare(iter(host), found) == ROWS
    assert sum(copy.batches for copy in device.copies) == 3 * len(host)
    assert device.locked >= 3 * 2  # arrays of each column


def test_the_next_batch_is_copied_beside_the_step_on_this_one(
    tmp_path: Path, device: HostDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostFeed, "is_ready", lambda feed, stop: True)
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    _, loader = loaders(corpus)
    batches = iter(loader)
    copied = []
    for _ in range(5):  # so that nothing waits for the last copy yet
        next(batches)
        copied.append(sum(copy.batches for copy in device.copies))
    assert copied == [1 + TOGETHER] * 3 + [1 + 2 * TOGETHER] * 2
    batches.close()  # type: ignore[attr-defined]
    assert all(copy.done for copy in device.copies)  # nothing reads memory that others may fill


def test_the_host_waits_for_a_gpu_that_lags_behind(tmp_path: Path, device: HostDevice) -> None:
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    _, loader = loaders(corpus)
    most = 0
    for _batch in loader:
        most = max(most, sum(not copy.done for copy in device.copies))
    assert MOST_COPYING - 1 <= most <= MOST_COPYING


def test_a_training_that_changes_its_stream_gets_arrays_of_that_stream(
    tmp_path: Path, device: HostDevice
) -> None:
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    host, loader = loaders(corpus)
    batches, found = iter(loader), []
    for number in range(len(host)):
        device.current = number // 3
        found.append(next(batches))
        for array in found[-1].values():
            stream, copy = device.made_on[id(array)]
            assert stream == device.current
            assert (stream, id(copy)) in device.waits
    assert next(batches, None) is None
    device.copies[-1].synchronize()
    assert compare(iter(host), found) == ROWS


def test_a_mixture_has_its_batches_on_the_device(tmp_path: Path, device: HostDevice) -> None:
    corpora = {name: make(open_tier(tmp_path / name, name=name)) for name in ("one", "two")}
    options: dict[str, Any] = {"lanes": 4, "window_blocks": 1, "steps": 60, "source": True}
    host = Mixture(corpora, {"one": 2, "two": 1}, 32, **options)
    other = Mixture(corpora, {"one": 2, "two": 1}, 32, device="cuda:0", **options)
    found = list(other)
    device.copies[-1].synchronize()
    assert compare(iter(host), found) == 60 * 32
    assert sum(copy.batches for copy in device.copies) == 60


def test_a_state_counts_no_batch_that_was_only_copied(tmp_path: Path, device: HostDevice) -> None:
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    host, loader = loaders(corpus)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    _, other = loaders(corpus)
    other.load_state_dict(loader.state_dict())
    rest = list(other)
    device.copies[-1].synchronize()
    compare(iter(list(host)[5:]), rest)


def test_a_forked_child_waits_for_no_copy(
    tmp_path: Path, device: HostDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make(open_tier(tmp_path / "lake", name="lake"))
    _, loader = loaders(corpus)
    batches = iter(loader)
    next(batches)
    feed = loader._feed
    assert isinstance(feed, GpuFeed)
    process = os.getpid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: process + 1)
        feed.close()
    assert not device.copies[0].done
    del batches
    gc.collect()
    device.let_go_early = 0  # by the child, whose memory it is not


def test_why_the_host_reads_is_told_once(
    tmp_path: Path, device: HostDevice, caplog: pytest.LogCaptureFixture
) -> None:
    assert set(COLUMNS) == {"tokens", "label", "mask"}
    for codec, why in ((None, "no GPUDirect Storage"), ("zstd:1", "compressed (zstd:1)")):
        caplog.clear()
        _, loader = loaders(make(open_tier(tmp_path / f"lake-{codec}", name="lake"), codec=codec))
        for _epoch in range(2):
            for _batch in loader:
                pass
        told = [record.getMessage() for record in caplog.records if record.name == "loaders.gpu"]
        assert len(told) == 1
        assert why in told[0]
