"""Room on a tier: reservations of other processes count, and the capacity is never exceeded."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.servers import BUCKET, Endpoint
from tests.tiering.corpora import ENV, dead, flip, python, shard_keys, small, wrapped
from tests.tiering.test_claim import elsewhere
from tiering import Tier, catalog, ingest, open_corpus, open_tier, plan_move, process, release, verify
from tiering import room as room_module
from tiering.errors import CapacityExceeded, Conflict, FormatError
from tiering.keys import CONTROL_BYTES, is_control
from tiering.process import ProcessId
from tiering.reservation import FOLDER, Reservation, reservations
from tiering.room import adding, check_room, room_held, usage
from tiering.stores.wrappers import Wrapper

RACERS = 6
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}


def put(tier: Tier, number: int, nbytes: int, owner: ProcessId, corpus: str = "other") -> None:
    one = Reservation(number, corpus, nbytes, owner, "token")
    tier.store.write(f"{FOLDER}/{number:08d}.json", [one.encode()])


def data_bytes(tier: Tier) -> int:
    return sum(info.nbytes for info in tier.store.list() if not is_control(info.key))


def needed(nbytes: int) -> Callable[[Mapping[str, int]], int]:
    return adding({"web/x": nbytes})


def test_room_that_is_held_is_given_back_and_its_number_stays(make_tier: Callable[..., Tier]) -> None:
    tier = make_tier("disk", capacity=100)
    for number in (1, 2, 3):
        with room_held(tier, "web", needed(60)):
            assert [one.counts for one in reservations(tier.store).all()][-1:] == [True]
            assert usage(tier).reserved_bytes == 60
            with pytest.raises(CapacityExceeded, match="needs 41 more bytes, there is room for 40, 60 bytes"):
                room_held(tier, "more", adding({"more/x": 41})).__enter__()
            with room_held(tier, "more", adding({"more/x": 40})):
                assert usage(tier).free_bytes == 0
        assert usage(tier).reserved_bytes == 0
        assert reservations(tier.store).numbers() == [2 * number - 1, 2 * number]


@pytest.mark.parametrize(
    ("owner", "counts"),
    [(elsewhere, True), (dead, False), (process.current, False)],
    ids=["elsewhere", "dead", "ours"],
)
def test_reservation_counts_until_its_process_is_known_to_be_dead(
    make_tier: Callable[..., Tier], owner: Callable[[], ProcessId], counts: bool
) -> None:
    tier = make_tier("disk", capacity=100)
    put(tier, 1, 60, owner())
    assert usage(tier).reserved_bytes == (60 if counts else 0)
    if counts:
        with pytest.raises(CapacityExceeded):
            check_room(tier, "web", needed(50), 50)
    else:
        with room_held(tier, "web", needed(50)):
            assert reservations(tier.store).numbers() == [2]


def test_reservation_counts_what_is_unwritten_of_it(make_tier: Callable[..., Tier]) -> None:
    tier = make_tier("disk", capacity=100)
    put(tier, 1, 60, elsewhere())
    tier.store.write("other/c/0", [b"x" * 50])
    tier.store.write("alone", [b"x" * 7])
    found = usage(tier)
    assert (found.used_bytes, found.reserved_bytes, found.free_bytes) == (57, 10, 33)
    tier.store.write("other/c/1", [b"x" * 20])  # more than it said
    assert usage(tier).reserved_bytes == 0


def test_reservations_of_one_corpus_count_once(make_tier: Callable[..., Tier]) -> None:
    tier = make_tier("disk", capacity=100)
    put(tier, 1, 60, elsewhere(), "web")
    put(tier, 2, 80, elsewhere(), "web")
    assert usage(tier).reserved_bytes == 80
    with room_held(tier, "web", needed(100)):
        assert usage(tier).free_bytes == 0


def test_hold_grows_and_stays_as_it_was_where_it_cannot(make_tier: Callable[..., Tier]) -> None:
    tier = make_tier("disk", capacity=100)
    with room_held(tier, "web", needed(10)) as hold:
        hold.grow(needed(90))
        with pytest.raises(CapacityExceeded, match="needs 11 more bytes, there is room for 10"):
            hold.grow(needed(101))
        assert usage(tier).reserved_bytes == 90
    assert usage(tier).reserved_bytes == 0


class Between(Wrapper):
    """Does something right after a listing of the whole tier."""

    then: Any = None

    def list(self, prefix: str = "") -> Any:
        found = list(super().list(prefix))
        if not prefix and self.then:
            then, self.then = self.then, None
            then()
        return iter(found)


def test_room_that_went_between_look_and_reservation_is_seen(make_tier: Callable[..., Tier]) -> None:
    """Another one comes, writes and ends after our listing: only its number tells of it."""
    tier = make_tier("disk", capacity=100)

    def other() -> None:
        with room_held(twin, "other", adding({"other/x": 60})):
            twin.store.write("other/x", [b"x" * 60])

    twin = open_tier(tier.url, "twin", capacity=100)
    with wrapped(tier, Between(tier.store)) as store:
        store.then = other
        with pytest.raises(CapacityExceeded, match="there is room for 40"):
            room_held(tier, "web", needed(50)).__enter__()
    twin.close()


def test_room_of_the_medium_is_less_what_others_have_not_written_yet(lake: Tier) -> None:
    class Small(Wrapper):
        def free_bytes(self) -> int | None:
            return 100

    put(lake, 1, 60, elsewhere())
    lake.store.write("other/c/0", [b"x" * 20])
    with wrapped(lake, Small(lake.store)):
        assert usage(lake).free_bytes == 60
        with pytest.raises(CapacityExceeded, match="there is room for 60"):
            check_room(lake, "web", needed(61), 1)
        check_room(lake, "web", needed(60), 1)


def test_tier_whose_limit_nobody_knows_has_no_reservations(memory: Tier) -> None:
    with room_held(memory, "web", needed(1 << 40)) as hold:
        hold.grow(needed(1 << 50))
        assert list(memory.store.list()) == []
    assert usage(memory).free_bytes is None


@pytest.mark.parametrize("fields", [{}, {"bytes": -1}, {"bytes": "1"}, {"corpus": "../x"}])
def test_reservation_that_is_none_is_named(make_tier: Callable[..., Tier], fields: dict[str, Any]) -> None:
    tier = make_tier("disk", capacity=100)
    good = json.loads(Reservation(1, "web", 1, process.current(), "t").encode())
    tier.store.write(f"{FOLDER}/00000001.json", [json.dumps({**good, **fields}).encode() if fields else b"{"])
    with pytest.raises(FormatError, match="00000001") as caught:
        usage(tier)
    assert "--on disk --reservation 1 --holder unknown" in (caught.value.hint or "")
    reservations(tier.store).unlock(1, "unknown")
    assert [one.released for one in reservations(tier.store).all()] == [True]


def test_usage_above_high_water_says_what_must_go(
    make_tier: Callable[..., Tier], caplog: pytest.LogCaptureFixture
) -> None:
    tier = make_tier("disk", capacity=1000)
    tier.store.write("a", [b"x" * 940])
    assert (usage(tier).over_high, usage(tier).excess_bytes) == (False, 0)
    for _lap in range(2):
        with room_held(tier, "web", needed(20)):
            found = usage(tier)
    assert (found.over_high, found.excess_bytes) == (True, 960 - 850)
    told = [record.message for record in caplog.records]
    assert told == [
        "tier disk passes its high water: 960 of 1000 bytes."
        " Release or forget something: 'tiering usage disk'"
    ]
    room_module._warned.discard(tier)


def test_control_objects_are_let_through_beyond_the_capacity() -> None:
    tier = open_tier(f"memory://{secrets.token_hex(4)}", "full", capacity=10)
    tier.store.write("data", [b"x" * 10])
    with pytest.raises(CapacityExceeded):
        tier.store.write("more", [b"x"])
    tier.store.write("web/.tiering/claims/00000001.json", [bytes(CONTROL_BYTES)])
    assert usage(tier).free_bytes == 0
    with pytest.raises(CapacityExceeded):
        tier.store.write("web/.tiering/HEAD", [b"x"])
    tier.store.delete("web/.tiering/claims/00000001.json")
    tier.store.write("web/.tiering/HEAD", [b"x"])
    tier.store.delete("data")
    tier.store.write("data", [b"x" * 10])


def test_release_is_proven_by_a_tier_whose_capacity_is_used_up(memory: Tier) -> None:
    corpus = small(memory)
    full = open_tier(f"memory://{secrets.token_hex(4)}", "full", capacity=1 << 20)
    plan_move(corpus, full).run()
    full.store.write("ballast", [bytes(usage(full).free_bytes or 0)])
    assert usage(full).free_bytes == 0
    assert release(corpus, memory, copies=[full]) > 0
    assert verify(open_corpus(full, "web")).ok


def test_move_holds_room_for_its_life_and_repeats_need_none(
    lake: Tier, make_tier: Callable[..., Tier]
) -> None:
    corpus = small(lake)
    seen: list[int] = []

    class Looking(Wrapper):
        def write(self, key: str, *arguments: Any, **options: Any) -> Any:
            if not is_control(key):
                seen.append(usage(twin).used_bytes + usage(twin).reserved_bytes)
            return super().write(key, *arguments, **options)

    disk = make_tier("disk", capacity=1 << 20)
    twin = open_tier(disk.url, "twin", capacity=1 << 20)
    with wrapped(disk, Looking(disk.store)):
        plan_move(corpus, disk).run()
    assert set(seen) == {data_bytes(disk)}
    assert usage(disk).reserved_bytes == 0
    full = make_tier("disk", capacity=data_bytes(disk))
    flip(full, shard_keys(corpus)[0])
    plan_move(corpus, full).run()
    assert verify(corpus, full).ok
    twin.close()


@pytest.mark.parametrize("codec", [None, "zstd"])
def test_ingest_is_never_beyond_the_capacity(make_tier: Callable[..., Tier], codec: str | None) -> None:
    rows = {"a": np.random.default_rng(1).integers(0, 16, (64, 4096), np.uint8)}
    options: dict[str, Any] = {"shard_size": 16384, "block_rows": 1, "codec": codec}
    exact = data_bytes(ingest(rows, make_tier("model"), "web", **options).tier)

    class Watching(Wrapper):
        def write(self, *arguments: Any, **settings: Any) -> Any:
            info = super().write(*arguments, **settings)
            assert data_bytes(twin) <= exact
            return info

    disk = make_tier("disk", capacity=exact)
    twin = open_tier(disk.url, "twin")
    with wrapped(disk, Watching(disk.store)):
        if codec is None:
            ingest(rows, disk, "web", **options)
        else:  # the last shards are counted as if they could not be compressed
            with pytest.raises(CapacityExceeded, match="more bytes, there is room for"):
                ingest(rows, make_tier("tight", capacity=exact - 5000), "web", **options)
            ingest(rows, make_tier("roomy", capacity=exact + 20_000), "web", **options)
    with pytest.raises(CapacityExceeded, match="more bytes, there is room for"):  # for the manifest
        ingest(rows, make_tier("short", capacity=exact - 100), "web", **options)
    twin.close()


def test_graph_holds_room_too(lake: Tier, make_tier: Callable[..., Tier]) -> None:
    corpus = small(lake)
    disk = make_tier("disk", capacity=1 << 20)
    whole = plan_move(corpus, disk).graph()
    disk.store.write("ballast", [bytes((1 << 20) - corpus.nbytes)])
    with pytest.raises(CapacityExceeded, match="'web' needs"):
        whole.compute(scheduler="synchronous")
    assert not [info for info in disk.store.list("web") if not is_control(info.key)]
    disk.store.delete("ballast")
    assert whole.compute(scheduler="synchronous") == 6


def test_publish_of_a_copy_whose_shards_went_away_is_refused(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    plan = plan_move(corpus, disk)

    class Losing(Wrapper):
        def write(self, key: str, *arguments: Any, **options: Any) -> Any:
            info = super().write(key, *arguments, **options)
            if key == "web/.tiering/claims/00000002.json":  # between the copying task and the last one
                disk.store.inner.delete(shard_keys(corpus)[3])  # type: ignore[attr-defined]
            return info

    whole = plan.graph()
    with (
        wrapped(disk, Losing(disk.store)),
        pytest.raises(Conflict, match="1 shards of corpus 'web' went"),
    ):
        whole.compute(scheduler="synchronous")
    assert not catalog.is_published(disk.store, "web", 1)


RACE = """
import json, os, sys, traceback
from tiering import open_corpus, open_tier, plan_move
from tiering.errors import CapacityExceeded
lake, disk, options, capacity, racers = json.loads(sys.argv[1])
planned, plan_told = os.pipe()
gate, opened = os.pipe()
children = []
for number in range(racers):
    child = os.fork()
    if not child:
        code = 9
        try:
            os.close(opened)
            target = open_tier(disk, "disk", options=options, capacity=capacity)
            plan = plan_move(open_corpus(open_tier(lake), f"c{number}"), target)
            os.write(plan_told, b"x")
            os.read(gate, 1)
            try:
                plan.run(progress=False)
                code = 0
            except CapacityExceeded:
                code = 1
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    children.append(child)
for _ in children:
    os.read(planned, 1)
