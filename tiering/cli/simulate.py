"""The command simulate: what a cache would do for a corpus or a recorded trace, before it is bought."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Annotated, Final, TypeVar

import numpy as np
import typer
from dask.utils import parse_timedelta
from rich.markup import escape

from policies import Order, choose
from policies.curves import Curve
from policies.eviction import NAMES
from policies.order import MODES
from policies.regime import Pace, Reader, Requests
from policies.simulation import CacheModel, TierModel, front
from policies.trace import Trace, order_trace
from policies.trace.formats import DEFAULT_COLUMNS, check_columns
from tiering.cli.session import Session
from tiering.cli.simulate_report import advise, best, facts, finite, suits, table
from tiering.corpus import Corpus, open_corpus
from tiering.errors import UsageError
from tiering.plots import check_plot, draw
from tiering.sizes import parse_size
from tiering.sweep import curves, sweep
from tiering.tier import Prices, Speed, Tier
from tiering.traces import read_trace

OBJECT_STORE: Final = Speed(0.03, 5e8)
"""What a trace is read from where no tier is named."""
_CAPACITIES: Final = ("10%", "25%", "50%", "75%")
_TRACE_POLICIES: Final = ("lru", "sieve", "s3fifo", "belady")
_CORPUS_POLICIES: Final = ("pin", "lru", "belady")
_LANES: Final = 64
_LONGEST_SECONDS: Final = 3600.0
_MOST_DOLLARS: Final = 1e6
_OF_CORPORA: Final = ("epochs", "world_size", "rank", "shuffle", "seed", "lanes", "version")
_MOST_REQUESTS: Final = 350_000_000  # as many as of a trace fit in memory

T = TypeVar("T")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("simulate")(simulate_command)


def simulate_command(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Name of a corpus; or give --trace.")] = None,
    tier: Annotated[
        str | None, typer.Option("--on", help="Tier that is read; gives speed and prices.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="File of requests: oracleGeneral, csv or an access log.")
    ] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="oracle, csv or log; by default from the file name.")
    ] = None,
    columns: Annotated[
        str, typer.Option(help="Of csv: time,id,size or id,size by their names, or by numbers from 1.")
    ] = ",".join(DEFAULT_COLUMNS),
    policy: Annotated[
        list[str] | None, typer.Option(help="Policy; several by commas or by repeating it.")
    ] = None,
    capacity: Annotated[
        list[str] | None,
        typer.Option(help="Size of the cache: 500GB, or 25% of all different bytes; several as above."),
    ] = None,
    lookahead: Annotated[
        list[str] | None,
        typer.Option(
            help="Bytes fetched ahead: 2GB, 0, or auto (twice bandwidth times delay); several as above. "
            "By default auto for a corpus and 0 for a trace, whose future nobody knows."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Of a corpus.")] = 3,
    world_size: Annotated[int, typer.Option(help="Ranks; each has a cache of its own.")] = 1,
    rank: Annotated[int, typer.Option(help="The rank whose cache is simulated.")] = 0,
    shuffle: Annotated[str, typer.Option(help=f"Mode of the order: {', '.join(MODES)}.")] = "window",
    seed: Annotated[int, typer.Option(help="Of the order.")] = 7,
    lanes: Annotated[int, typer.Option(help="Of the order; world_size must divide it.")] = _LANES,
    version: Annotated[
        int | None, typer.Option("--version", help="Version of the corpus; the newest by default.")
    ] = None,
    consume: Annotated[
        str | None, typer.Option(help="Bytes a second that training takes; by default as many as come.")
    ] = None,
    latency: Annotated[str | None, typer.Option(help="Of the tier: 30ms.")] = None,
    bandwidth: Annotated[str | None, typer.Option(help="Of the tier, bytes a second: 500MB.")] = None,
    slots: Annotated[int, typer.Option(help="Requests in flight at most.")] = 8,
    egress_gb: Annotated[float | None, typer.Option(help="Dollars for a GB read.")] = None,
    get_1000: Annotated[float | None, typer.Option(help="Dollars for 1000 requests.")] = None,
    sample: Annotated[
        float | None,
        typer.Option(help="Draw from this share of the objects, such as 0.01; by default exact."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw curves into this .svg or .png.")] = None,
    points: Annotated[int, typer.Option(help="Sizes on each curve of --plot.", min=2, max=1000)] = 16,
) -> None:
    """Say what caches would fetch, cost and make wait, before any byte is moved.

    Example: tiering simulate web-text --on lake --capacity 10%,50% --policy pin,lru --consume 1GB

    Example: tiering simulate --trace access.jsonl --capacity 500GB --plot misses.svg
    """
    session = Session.of(context)
    if (name is None) == (trace is None):
        hint = "Example: tiering simulate web-text --on lake"
        raise UsageError("give either the name of a corpus or a --trace", hint=hint)
    if trace is not None:
        _refuse_options_of_corpora(context)
    if plot is not None:
        check_plot(plot)
    if sample is not None and not 0 < sample <= 1:
        raise UsageError(f"--sample {sample} is not a share of the objects", hint="Example: --sample 0.01")
    if sample is not None and plot is None:
        raise UsageError("--sample is for curves that are drawn", hint="Say where: --plot misses.svg")
    place = None if tier is None else session.source(tier)
    model = _tier_model(place, latency, bandwidth, slots, egress_gb, get_1000)
    names = _several(policy, _TRACE_POLICIES if trace else _CORPUS_POLICIES)
    _checked(lambda: [CacheModel(0, each) for each in names])  # what is wrong is told before a long reading
    aheads = [_lookahead(text) for text in _several(lookahead, ["0"] if trace else ["auto"])]
    needed = None if consume is None else parse_size(consume, "--consume", "--consume 1GB")
    if trace is not None:
        _checked(lambda: check_columns(columns.split(",")))
        title, requests, reader = trace.name, read_trace(trace, format_, columns.split(",")), None
    else:
        corpus = _corpus(place, name or "", version)
        title = corpus.name
        requests, reader = _checked(
            lambda: _corpus_reader(corpus, shuffle, seed, lanes, epochs, world_size, rank)
        )
    footprint = requests.footprint_bytes
    sizes = sorted({_capacity(text, footprint) for text in _several(capacity, _CAPACITIES)})
    caches = _checked(
        lambda: [CacheModel(size, each, ahead) for size, each, ahead in product(sizes, names, aheads)]
    )
    drawn: list[Curve] = []
    with session.client() as client:
        if plot is not None:
            steps = sorted({max(1, footprint * step // points) for step in range(1, points + 1)})
            known = [each for each in names if each in NAMES] or ["belady"]  # prefetching has no curve
            drawn = _checked(lambda: curves(requests, known, steps, sample=sample, client=client))
        pace = 1 / needed if needed else 0.0
        outcomes = _checked(lambda: sweep(requests, model, caches, seconds_a_byte=pace, client=client))
    chosen = best(outcomes)
    regime = choose(
        readers=1 if reader is None else [reader],
        past=Requests(requests.ids, requests.sizes) if reader is None else None,
        capacity_bytes=chosen.cache.capacity_bytes,
        pace=Pace(model.latency_seconds, model.bandwidth_bytes_per_second, needed) if needed else None,
    )
    words = [*advise(requests, outcomes), suits(regime, chosen)]
    if not (consume or trace):
        words.append("Without --consume training takes bytes as fast as they come: all its time is waiting.")
    if plot is not None:
        draw(plot, drawn, outcomes, f"{title}: {len(requests):,} requests")
        words.append(f"The curves are in {plot}.")
    document = {
        "ok": True,
        "source": {
            "requests": len(requests),
            "objects": requests.objects,
            "bytes": requests.nbytes,
            "footprint_bytes": footprint,
            "seconds": requests.seconds,
        },
        "tier": asdict(model),
        "outcomes": [facts(outcome) for outcome in outcomes],
        "best": facts(chosen),
        "regime": asdict(regime) | {"gain": finite(regime.gain)},
        "front": [facts(outcome) for outcome in front(outcomes)],
        "curves": [asdict(curve) for curve in drawn],
        "words": words,
    }
    session.result(document, table(outcomes))
    if not session.json:
        session.say("\n" + escape("\n".join(words)))


def _corpus(place: Tier | None, name: str, version: int | None) -> Corpus:
    if place is None:
        raise UsageError("a corpus lies on a tier", hint=f"Example: tiering simulate {name} --on lake")
    return open_corpus(place, name, version)


def _corpus_reader(
    corpus: Corpus, shuffle: str, seed: int, lanes: int, epochs: int, world_size: int, rank: int
) -> tuple[Trace, Reader]:
    """What a rank asks for, object by object, and shard by shard."""
    order = Order(
        corpus.shard_rows, block_rows=corpus.contents.block_rows, seed=seed, mode=shuffle, lanes=lanes
    )
    shards, sizes = (corpus.manifest[column].to_numpy() for column in ("shard", "nbytes"))
    if epochs * len(shards) > _MOST_REQUESTS:
        most = _MOST_REQUESTS // len(shards)
        raise UsageError(
            f"--epochs {epochs} are more than {most}", hint="A few epochs show what all others are"
        )
    shard_bytes = np.zeros(len(corpus.shard_rows), np.int64)
    np.add.at(shard_bytes, shards, sizes.astype(np.int64))
    trace = order_trace(
        order,
        shards.astype(np.int64),
        sizes.astype(np.int64),
        epochs=epochs,
        world_size=world_size,
        rank=rank,
    )
    return trace, Reader.of(order, shard_bytes, rank=rank, world_size=world_size, epochs=epochs)


def _tier_model(
    place: Tier | None,
    latency: str | None,
    bandwidth: str | None,
    slots: int,
    egress_gb: float | None,
    get_1000: float | None,
) -> TierModel:
    """What the options say, and else the tier."""
    for option, dollars in (("--egress-gb", egress_gb), ("--get-1000", get_1000)):
        if dollars is not None and not 0 <= dollars < _MOST_DOLLARS:
            raise UsageError(f"{option} {dollars} is not in dollars", hint=f"Example: {option} 0.09")
    speed = OBJECT_STORE if place is None else place.speed
    prices = Prices() if place is None else place.prices
    per_1000 = prices.get_1000 if get_1000 is None else get_1000
    return _checked(
        lambda: TierModel(
            latency_seconds=speed.latency_seconds if latency is None else _duration(latency),
            bandwidth_bytes_per_second=(
                speed.bytes_per_second
                if bandwidth is None
                else parse_size(bandwidth, "--bandwidth", "--bandwidth 500MB")
            ),
            slots=slots,
            request_price=per_1000 / 1000,
            egress_price_per_gb=prices.egress_gb if egress_gb is None else egress_gb,
        )
    )


def _checked(call: Callable[[], T]) -> T:
    """What the call returns; what `policies` finds wrong with an argument is told as wrong usage."""
    try:
        return call()
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def _several(given: Sequence[str] | None, default: Sequence[str]) -> list[str]:
    """Values given by repeating an option, by commas, or both; each once."""
    return list(dict.fromkeys(part.strip() for text in given or default for part in text.split(",")))


def _capacity(text: str, footprint_bytes: int) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%|(0?\.\d+)", text)
    if match is None:
        return parse_size(text, "--capacity", "--capacity 500GB, or 25%")
    share = float(match[1]) / 100 if match[1] else float(match[2])
    nbytes = math.floor(share * footprint_bytes)
    if nbytes < 1:
        hint = "Example: --capacity 500GB, or 25%"
        raise UsageError(f"--capacity = {text!r} of {footprint_bytes} bytes is not a size", hint=hint)
    return nbytes


def _lookahead(text: str) -> int | None:
    if text in ("auto", "0"):
        return None if text == "auto" else 0
    return parse_size(text, "--lookahead", "--lookahead 2GB, 0, or auto")


def _duration(text: str) -> float:
    with contextlib.suppress(ValueError, KeyError, OverflowError):
        seconds = float(parse_timedelta(text))
        if 0 <= seconds <= _LONGEST_SECONDS and not text.strip()[-1:].isdecimal():
            return seconds
    raise UsageError(f"--latency {text!r} is no time up to an hour", hint="Example: --latency 30ms")


def _refuse_options_of_corpora(context: typer.Context) -> None:
    """A trace has its requests and their order: options that would make others must not be passed over."""
    for option in _OF_CORPORA:
        source = context.get_parameter_source(option)
        if source is not None and source.name == "COMMANDLINE":
            shown = "--" + option.replace("_", "-")
            raise UsageError(f"{shown} is for a corpus, and a --trace has its own order", hint="Leave it out")
