"""Throttles: exact in the long run, shared by the processes of a node, nothing stale."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiering.corpora import python
from tests.tiering.stores.wrapper_tools import Clock, Scripted
from tiering.errors import ConfigError, Unavailable
from tiering.stores.memory import MemoryStore
from tiering.stores.wrappers import Throttle
from tiering.stores.wrappers.throttle import BURST_SECONDS, Meter, boot_seconds, runtime_folder


def starts(
    meters: Sequence[Meter], clock: Clock, transfers: Sequence[tuple[int, int, float]]
) -> list[tuple[float, int]]:
    """When each of `transfers` (whose meter, bytes, seconds since the one before) starts, and its bytes."""
    found = []
    for number, nbytes, gap in transfers:
        clock.now += gap
        found.append((clock.now + meters[number % len(meters)].reserve(nbytes, 0), nbytes))
    return sorted(found)


transfers = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3000), st.one_of(st.just(0.0), st.floats(0, 5))), max_size=40
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(transfers, st.integers(100, 2000))
def test_throttle_no_window_holds_more_than_rate_and_burst(
    tmp_path: Path, transfers: list[tuple[int, int, float]], rate: int
) -> None:
    path = tmp_path / "meter"
    path.unlink(missing_ok=True)
    clock = Clock(0.0)
    meters = [Meter(path, rate, None, clock) for _ in range(3)]  # as of three processes
    found = starts(meters, clock, transfers)
    burst = max(rate * BURST_SECONDS, max((nbytes for _, nbytes in found), default=0))
    for first, (begin, _) in enumerate(found):
        total = 0
        for end, nbytes in found[first:]:
            total += nbytes
            assert total <= rate * (end - begin) + burst + 1e-6 * rate
    for meter in meters:
        meter.close()


def test_throttle_is_exact_in_the_long_run(tmp_path: Path) -> None:
    clock = Clock()
    store = Throttle(Scripted(), 1000, None, "x", folder=tmp_path, clock=clock, sleep=clock.sleep)
    began = clock.now
    for i in range(500):
        store.write(f"{i % 7}", [bytes(137 * (i % 11))])
    total = sum(137 * (i % 11) for i in range(500))
    assert clock.now - began == pytest.approx(total / 1000 - BURST_SECONDS)
    store.close()


def test_throttle_large_transfer_pays_before_it_starts(tmp_path: Path) -> None:
    clock = Clock()
    store = Throttle(MemoryStore("m"), 1000, None, "x", folder=tmp_path, clock=clock, sleep=clock.sleep)
    store.write("k", [bytes(5000)])
    assert clock.slept == [pytest.approx(4.0)]  # but for a second's burst
    store.read_into("k", 0, memoryview(bytearray(500)))
    store.read("k")
    assert clock.slept[1:] == [pytest.approx(0.5), pytest.approx(5.0)]
    store.close()


def test_throttle_counts_requests_of_every_call(tmp_path: Path) -> None:
    clock = Clock()
    inner = Scripted()
    store = Throttle(inner, None, 2, "x", folder=tmp_path, clock=clock, sleep=clock.sleep)
    store.write("k", [b"v"])
    store.exists("k")
    assert clock.slept == []
    for call in (
        lambda: store.stat("k"),
        lambda: store.children(),
        lambda: store.delete("l"),
        lambda: list(store.list()),
        lambda: store.locate("k"),
        lambda: store.sweep(),
        lambda: store.free_bytes(),
    ):
        call()
    assert clock.slept == [pytest.approx(0.5)] * 7
    store.read("k")  # asks for the size first
    assert clock.slept[7:] == [pytest.approx(0.5)] * 2
    store.close()


def test_throttle_counts_pages_of_a_listing_and_pieces_of_an_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiering.stores.wrappers.throttle.LISTED_PER_REQUEST", 3)
    monkeypatch.setattr("tiering.stores.wrappers.throttle.REQUEST_BYTES", 10)
    monkeypatch.setattr(MemoryStore, "kind", "object")
    clock = Clock()
    store = Throttle(MemoryStore("m"), None, 1, "x", folder=tmp_path, clock=clock, sleep=clock.sleep)
    store.write("k", [bytes(31)])
    assert clock.slept == [pytest.approx(3.0)]
    for i in range(6):
        store.inner.write(str(i), [b"v"])
    assert len(list(store.list())) == 7
    assert clock.slept[1:] == [pytest.approx(1.0)] * 3
    store.close()


def test_throttle_of_one_place_is_one_and_of_another_another(tmp_path: Path) -> None:
    clock = Clock()

    def make(place: str) -> Throttle:
        return Throttle(MemoryStore("m"), 1000, None, place, folder=tmp_path, clock=clock, sleep=clock.sleep)

    one, same, other = make("s3://a"), make("s3://a"), make("s3://b")
    one.write("k", [bytes(1000)])
    other.write("k", [bytes(1000)])
    assert clock.slept == []
    same.write("k", [bytes(1000)])
    assert clock.slept == [pytest.approx(1.0)]
    for store in (one, same, other):
        store.close()


@pytest.mark.parametrize(
    "damage",
    [b"", b"x", b"\xff" * 28, b"\0" * 28, b"\0" * 100],
    ids=["empty", "short", "ones", "zeros", "long"],
)
def test_throttle_damaged_state_starts_anew(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "meter"
    clock = Clock()
    meter = Meter(path, 10, 10, clock)
    meter.reserve(10_000, 10_000)
    assert meter.reserve(1, 0) > 900
    path.write_bytes(damage)
    assert meter.reserve(10, 10) == 0
    assert meter.reserve(10, 0) == pytest.approx(1.0)
    meter.close()


def test_throttle_state_of_a_later_moment_is_of_another_boot(tmp_path: Path) -> None:
    clock = Clock(5000.0)
    meter = Meter(tmp_path / "meter", 10, None, clock)
    meter.reserve(10_000, 0)
    clock.now = 20.0
    assert meter.reserve(10, 0) == 0
    meter.close()


def test_throttle_state_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = runtime_folder()
    assert folder == tmp_path / "tiering"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    Throttle(MemoryStore("m"), 1000, None, "s3://secret-bucket").close()
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "secret" not in file.name
    folder.chmod(0o755)
    with pytest.raises(ConfigError, match="not a folder of this user alone"):
        runtime_folder()
    folder.chmod(0o700)
    file.unlink()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="XDG_RUNTIME_DIR"):
        runtime_folder()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="XDG_RUNTIME_DIR"):
        runtime_folder()
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert runtime_folder() == tmp_path / f"tiering-{os.getuid()}"


RESERVE = """
import os, signal, sys
from pathlib import Path
from tiering.stores.wrappers.throttle import Meter
meter = Meter(Path(sys.argv[1]), 100, None)
for _ in range(int(sys.argv[2])):
    meter.reserve(1000, 0)
