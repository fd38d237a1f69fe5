from __future__ import annotations

import pickle
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pytest

from tests.proxy import proxy
from tests.servers import BUCKET, Endpoint
from tests.tiering.corpora import flip, objects, shard_keys, small, small_arrow
from tiering import MovePlan, Prices, Tier, catalog, ingest, open_corpus, open_tier, plan_move, verify
from tiering import plan as plan_module
from tiering import tier as tier_module
from tiering.errors import CapacityExceeded, Conflict, NotFound, UsageError
from tiering.keys import is_control
from tiering.plan import GET_BYTES, MAX_PARTS, PART_BYTES, PUT_BYTES
from tiering.room import adding, check_room, refuse_foreign
from tiering.stores import object as object_store
from tiering.tier import Speed


def steps(sizes: list[int], actions: list[str]) -> pa.Table:
    keys = [f"k{number}" for number in range(len(sizes))]
    return pa.table({"key": keys, "nbytes": sizes, "digest": keys, "action": actions})


@pytest.fixture
def plan_of(lake: Tier, monkeypatch: pytest.MonkeyPatch) -> Callable[..., MovePlan]:
    """A plan with given steps, between tiers of given prices and with speeds of prime numbers."""
    monkeypatch.setitem(tier_module._SPEEDS, "object", Speed(3.0, 5.0))
    monkeypatch.setitem(tier_module._SPEEDS, "file", Speed(7.0, 11.0))

    def make(
        sizes: list[int], actions: list[str], source: str = "s3://a", target: str = "s3://b", **prices: Any
    ) -> MovePlan:
        corpus = small(lake)
        table = corpus.manifest.slice(0, len(sizes)).set_column(4, "nbytes", pa.array(sizes))
        contents = replace(corpus.contents, table=table)
        tiers = [
            open_tier(url, name, prices=prices.get(name)) for url, name in ((source, "one"), (target, "two"))
        ]
        return MovePlan(replace(corpus, tier=tiers[0], contents=contents), tiers[1], steps(sizes, actions))

    return make


def test_plan_counts_bytes_and_requests_of_objects(plan_of: Callable[..., MovePlan]) -> None:
    plan = plan_of([3 * GET_BYTES + 1, 5, 11 * GET_BYTES, PUT_BYTES + 1], ["copy", "check", "check", "copy"])
    copied = 3 * GET_BYTES + 1 + PUT_BYTES + 1
    assert plan.nbytes == copied
    reads, writes, checks, looks = 4 + 9, 1 + (9 + 2) + 2 + 3, 4 + 1 + 11 + 9, 2 + 1 + 1 + 2 + 2
    assert plan.requests == reads + writes + checks + looks
    assert replace(plan, release=True).requests == reads + writes + 2 * checks + looks + 4 + 2 + 3


def test_plan_of_very_large_shards_counts_the_parts_allowed(
    plan_of: Callable[..., MovePlan],
) -> None:
    plan = plan_of([PART_BYTES * MAX_PARTS, PART_BYTES * MAX_PARTS * 3 + 1], ["copy", "copy"], source="/a")
    assert plan._requests[1] == (MAX_PARTS + 2) + (MAX_PARTS + 2) + 2 + 3


@pytest.mark.usefixtures("s3_environment")
@pytest.mark.parametrize("give_up", [False, True])
def test_plan_counts_the_requests_for_shards_that_are_made(
    moto_endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, give_up: bool
) -> None:
    for module, name in ((plan_module, "PUT_BYTES"), (object_store, "SINGLE_PUT_BYTES")):
        assert getattr(module, name) == 64 << 20
        monkeypatch.setattr(module, name, 9 << 20)
    noise = np.random.default_rng(3).integers(0, 256, (30, 1 << 20), np.uint8)
    with proxy(moto_endpoint) as relay:
        place = f"s3://{BUCKET}/{secrets.token_hex(8)}"
        source, target = (open_tier(f"{place}/{at}", at, options=relay.endpoint.options()) for at in "ab")
        corpus = ingest({"x": noise}, source, "web", shard_size="20MiB", block_rows=1, progress=False)
        assert len(corpus.manifest) == 2  # both are uploaded in parts
        plan = plan_move(corpus, target, release=give_up)
        relay.seen.clear()
        plan.run(progress=False)
        paths = [urlsplit(request.path).path for request in relay.seen]
        source.close()
        target.close()
    made = sum(path.endswith(tuple(corpus.manifest["key"].to_pylist())) for path in paths)
    small_objects = len(corpus.contents.documents) + 3
    looks = len(corpus.manifest)  # at the claim, one for each shard that is written
    assert made == plan.requests - looks - small_objects * (2 if give_up else 1)


def test_plan_counts_one_request_an_object_of_other_tiers(plan_of: Callable[..., MovePlan]) -> None:
    plan = plan_of([3 * GET_BYTES, 5, 7], ["copy", "copy", "check"], "/a", "/b")
    assert plan.requests == 2 + (2 + 2 + 3) + 3 + 2


