"""The command simulate, for corpora and for traces of all kinds."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

from policies import replay
from policies.eviction import ONLINE
from policies.simulation import CacheModel, TierModel
from policies.trace import Trace
from tiering import NodeCache, ingest, open_corpus, open_tier
from tiering.cli.simulate_report import advise, best
from tiering.sweep import sweep

IDS = np.random.default_rng(9).zipf(1.3, 2000) % 90
SIZES = 1000 + IDS * 13
FOOTPRINT = int((1000 + np.unique(IDS) * 13).sum())


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    rows = [
        f"{number / 100},key{item},{size}" for number, (item, size) in enumerate(zip(IDS, SIZES, strict=True))
    ]
    path.write_text("\n".join(["time,id,size", *rows]))
    return path


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    tier = open_tier(tmp_path / "lake")
    columns = {"a": np.arange(20_000, dtype=np.int64), "b": np.zeros((20_000, 4), np.float32)}
    ingest(columns, tier, "web", shard_size="32KiB", block_rows=256)
    tier.close()
    Path("tiering.toml").write_text(
        f'[tiers.lake]\nurl = "{tmp_path / "lake"}"\nprices = {{egress_gb = 90.0, get_1000 = 2.0}}\n'
    )
    return tmp_path / "lake"


def figures(document: Any, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(outcome[name] for name in names) for outcome in document["outcomes"]]


def test_simulate_of_a_trace_counts_what_a_replay_counts(tiering: Any, csv: Path) -> None:
    capacities = ("--capacity", "10%", "--capacity", "30kB,.5")
    done = tiering("simulate", "--trace", csv, "--policy", "lru,sieve", *capacities, "--json")
    assert done.code == 0
    expected = [
        (policy, size, replay(policy, IDS, SIZES, size))
        for size in (FOOTPRINT // 10, 30_000, FOOTPRINT // 2)
        for policy in ("lru", "sieve")
    ]
    assert figures(done.document, "policy", "capacity_bytes", "fetches", "fetched_bytes") == [
        (policy, size, counts.misses, counts.miss_bytes) for policy, size, counts in expected
    ]
    assert done.document["source"] == {
        "requests": 2000,
        "objects": len(set(IDS.tolist())),
        "bytes": int(SIZES.sum()),
        "footprint_bytes": FOOTPRINT,
        "seconds": 19.99,
    }
    assert done.document["tier"]["latency_seconds"] == 0.03
    assert done.document["best"]["capacity_bytes"] == FOOTPRINT // 2
    assert all(outcome in done.document["outcomes"] for outcome in done.document["front"])


def test_simulate_says_in_words_what_the_figures_mean(tiering: Any, csv: Path) -> None:
    options = ("--policy", "lru,belady", "--capacity", "20%,60%", "--egress-gb", 0.09)
    done = tiering("simulate", "--trace", csv, *options)
    assert done.code == 0
    text = " ".join(done.out.split())
    assert "2,000 requests over 19.99 s ask for" in text
    assert f"choose lru with {FOOTPRINT * 6 // 10 / 1024:.2f} kiB: it fetches" in text
    assert "dollars) and writes" in text
    assert "With the same room the others fetch: belady (which knows the future)" in text
    assert f"With {FOOTPRINT * 2 // 10 / 1024:.2f} kiB it would fetch" in text
    begins = [line.split()[0] for line in done.out.splitlines()[:5]]
    assert begins == ["policy", "lru", "belady", "lru", "belady"]


def test_simulate_of_a_corpus_knows_its_order_and_the_prices_of_its_tier(tiering: Any, lake: Path) -> None:
    done = tiering(
        "simulate", "web", "--on", "lake", "--capacity", "50%", "--lookahead", "0,auto,64KiB",
        "--policy", "pin", "--epochs", 2, "--consume", "1MB", "--json",
    )  # fmt: skip
    assert done.code == 0
    corpus = open_corpus(open_tier(lake), "web")
    assert done.document["source"]["requests"] == 2 * corpus.manifest.num_rows
    assert done.document["source"]["footprint_bytes"] == corpus.nbytes
    nothing, auto, some = done.document["outcomes"]
    assert nothing["fetched_bytes"] <= 1.55 * corpus.nbytes
    assert nothing["stall_seconds"] > some["stall_seconds"]
    assert (nothing["lookahead_bytes"], some["lookahead_bytes"]) == (0, 1 << 16)
    assert auto["lookahead_bytes"] > 2 * 1e-4 * 2e9  # twice bandwidth times delay, of a file tier
    for outcome in (nothing, auto, some):
        computed = outcome["elapsed_seconds"] - outcome["stall_seconds"]
        assert computed == pytest.approx(outcome["requested_bytes"] * 1e-6)
        assert outcome["cost"] == pytest.approx(outcome["fetched_bytes"] * 90e-9 + outcome["fetches"] * 2e-3)
    words = " ".join(done.document["words"])
    assert "It looks 64.00 kiB ahead; looking ahead 0 B waits" in words
    assert "Without --consume" not in words


def test_simulate_of_a_rank_asks_for_its_part(tiering: Any, lake: Path) -> None:
    common = ("simulate", "web", "--on", lake, "--epochs", 1, "--capacity", "1MB", "--json")
    alone = tiering(*common).document
    parts = [tiering(*common, "--world-size", 4, "--rank", rank).document for rank in range(4)]
    assert alone["source"]["requests"] <= sum(part["source"]["requests"] for part in parts)
    assert all(part["source"]["requests"] < alone["source"]["requests"] for part in parts)
    assert "as fast as they come" in alone["words"][-1]


def test_simulate_of_a_corpus_says_what_suits_its_order(tiering: Any, lake: Path) -> None:
    common = (
        "simulate",
        "web",
        "--on",
        lake,
        "--capacity",
        "50%",
        "--policy",
        "lru",
        "--consume",
        "1GB",
        "--json",
    )
    whole = tiering(*common).document
    assert whole["regime"]["policy"] == "pin"
    assert whole["regime"]["bound"] == pytest.approx(0.5, abs=0.01)
    assert whole["regime"]["lookahead_shards"] >= 1
    assert "suits" in whole["words"][-1]
    assert "one reader takes each of its shards once an epoch" in whole["words"][-1]
    part = tiering(*common, "--world-size", 4, "--epochs", 6).document
    assert part["regime"]["policy"].startswith("belady")
    assert "one reader takes other shards every epoch" in part["words"][-1]


def test_simulate_of_a_trace_says_which_of_all_policies_suits_it(tiering: Any, csv: Path) -> None:
    done = tiering("simulate", "--trace", csv, "--policy", "fifo", "--capacity", "20%", "--json").document
    hits = {name: 1 - replay(name, IDS, SIZES, FOOTPRINT // 5).byte_miss_ratio for name in ONLINE}
    assert done["regime"]["policy"] == max(hits, key=hits.__getitem__) != "fifo"
    assert f"{max(hits.values()):.3f} of the bytes" in done["words"][-1]


def test_simulate_of_what_pin_never_hits_has_no_gain_in_json(tiering: Any) -> None:
    Path("t.csv").write_text("time,id,size\n0,a,10\n1,b,10\n2,b,10\n")
    done = tiering("simulate", "--trace", "t.csv", "--policy", "lru", "--capacity", "10B", "--json")
    assert done.document["regime"]["gain"] is None
    assert "Infinity" not in done.out


def test_simulate_shows_its_table_whole_in_80_columns(
    tiering: Any, csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = tiering("simulate", "--trace", csv, "--policy", "lru,pin-smallest", "--egress-gb", 0.09)
    head = done.out.splitlines()[0]
    assert head.split() == ["policy", "cache", "miss", "bytes", "least", "fetched", "$", "waits", "99%"]
    assert "…" not in done.out


def test_simulate_on_a_scheduler_says_the_same(tiering: Any, csv: Path, cluster: Client) -> None:
    address = cluster.scheduler.address
    options = ("--policy", "lru,pin", "--capacity", "20%,50%", "--plot", "a.svg", "--points", 2)
    common = ("simulate", "--trace", csv, "--json", *options)
    done = tiering(*common, "--scheduler", address)
    assert done.code == 0, done.err
    assert done.document == tiering(*common).document


def test_simulate_draws_the_curves(tiering: Any, csv: Path) -> None:
    done = tiering(
        "simulate", "--trace", csv, "--policy", "lru,fifo", "--plot", "a.svg", "--points", 5, "--json"
    )
    assert done.code == 0
    assert Path("a.svg").read_text().count("</svg>") == 1
    lru, fifo = done.document["curves"]
    assert (lru["policy"], lru["method"], fifo["method"]) == ("lru", "one pass", "replay")
    assert [point["capacity_bytes"] for point in lru["points"]] == [
        FOOTPRINT * step // 5 for step in range(1, 6)
    ]
    counts = replay("lru", IDS, SIZES, FOOTPRINT * 2 // 5)
    assert lru["points"][1]["byte_miss_ratio"] == counts.byte_miss_ratio


def test_simulate_draws_from_a_sample(tiering: Any, csv: Path) -> None:
    done = tiering("simulate", "--trace", csv, "--plot", "a.png", "--sample", 0.5, "--points", 2)
    assert done.code == 0
    assert "The curves are in a.png." in done.out


def test_simulate_of_prefetching_alone_draws_the_least_that_can_be(tiering: Any, csv: Path) -> None:
    options = ("--policy", "integrated", "--lookahead", "10kB", "--plot", "a.svg", "--points", 2)
    done = tiering("simulate", "--trace", csv, *options, "--json")
    assert [found["policy"] for found in done.document["curves"]] == ["belady"]


def test_simulate_replays_the_log_of_a_node_cache(tiering: Any, tmp_path: Path, lake: Path) -> None:
    log = tmp_path / "access.jsonl"
    nodes = NodeCache(tmp_path / "cache", "1MB", access_log=log)
    corpus = open_corpus(open_tier(lake), "web")
    for _ in range(2):
        for shard in corpus.shards("a"):
            nodes.get(shard.digest, shard.nbytes, lambda shard=shard: [corpus.tier.store.read(shard.key)])
    nodes.close()
    done = tiering("simulate", "--trace", log, "--policy", "lru", "--capacity", "1MB", "--json")
    shards = corpus.shards("a")
    assert done.document["source"]["requests"] == 2 * len(shards)
    assert figures(done.document, "fetches", "fetched_bytes") == [(len(shards), shards.nbytes)]


def test_simulate_of_oracle_general_and_of_columns_without_a_header(tiering: Any, tmp_path: Path) -> None:
    (tmp_path / "t.bin").write_bytes(b"".join(struct.pack("<IQIq", n, n % 3, 10, -1) for n in range(30)))
    (tmp_path / "t.txt").write_text("".join(f"{n % 3},10,x,{n}\n" for n in range(30)))
    oracle = tiering("simulate", "--trace", tmp_path / "t.bin", "--json")
    text = tiering(
        "simulate", "--trace", tmp_path / "t.txt", "--format", "csv", "--columns", "4,1,2", "--json"
    )
    assert oracle.document == text.document
    assert oracle.document["source"]["objects"] == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "give either the name of a corpus or a --trace"),
        (("web", "--trace", "t.csv"), 2, "give either"),
        (("web",), 2, "a corpus lies on a tier"),
        (("web", "--on", "lake"), 1, "no tier is called 'lake'"),
        (("web", "--on", "."), 1, "no corpus 'web'"),
        (("--trace", "t.csv", "--epochs", 3), 2, "--epochs is for a corpus, and a --trace has its own order"),
        (("--trace", "t.csv", "--world-size", 2), 2, "--world-size is for a corpus"),
        (("--trace", "none.csv"), 1, "no trace 'none.csv'"),
        (
            ("--trace", "t.bin"),
            1,
            "0 records of 24 bytes are followed by 20 bytes",
        ),
        (("--trace", "none.csv", "--policy", "mru"), 2, "policy must be one of"),
        (("--trace", "empty.csv"), 1, "the trace has no request"),
        (("--trace", "t.csv", "--format", "arc"), 2, "trace format 'arc' is not known"),
        (("--trace", "t.csv", "--columns", "when,id,size"), 1, "the first line has no column 'when'"),
        (("--trace", "t.csv", "--capacity", "0"), 2, "--capacity = '0' is not a size"),
        (("--trace", "t.csv", "--capacity", "0%"), 2, "--capacity = '0%' of 10 bytes is not a size"),
        (("--trace", "t.csv", "--capacity", "lots"), 2, "Example: --capacity 500GB, or 25%"),
        (("--trace", "t.csv", "--lookahead", "far"), 2, "Example: --lookahead 2GB, 0, or auto"),
        (("--trace", "t.csv", "--latency", "soon"), 2, "--latency 'soon' is no time"),
        (("--trace", "t.csv", "--latency", "-1s"), 2, "--latency '-1s' is no time"),
        (("--trace", "t.csv", "--bandwidth", "0"), 2, "--bandwidth = '0' is not a size"),
        (("--trace", "t.csv", "--slots", "0"), 2, "slots must be at least 1"),
        (("--trace", "t.csv", "--consume", "0"), 2, "--consume = '0' is not a size"),
        (("--trace", "t.csv", "--plot", "a.pdf"), 2, "ends in neither .svg nor .png"),
        (("--trace", "t.csv", "--sample", "0.1"), 2, "--sample is for curves"),
        (("--trace", "t.csv", "--points", "1", "--plot", "a.svg"), 2, "points"),
    ],
)
def test_simulate_says_what_is_wrong(
    tiering: Any, arguments: tuple[str, ...], code: int, message: str
) -> None:
    Path("t.csv").write_text("time,id,size\n0,a,10\n")
    Path("empty.csv").write_text("time,id,size\n")
    Path("t.bin").write_bytes(Path("t.csv").read_bytes())
    failed = tiering("simulate", *arguments)
    assert failed.code == code
    assert message in failed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shuffle", "riffle"), "mode must be one of"),
        (("--world-size", 3), "world_size must divide the 64 lanes"),
        (("--rank", 1), "rank must be below 1"),
        (("--epochs", 0), "epochs must be at least 1"),
    ],
)
def test_simulate_of_a_corpus_refuses_an_order_that_is_none(
    tiering: Any, lake: Path, arguments: tuple[Any, ...], message: str
) -> None:
    failed = tiering("simulate", "web", "--on", "lake", *arguments)
    assert failed.code == 2
    assert message in failed.err


def trace_of(ids: list[int], sizes: list[int]) -> Trace:
    return Trace(np.zeros(len(ids)), np.array(ids, np.int64), np.array(sizes, np.int64))


def test_advice_tells_of_objects_larger_than_the_cache() -> None:
    trace = trace_of([1, 2, 1, 2, 2], [10, 50, 10, 50, 50])
    outcomes = sweep(trace, TierModel(0.1, 1e3), [CacheModel(20, "lru", 0), CacheModel(60, "lru", 0)])
    words = advise(trace, outcomes)
    assert (
        words[-1]
        == "3 requests are for objects larger than the smallest cache, 20 B, which never keeps them."
    )
    assert "no prices known" in words[1]
    assert words[2] == "No policy can fetch less with this room."


def test_advice_of_nothing_but_empty_objects_divides_by_nothing() -> None:
    trace = trace_of([1, 1], [0, 0])
    words = advise(trace, sweep(trace, TierModel(0.1, 1e3), [CacheModel(20, "lru", 0)]))
    assert words[0] == "2 requests ask for 0 B of 1 objects that have 0 B."
    assert words[1].startswith("lru with 20 B: it fetches 0.0%")


def test_best_prefers_less_stall_then_less_egress_then_less_room() -> None:
    trace = trace_of([1], [10])
    (any_one,) = sweep(trace, TierModel(0.1, 1e3), [CacheModel(20, "lru", 0)])
    first = replace(any_one, stall_seconds=100.0, fetched_bytes=1000)
    slow = replace(any_one, stall_seconds=150.0, fetched_bytes=10, cache=CacheModel(1, "lru", 0))
    frugal = replace(any_one, stall_seconds=101.0, fetched_bytes=800)
    small = replace(any_one, stall_seconds=101.5, fetched_bytes=805, cache=CacheModel(15, "lru", 0))
    assert best([slow, first]) == first
    assert best([slow, first, frugal]) == frugal
    hungry = replace(any_one, stall_seconds=100.0, fetched_bytes=900, cache=CacheModel(1, "lru", 0))
    assert best([slow, first, frugal, small, hungry]) == small


def test_advice_compares_what_differs_in_one_thing_alone() -> None:
    trace = trace_of([1, 2, 3, 1, 2, 3] * 5, [10] * 30)
    caches = [
        CacheModel(size, policy, 0) for policy in ("lru", "fifo", "belady") for size in (10, 20, 30, 40)
    ]
    *_, others, less = advise(trace, sweep(trace, TierModel(0.1, 1e3), caches))
    assert others == "With the same room the others fetch: fifo 10.0%, belady (which knows the future) 10.0%."
    assert less.startswith("With 20 B it would fetch 270 B more and wait ")


def test_best_is_what_stalls_least_then_fetches_least_then_needs_least() -> None:
    trace = trace_of([1, 2, 3, 1, 2, 3] * 5, [10] * 30)
    caches = [CacheModel(size, policy, 0) for policy in ("belady", "lru", "pin") for size in (20, 30, 40)]
    outcomes = sweep(trace, TierModel(0.1, 1e3), caches)
    assert (best(outcomes).cache.policy, best(outcomes).cache.capacity_bytes) == ("lru", 30)
    assert best(outcomes[:1]).cache.policy == "belady"  # where there is nothing else
    cramped = [outcome for outcome in outcomes if outcome.cache.capacity_bytes == 20]
    assert best(cramped).cache.policy == "pin"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--latency", "1e400s"), "--latency '1e400s' is no time up to an hour"),
        (("--latency", "30"), "--latency '30' is no time"),
        (("--latency", "2h"), "--latency '2h' is no time"),
        (("--egress-gb", "-1"), "--egress-gb -1.0 is not in dollars"),
        (("--get-1000", "inf"), "--get-1000 inf is not in dollars"),
        (("--bandwidth", "1e300"), "is not below 1 EiB"),
        (("--capacity", "1e30TB"), "is not below 1 EiB"),
        (("--lookahead", "1e30TB"), "is not below 1 EiB"),
        (("--sample", "2", "--plot", "x.svg"), "--sample 2.0 is not a share"),
        (("--columns", "0,2,5"), "columns are numbered from 1, not '0,2,5'"),
        (("--columns", "1"), "columns must be those of time, id and size, or of id and size, not '1'"),
    ],
)
def test_simulate_names_the_option_that_is_wrong(
    tiering: Any, csv: Path, words: tuple[str, ...], told: str
) -> None:
    done = tiering("simulate", "--trace", csv, *words)
    assert done.code == 2
    assert told in done.err.replace("\n", " ")


def test_simulate_of_more_epochs_than_fit_in_memory_is_refused(tiering: Any, lake: Path) -> None:
    done = tiering("simulate", "web", "--on", lake, "--epochs", 10**12)
    assert done.code == 2
    assert f"--epochs {10**12} are more than" in done.err