if sys.argv[3] == "die":
    import fcntl
    fcntl.flock(meter._fd, fcntl.LOCK_EX)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_throttle_is_shared_by_processes_and_survives_their_death(tmp_path: Path) -> None:
    path = tmp_path / "meter"
    began = boot_seconds()
    with python(RESERVE, path, 30, "live") as one, python(RESERVE, path, 20, "die") as two:
        assert (one.wait(60), two.wait(60)) == (0, -9)
    meter = Meter(path, 100, None)
    owed_seconds = meter.reserve(0, 0)  # returns at all: the lock died with its owner
    assert 500 - 2 * BURST_SECONDS - (boot_seconds() - began) <= owed_seconds <= 500
    meter.close()


def test_throttle_that_is_closed_leaves_files_of_others_alone(tmp_path: Path) -> None:
    throttle = Throttle(MemoryStore("m"), 1000, None, "s3://bucket", folder=tmp_path)
    throttle.close()
    with (tmp_path / "other").open("wb") as other:  # has the number that the meter's file had
        throttle.close()
        with pytest.raises(Unavailable, match=r"meter .* is closed.*Open the tier again"):
            throttle.stat("k")
        other.write(b"as it was")
    assert (tmp_path / "other").read_bytes() == b"as it was"


def test_throttle_is_shared_by_threads(tmp_path: Path) -> None:
    clock = Clock()
    meter = Meter(tmp_path / "meter", 100, None, clock)
    threads = [threading.Thread(target=lambda: [meter.reserve(10, 0) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.reserve(0, 0) == pytest.approx(80 - BURST_SECONDS)
    meter.close()
