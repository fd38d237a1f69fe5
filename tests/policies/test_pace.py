import math

import pytest

from policies.regime.pace import Pace, lookahead_shards


@pytest.mark.parametrize(
    ("latency", "fetch", "need", "shard_bytes", "shards"),
    [
        # A shard comes after 3 + 35 / 7 = 8 s; 5 bytes a second are used meanwhile: 40 bytes, twice, by 35.
        (3, 7, 5, 35, math.ceil(80 / 35)),
        # 11 bytes a second are needed, and 7 come: 56 bytes.
        (3, 7, 11, 35, math.ceil(112 / 35)),
        # 13 + 5 / 7 s; 3 bytes a second.
        (13, 7, 3, 5, math.ceil(2 * (13 + 5 / 7) * 3 / 5)),
    ],
)
def test_lookahead_is_twice_what_is_used_until_a_shard_is_there(
    latency: float, fetch: float, need: float, shard_bytes: int, shards: int
) -> None:
    assert lookahead_shards(Pace(latency, fetch, need), shard_bytes) == shards


def test_lookahead_is_a_shard_at_least() -> None:
    assert lookahead_shards(Pace(0, 1e9, 1e-9), 1 << 20) == 1


@pytest.mark.parametrize(
    ("pace", "name"),
    [
        ((-1, 1, 1), "latency_seconds"),
        ((math.inf, 1, 1), "latency_seconds"),
        ((math.nan, 1, 1), "latency_seconds"),
        ((0, 0, 1), "fetch_bytes_per_second"),
        ((0, 1, math.inf), "need_bytes_per_second"),
        ((0, 1, math.nan), "need_bytes_per_second"),
    ],
)
def test_pace_refuses_what_is_no_pace(pace: tuple[float, float, float], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*, not .*; e.g. "):
        Pace(*pace)


def test_lookahead_refuses_shards_of_nothing() -> None:
    with pytest.raises(ValueError, match="shard_bytes must be at least 1"):
        lookahead_shards(Pace(1, 1, 1), 0)