def test_plan_time_follows_the_slower_tier(plan_of: Callable[..., MovePlan]) -> None:
    plan = plan_of([55, 13], ["copy", "check"], "s3://a", "/b")
    requests = 1 + (1 + 2 + 3) + 2 + 1
    flow = 55 / 5.0
    assert plan.requests == requests
    assert plan.seconds_range == (flow, 4 * flow + requests * 7.0)
    assert plan.seconds == 1.5 * flow + requests * 7.0 / 16
    best, worst = plan.seconds_range
    assert best <= plan.seconds <= worst


def test_plan_money_is_egress_of_the_source_and_the_read_back(plan_of: Callable[..., MovePlan]) -> None:
    one = Prices(storage_gb_month=17, egress_gb=3, get_1000=5000, put_1000=19000)
    two = Prices(storage_gb_month=23, egress_gb=7, get_1000=11000, put_1000=13000)
    sizes = [2_000_000_000, 3_000_000_000]
    plan = plan_of(sizes, ["copy", "check"], one=one, two=two)
    gets = [-(-size // GET_BYTES) for size in sizes]
    puts = -(-sizes[0] // PART_BYTES) + 2 + 2 + 3
    expected = 2 * 3 + gets[0] * 5 + puts * 13 + 5 * 7 + (sum(gets) + 3 + 1) * 11
    assert plan.cost == pytest.approx(expected)
    assert f"${expected:.4f}" in str(plan)
    proof = 5 * 7 + sum(gets) * 11
    assert replace(plan, release=True).cost == pytest.approx(expected + proof)


def test_plan_batches_are_neighbours_of_bounded_bytes(
    plan_of: Callable[..., MovePlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "MIN_BATCH_BYTES", 11)
    monkeypatch.setattr(plan_module, "MAX_BATCH_BYTES", 13)
    sizes = [3, 5, 7, 20, 2, 2, 2, 2, 2, 2, 13]
    plan = plan_of([1], ["copy"])
    plan = replace(plan, steps=steps(sizes, ["copy"] * len(sizes)))
    batches = [batch["nbytes"].to_pylist() for batch in plan.batches()]
    assert batches == [[3, 5], [7], [20], [2, 2, 2, 2, 2], [2], [13]]
    assert len(list(plan.tasks())) == 6


def test_plan_of_a_corpus_says_what_is_there(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    plan = plan_move(corpus, disk)
    assert plan.steps["action"].to_pylist() == ["copy"] * 6
    assert plan.nbytes == corpus.nbytes
    for words in ("move 'web' version 1 from lake to disk", "6 to copy, 0 there to check", "keep the source"):
        assert words in str(plan)
    plan.run()
    disk.store.delete(shard_keys(corpus)[2])
    disk.store.write(shard_keys(corpus)[4], [b"short"])
    flip(disk, shard_keys(corpus)[5])
    again = plan_move(corpus, disk, release=True)
    assert again.steps["action"].to_pylist() == ["check", "check", "copy", "check", "copy", "check"]
    assert "2 to copy, 4 there to check" in str(again)
    assert "release the source" in str(again)


def test_plan_digest_names_what_will_be_done(lake: Tier, disk: Tier, make_tier: Callable[..., Tier]) -> None:
    corpus = small(lake)
    first = plan_move(corpus, disk)
    assert plan_move(open_corpus(lake, "web"), disk).digest == first.digest
    chunked = replace(first, steps=pa.concat_tables([first.steps.slice(0, 2), first.steps.slice(2)]))
    assert chunked.digest == first.digest
    others = [
        plan_move(corpus, disk, release=True),
        plan_move(corpus, make_tier("other")),
        plan_move(small(lake, "web2"), disk),
        replace(first, target=replace(disk, option_items=(("endpoint_url", "x"),))),
        replace(first, steps=first.steps.slice(1)),
    ]
    disk.store.write(f"{shard_keys(corpus)[0]}", [lake.store.read(shard_keys(corpus)[0])])
    disk.store.write("web/.tiering/claims/00000001.json", [b"x"])
    others.append(plan_move(corpus, disk))
    assert len({first.digest, *(plan.digest for plan in others)}) == 1 + len(others)


def test_plan_pickles(lake: Tier, disk: Tier) -> None:
    plan = plan_move(small(lake), disk)
    assert pickle.loads(pickle.dumps(plan)).digest == plan.digest


def test_plan_to_the_same_tier_is_refused(lake: Tier, make_tier: Callable[..., Tier]) -> None:
    corpus = small(lake)
    for target in (lake, replace(lake, name="other")):
        with pytest.raises(UsageError, match=r"corpus 'web' is on tier '\w+' already"):
            plan_move(corpus, target)


def test_plan_onto_another_corpus_of_that_name_is_a_conflict(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    small(disk, seed=9)
    before = objects(disk)
    with pytest.raises(Conflict, match="not the one that was planned for"):
        plan_move(corpus, disk)
    assert objects(disk) == before


def test_plan_onto_foreign_objects_is_a_conflict(lake: Tier, disk: Tier) -> None:
    disk.store.write("web/notes.txt", [b"mine"])
    with pytest.raises(Conflict, match="holds objects that are not of a corpus") as caught:
        plan_move(small(lake), disk)
    assert caught.value.key == "web/notes.txt"


def test_refuse_foreign_lets_the_engines_own_through(lake: Tier) -> None:
    refuse_foreign(lake, "web", [])
    refuse_foreign(lake, "web", ["web/c/0", "web/.tiering/claims/00000001.json"])
    with pytest.raises(Conflict):
        refuse_foreign(lake, "web", ["web/c/0", "web/c/.tiering/HEAD"])


def test_tier_inside_of_a_folder_is_not_taken_for_a_corpus(lake: Tier, disk: Tier) -> None:
    corpus = small(open_tier(f"{lake.url}/web", "inner"), "c")
    before = objects(corpus.tier)
    with pytest.raises(Conflict, match="not of a corpus"):
        small(lake)
    with pytest.raises(Conflict, match="not of a corpus"):
        plan_move(small(disk), lake)
    assert objects(corpus.tier) == before
    assert verify(corpus).ok


def test_plan_without_room_says_how_much_is_missing(lake: Tier, make_tier: Callable[..., Tier]) -> None:
    corpus = small(lake)
    manifest = lake.store.stat(catalog.manifest_key("web", corpus.record.manifest)).nbytes
    needed = corpus.nbytes + sum(map(len, corpus.contents.documents.values())) + manifest
    with pytest.raises(CapacityExceeded, match=rf"needs {needed} more bytes, there is room for {needed - 1}"):
        plan_move(corpus, make_tier("disk", capacity=needed - 1))
    largest = max(corpus.manifest["nbytes"].to_pylist())
    with pytest.raises(
        CapacityExceeded, match=rf"a shard of corpus 'web' has {largest} bytes, the whole tier"
    ):
        plan_move(corpus, make_tier("disk", capacity=largest - 1))
    disk = make_tier("disk", capacity=needed)
    plan = plan_move(corpus, disk)
    disk.store.write("other", [b"x"])
    with pytest.raises(CapacityExceeded, match="more bytes"):  # the room went meanwhile
        plan.run()
    assert [key for key in objects(disk) if not is_control(key)] == ["other"]


def test_plan_of_what_is_there_needs_no_room(lake: Tier, make_tier: Callable[..., Tier]) -> None:
    corpus = small(lake)
    plan_move(corpus, make_tier("disk")).run()
    full = make_tier("disk", capacity=corpus.nbytes)
    assert plan_move(corpus, full).nbytes == 0


def test_check_room_counts_what_the_tier_holds(make_tier: Callable[..., Tier]) -> None:
    tier = make_tier("disk", capacity=13)
    tier.store.write("a", [b"12345"])
    check_room(tier, "web", adding({"web/b": 8}), 13)
    with pytest.raises(CapacityExceeded, match="'web' needs 9 more bytes, there is room for 8"):
        check_room(tier, "web", adding({"web/b": 9}), 9)
    with pytest.raises(CapacityExceeded, match="smaller shard_size"):
        check_room(tier, "web", adding({}), 14)
    assert list(objects(tier)) == ["a"]


@pytest.mark.parametrize("drift", ["source released", "target taken", "source replaced"])
def test_plan_whose_world_drifted_refuses_and_does_nothing(lake: Tier, disk: Tier, drift: str) -> None:
    corpus = small(lake)
    plan = plan_move(corpus, disk)
    expected: type[Exception] = Conflict
    if drift == "target taken":
        small(disk, seed=9)
    elif drift == "source released":
        catalog.unpublish(lake.store, "web", 1)
        expected = NotFound
    else:
        other = replace(corpus.contents, intent="0" * 64)
        catalog.unpublish(lake.store, "web", 1)
        catalog.publish(lake.store, "web", 1, other, other.encode())
    before = objects(disk)
    with pytest.raises(expected):
        plan.run()
    with pytest.raises(expected):
        plan.check_drift()
    assert objects(disk) == before


def test_plan_graph_whose_target_was_taken_meanwhile_changes_nothing(lake: Tier, disk: Tier) -> None:
    whole = plan_move(small(lake), disk).graph()
    theirs = small(disk, seed=9)
    with pytest.raises(Conflict, match="another corpus is called 'web' there"):
        whole.compute(scheduler="synchronous")
    assert verify(theirs).ok


def test_plan_of_an_arrow_corpus_has_a_step_a_shard(lake: Tier, disk: Tier) -> None:
    corpus = small_arrow(lake)
    assert len(plan_move(corpus, disk).steps) == corpus.contents.shards


def test_plan_of_many_shards_has_no_step_by_step_python(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    many = 20_000
    table = pa.table(
        {
            "key": pa.array([f"tokens/c/{number}/0" for number in range(many)]),
            "nbytes": np.full(many, 7),
            "digest": pa.array(["0" * 64] * many),
        }
    )
    plan = plan_move(replace(corpus, contents=replace(corpus.contents, table=table)), disk)
    assert plan.nbytes == 7 * many
    assert len(list(plan.batches())) == 1