print("planned", flush=True)
os.close(opened)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""


def race(lake: Tier, disk: Tier, capacity: int) -> list[int]:
    """Let processes that all planned on an empty tier move at once; the tier is looked at meanwhile."""
    arguments = json.dumps([lake.url, disk.url, disk.options, capacity, RACERS])
    words = [sys.executable, "-c", RACE, arguments]
    environment = {**ENV, **os.environ, **ONE_THREAD}
    with subprocess.Popen(words, env=environment, text=True, stdout=subprocess.PIPE) as racers:
        assert racers.stdout is not None
        assert racers.stdout.readline() == "planned\n"
        while racers.poll() is None:
            assert data_bytes(disk) <= capacity
        codes: list[int] = json.loads(racers.stdout.readline())
    return codes


@pytest.mark.parametrize("place", ["file", "moto"])
def test_racing_moves_never_exceed_the_capacity_and_fill_it(
    lake: Tier,
    make_tier: Callable[..., Tier],
    place: str,
    request: pytest.FixtureRequest,
    s3_environment: None,
) -> None:
    for number in range(RACERS):
        small(lake, f"c{number}", seed=number)
    model = make_tier("model")
    plan_move(open_corpus(lake, "c0"), model).run()
    one = data_bytes(model)
    for lap in range(2 if place == "file" else 1):
        if place == "file":
            disk = make_tier(f"disk{lap}")
        else:
            endpoint: Endpoint = request.getfixturevalue("moto_endpoint")
            url = f"s3://{BUCKET}/{secrets.token_hex(4)}"
            disk = open_tier(url, "disk", options=endpoint.options())
        codes = race(lake, disk, 2 * one + one // 2)
        assert sorted(codes) == [0, 0, *[1] * (RACERS - 2)]
        whole = [f"c{number}" for number, code in enumerate(codes) if code == 0]
        assert catalog.corpora(disk.store) == whole
        assert all(verify(open_corpus(disk, name)).ok for name in whole)
        assert data_bytes(disk) <= 2 * one + one // 2
        disk.close()


HOLD = """
import sys
from tiering import open_tier
from tiering.room import adding, room_held
with room_held(open_tier(sys.argv[1], capacity=100), "other", adding({"other/x": 80})):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_reservation_of_a_killed_process_does_not_count(make_tier: Callable[..., Tier]) -> None:
    tier = make_tier("disk", capacity=100)
    Path(tier.url).mkdir()
    with python(HOLD, tier.url) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert usage(tier).reserved_bytes == 80
        with pytest.raises(CapacityExceeded, match="80 bytes are reserved"):
            room_held(tier, "web", needed(50)).__enter__()
        child.kill()
        child.wait()
        assert usage(tier).reserved_bytes == 0
        with room_held(tier, "web", needed(50)):
            assert [one.corpus for one in reservations(tier.store).all()] == ["web"]
