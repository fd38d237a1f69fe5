import re

import numpy as np
import pytest

from policies import Order, choose, replay
from policies.bounds import bound, most_hit_bytes
from policies.eviction import NAMES, ONLINE
from policies.regime import Pace, Reader, Requests, lookahead_shards
from policies.regime.readers import merge

SHARD = 1000


def permuting(seed: int = 0, shards: int = 60, epochs: int = 6, **reader: object) -> Reader:
    random = np.random.default_rng(seed)
    return Reader([random.permutation(shards) for _ in range(epochs)], **{"shard_bytes": SHARD, **reader})


def dealt(shards: int = 60, epochs: int = 20, seed: int = 0) -> Reader:
    random = np.random.default_rng(seed)
    return Reader([random.permutation(shards)[: shards // 4] for _ in range(epochs)], SHARD)


def test_choose_pins_for_one_permuting_reader() -> None:
    choice = choose(corpus_bytes=1000, capacity_bytes=250)
    assert (choice.policy, choice.bound) == ("pin", 0.25)
    assert "0.250" in choice.reason
    assert choice.policy in ONLINE


def test_choose_says_that_the_corpus_fits() -> None:
    choice = choose(corpus_bytes=1000, capacity_bytes=1000)
    assert (choice.policy, choice.bound) == ("pin", 1.0)
    assert "whole corpus fits" in choice.reason


def test_choose_says_what_it_does_not_know_of_several_readers() -> None:
    choice = choose(corpus_bytes=1000, capacity_bytes=250, readers=4)
    assert (choice.policy, choice.bound) == ("pin", bound(250, 1000, 1, readers=4))
    assert "not known" in choice.reason


def test_choose_pins_where_everything_to_come_fits() -> None:
    choice = choose(readers=[permuting(seed) for seed in range(3)], capacity_bytes=60 * SHARD)
    assert (choice.policy, choice.bound, choice.gain) == ("pin", 1.0, None)
    assert "whole corpus fits" in choice.reason


def test_choose_pins_for_one_reader_of_an_order() -> None:
    reader = Reader.of(Order([64] * 60, block_rows=8), SHARD)
    choice = choose(readers=[reader], capacity_bytes=15 * SHARD)
    assert (choice.policy, choice.bound, choice.gain) == ("pin", 0.25, None)
    assert "one reader takes each of its shards once an epoch" in choice.reason
    assert "0.250" in choice.reason


def test_choose_pins_for_readers_that_keep_their_shards() -> None:
    lanes = [Reader([np.arange(20) + 20 * lane], SHARD, affinity="lane") for lane in range(3)]
    choice = choose(readers=lanes, capacity_bytes=15 * SHARD)
    assert (choice.policy, choice.bound) == ("pin", 0.25)
    assert "3 readers keep their shards and together take each once an epoch" in choice.reason


def test_choose_counts_a_shard_that_two_lanes_share_once() -> None:
    lanes = [Reader([np.arange(41) + 40 * lane], SHARD, affinity="lane") for lane in range(2)]
    choice = choose(readers=lanes, capacity_bytes=27 * SHARD)
    assert choice.policy == "pin"
    assert choice.bound == pytest.approx(1 - (81 - 27) / 82)


def test_choose_pins_by_size_where_that_saves_requests() -> None:
    sizes = np.random.default_rng(1).lognormal(6, 1, 60).astype(int) + 1
    capacity = int(sizes.sum()) // 4
    reader = permuting(shard_bytes=sizes)
    choice = choose(readers=[reader], capacity_bytes=capacity)
    assert choice.policy == "pin-smallest"
    assert choice.bound == capacity / sizes.sum()
    assert "fewest requests at equal egress" in choice.reason
    pin, smallest = (replay(name, reader.shards, reader.nbytes, capacity) for name in ("pin", choice.policy))
    fitting = int(np.sum(np.cumsum(np.sort(sizes)) <= capacity))
    assert f"the {fitting} smallest shards fit" in choice.reason
    assert smallest.misses < pin.misses
    assert smallest.miss_bytes == pytest.approx(pin.miss_bytes, rel=0.02)


def test_choose_pins_by_size_for_a_fifth_more_shards() -> None:
    choice = choose(readers=[permuting(shard_bytes=range(80, 140))], capacity_bytes=sum(range(80, 140)) // 4)
    assert choice.policy == "pin-smallest"
    assert "the 18 smallest shards fit instead of about 14 of any size" in choice.reason


def test_choose_does_not_pin_by_size_for_one_short_shard() -> None:
    choice = choose(readers=[permuting(shard_bytes=[SHARD] * 59 + [3])], capacity_bytes=30 * SHARD)
    assert choice.policy == "pin"


def test_choose_knows_the_future_for_one_node_of_many() -> None:
    reader = dealt()
    choice = choose(readers=[reader], capacity_bytes=15 * SHARD)
    known, pinned = (
        1 - replay(name, reader.shards, SHARD, 15 * SHARD).byte_miss_ratio for name in ("belady", "pin")
    )
    assert choice.policy == "belady"
    assert choice.gain == pytest.approx(known / pinned)
    assert 1.5 < choice.gain < 4
    assert known <= choice.bound <= 1.05 * known
    assert "one reader takes other shards every epoch" in choice.reason
    assert f"{known:.3f} of the bytes hit, with pin {pinned:.3f}, in 300 of 300 requests" in choice.reason


def test_choose_knows_the_future_for_jobs_on_one_corpus() -> None:
    readers = [permuting(seed) for seed in range(4)]
    choice = choose(readers=readers, capacity_bytes=15 * SHARD)
    assert choice.policy == "belady"
    assert 1.5 < choice.gain < 4
    assert "4 readers take the shards of one corpus at different times" in choice.reason
    merged = merge(readers)
    asked = int(merged.nbytes.sum())
    assert choice.bound == most_hit_bytes(merged.items, merged.nbytes, 15 * SHARD, rounds=32) / asked


def test_choose_knows_the_future_for_a_mixture() -> None:
    mixture = [
        permuting(1, shards=40, epochs=12, corpus="code", speed=0.9),
        permuting(2, shards=80, epochs=2, corpus="text", speed=0.1),
    ]
    choice = choose(readers=mixture, capacity_bytes=30 * SHARD)
    assert choice.policy == "belady"
    assert "2 readers of 2 corpora take their shards at different times" in choice.reason


def test_choose_does_not_pin_for_lanes_of_unequal_speed() -> None:
    lanes = [
        Reader([np.arange(20) + 20 * lane] * 4 * speed, SHARD, affinity="lane", speed=speed)
        for lane, speed in enumerate((1, 4))
    ]
    assert choose(readers=lanes, capacity_bytes=20 * SHARD).policy == "belady"


def test_choose_pins_where_the_future_gains_nothing() -> None:
    readers = [Reader([[0, 1]] * 10, SHARD), Reader([np.arange(20) + 2], SHARD)]
    choice = choose(readers=readers, capacity_bytes=3 * SHARD)
    assert (choice.policy, choice.gain) == ("pin", 1.0)
    assert "gains next to nothing" in choice.reason


def test_choose_says_that_nothing_known_can_hit() -> None:
    choice = choose(readers=[dealt(epochs=1)], capacity_bytes=3 * SHARD)
    assert (choice.policy, choice.bound, choice.gain) == ("pin", 0.0, None)
    assert "give more epochs" in choice.reason
    assert choose(readers=[permuting(), permuting(1)], capacity_bytes=SHARD - 1).bound == 0.0


def test_choose_measures_a_long_future_on_a_sample() -> None:
    readers = [permuting(seed, shards=4000) for seed in range(4)]
    choice = choose(readers=readers, capacity_bytes=1000 * SHARD)
    assert "in 49,992 of 96,000 requests" in choice.reason
    merged = merge(readers)
    known, pinned = (
        1 - replay(name, merged.items, SHARD, 1000 * SHARD).byte_miss_ratio for name in ("belady", "pin")
    )
    assert choice.gain == pytest.approx(known / pinned, rel=0.03)


def test_choose_takes_the_best_online_policy_where_the_future_is_not_known() -> None:
    ids = np.random.default_rng(3).zipf(1.2, 4000) % 300
    past = Requests(ids, SHARD)
    choice = choose(past=past, capacity_bytes=40 * SHARD)
    misses = {name: replay(name, ids, SHARD, 40 * SHARD).misses for name in NAMES}
    assert misses[choice.policy] == min(misses[name] for name in ONLINE)
    assert choice.policy != "lru"
    assert f"{1 - misses[choice.policy] / 4000:.3f} of the bytes" in choice.reason
    assert f"lru {1 - misses['lru'] / 4000:.3f}" in choice.reason
    assert 1 - misses["belady"] / 4000 <= choice.bound <= 1.05 * (1 - misses["belady"] / 4000)
    assert choice.gain == pytest.approx((4000 - misses[choice.policy]) / (4000 - misses["pin"]))


def test_choose_is_not_misled_by_items_asked_for_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a sample that caught one by luck most would hit, of one that did not, few."""
    monkeypatch.setattr("policies.regime.choice._SAMPLE", 5000)
    ids = np.random.default_rng(4).zipf(1.1, 50_000) % 5000
    choice = choose(past=Requests(ids, SHARD), capacity_bytes=500 * SHARD)
    found = re.search(r"most, (0\.\d+) of the bytes, with lru (0\.\d+), in 5,000 of 50,000", choice.reason)
    assert found
    for name, ratio in zip((choice.policy, "lru"), found.groups(), strict=True):
        assert float(ratio) == pytest.approx(replay(name, ids, 1, 500).hits / 50_000, abs=0.05)


@pytest.mark.parametrize("past", [[], [1, 2, 3]])
def test_choose_begins_with_sieve_where_nothing_is_known(past: list[int]) -> None:
    choice = choose(past=Requests(past, SHARD), capacity_bytes=2 * SHARD)
    assert (choice.policy, choice.gain) == ("sieve", None)


def test_choose_prefers_sieve_among_equals() -> None:
    assert choose(past=Requests([1, 2] * 9, SHARD), capacity_bytes=2 * SHARD).policy == "sieve"


def test_choose_looks_as_far_ahead_as_the_pace_asks() -> None:
    pace = Pace(3, 5 * SHARD, 2 * SHARD)
    ahead = lookahead_shards(pace, SHARD)
    assert choose(readers=[permuting()], capacity_bytes=SHARD, pace=pace).lookahead_shards == ahead
    mean = choose(
        readers=[permuting(shard_bytes=[SHARD // 2, SHARD * 3 // 2] * 30)], capacity_bytes=SHARD, pace=pace
    )
    assert mean.lookahead_shards == ahead
    assert choose(readers=[dealt()], capacity_bytes=9 * SHARD, pace=pace).lookahead_shards == ahead
    default = choose(corpus_bytes=1 << 40, capacity_bytes=1, pace=pace)
    assert default.lookahead_shards == lookahead_shards(pace, 64 << 20)
    assert choose(past=Requests([1], 1), capacity_bytes=1, pace=pace).lookahead_shards == 0
    assert choose(corpus_bytes=1, capacity_bytes=1).lookahead_shards is None


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"corpus_bytes": -1, "capacity_bytes": 1}, "corpus_bytes"),
        ({"corpus_bytes": 1, "capacity_bytes": -1}, "capacity_bytes"),
        ({"corpus_bytes": 1, "capacity_bytes": 0.5}, "capacity_bytes"),
        ({"corpus_bytes": 1, "capacity_bytes": 1, "readers": 0}, "readers"),
    ],
)
def test_choose_refuses_arguments_out_of_range(arguments: dict[str, int], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        choose(**arguments)


@pytest.mark.parametrize("readers", [[], [Reader([], 1)], [Reader([[]], 1)]])
def test_choose_refuses_readers_without_a_future(readers: list[Reader]) -> None:
    with pytest.raises(ValueError, match=r"readers must have a future; e\.g\. readers="):
        choose(readers=readers, capacity_bytes=1)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"readers": 3},
        {"corpus_bytes": 1, "readers": [permuting()]},
        {"corpus_bytes": 1, "past": Requests([1], 1)},
        {"readers": [permuting()], "past": Requests([1], 1)},
    ],
)
def test_choose_wants_one_account_of_what_comes(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="give one of corpus_bytes, readers with their futures, and past"):
        choose(capacity_bytes=1, **arguments)
