"""Jobs that children of the zygote do: small, whole pieces of the engine's work, and the looks taken at it.

Everything is imported here, once, before the first fork.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import shutil
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.ma  # now, for a child may not be allowed to
import numpy.random
import numpy.testing
import pyarrow as pa
import pyarrow.dataset as pads
import zarr

from loaders import Loader
from tests.faults import power
from tiering import (
    Corpus,
    Tier,
    TieringError,
    ingest,
    open_corpus,
    open_tier,
    plan_move,
    process,
    release,
    verify,
)
from tiering.errors import NotFound
from tiering.jobs.run import run_jobs
from tiering.jobs.spec import Job
from tiering.layout import arrow
from tiering.process import ProcessId
from tiering.stores import block, direct, file
from tiering.stores.block import BlockStore

__all__ = ["block", "file"]  # imported now, so that no child has to

NAME = "web"
ROW_TOKENS = 256
SMALL_BYTES = 1024
MAX_CLAIMS = 3


@cache
def rows(seed: int, count: int) -> dict[str, Any]:
    """Columns of `count` rows that depend on `seed` alone."""
    dice = np.random.default_rng(seed)
    return {
        "tokens": dice.integers(0, 1 << 16, (count, ROW_TOKENS), np.uint16),
        "label": dice.integers(0, 1 << 62, count),
    }


def table(seed: int, count: int) -> pa.Table:
    """The same rows as an Arrow table, ragged."""
    columns = rows(seed, count)
    tokens = [row[: 1 + label % ROW_TOKENS] for row, label in zip(*columns.values(), strict=True)]
    return pa.table({"tokens": pa.array(tokens, pa.list_(pa.uint16())), "label": columns["label"]})


def tier_at(place: str) -> Tier:
    return open_tier(place, "tier")


def ingest_rows(place: str, form: str, seed: int, count: int) -> int:
    """Ingest `count` rows; gives the number of shards."""
    source = rows(seed, count) if form == "zarr" else table(seed, count)
    corpus = ingest(source, tier_at(place), NAME, shard_size="16KiB", block_rows=16)
    return int(corpus.manifest.num_rows)


def move_rows(source: str, target: str) -> int:
    """Move the corpus; gives how many shards were copied."""
    to = tier_at(target)
    report = plan_move(open_corpus(open_tier(source, "source"), NAME), to).run()
    to.close()
    return int(report.moved)


def demote_rows(source: str, target: str) -> str:
    """Move the corpus and give up the source's copy, as a job file does."""
    job = Job("evening", "demote", NAME, open_tier(source, "source"), tier_at(target))
    (result,) = run_jobs([job])
    if result.error:
        raise result.error
    return result.status


def move_and_release(source: str, target: str) -> int:
    """The same by the plan itself; a second run has nothing to plan and only finishes the release."""
    kept, to = open_tier(source, "source"), tier_at(target)
    try:
        plan = plan_move(open_corpus(kept, NAME), to, release=True)
    except NotFound:
        return release(open_corpus(to, NAME), kept)
    return int(plan.run().moved)


def look(place: str, form: str, seed: int, count: int) -> str:
    """``absent`` or ``whole``; anything else, half or wrong, is an error."""
    tier = tier_at(place)
    try:
        corpus = open_corpus(tier, NAME)
    except NotFound:
        return "absent"
    try:
        report = verify(corpus)
        assert report.ok, report
        assert not report.extra, report
        assert corpus.format == form
        if form == "zarr":
            check_loaded(corpus, seed, count)
        else:
            assert _blocks(corpus).equals(table(seed, count))
    finally:
        tier.close()
    return "whole"


def check_loaded(corpus: Corpus, seed: int, count: int) -> None:
    """The loader gives these rows."""
    batches = list(Loader(corpus, 16, shuffle="none", lanes=1, drop_last=False))
    found = {name: np.concatenate([batch[name] for batch in batches]) for name in corpus.schema.names}
    _check_arrays(found, seed, count)


def look_plainly(place: str, form: str, seed: int, count: int) -> None:
    """Other tools find these rows in the folder, and nothing else."""
    if form == "zarr":
        group = zarr.open_group(f"{place}/{NAME}", mode="r")
        _check_arrays({name: np.asarray(group[name][:]) for name in group}, seed, count)
    else:
        found = pads.dataset(f"{place}/{NAME}", format="ipc").to_table()
        assert found.equals(table(seed, count))


def ingest_again(place: str, form: str, seed: int, count: int) -> str:
    """What another process finds after a kill, and that it can finish the work; gives what it found."""
    found = look(place, form, seed, count)
    ingest_rows(place, form, seed, count)
    assert look(place, form, seed, count) == "whole"
    check_tidy(place, untouched=found == "whole")
    return found


def move_again(source: str, target: str, form: str, seed: int, count: int) -> str:
    """The same for a move."""
    found = look(target, form, seed, count)
    copied = move_rows(source, target)
    assert copied == 0 or found == "absent"
    assert look(target, form, seed, count) == "whole"
    check_tidy(target)
    return found


def demote_again(source: str, target: str, form: str, seed: int, count: int, job: str = "demote_rows") -> str:
    """The same for a demote: there is always a whole copy, and in the end exactly one."""
    found = f"{look(source, form, seed, count)} {look(target, form, seed, count)}"
    assert "whole" in found
    globals()[job](source, target)
    assert look(source, form, seed, count) == "absent"
    assert look(target, form, seed, count) == "whole"
    left = [info.key for info in tier_at(source).store.list(NAME)]
    assert all("/claims/" in key for key in left), f"a released copy left {left}"
    check_tidy(source, untouched=True)
    check_tidy(target, untouched=found == "absent whole")
    return found


def ingest_other(place: str, form: str, seed: int, count: int) -> str:
    """After a kill, other content may take the name; nothing of the first may show through."""
    found = look(place, "zarr", 1, count)
    if found == "whole":
        return found
    ingest_rows(place, form, seed, count)
    assert look(place, form, seed, count) == "whole"
    look_plainly(place, form, seed, count)
    check_tidy(place)
    return found


def check_tidy(place: str, *, untouched: bool = False) -> None:
    """No unfinished write is left, and no claim that counts.

    Where the work was done before the kill, the next process finds it whole and leaves it `untouched`: then
    there may be the unfinished copy of one small record, and the claim of a dead process.
    """
    tier = tier_at(place)
    if tier.kind == "block":
        check_volume(place)
        return
    root = Path(tier.url)
    unfinished = [path.stat().st_size for path in root.rglob(".tmp-*")]
    assert not unfinished or (untouched and max(unfinished) < SMALL_BYTES), unfinished
    claims = [json.loads(path.read_bytes()) for path in root.glob(f"{NAME}/.tiering/claims/*.json")]
    for claim in claims:
        owner = ProcessId.parse(claim["owner"])
        gone = owner.is_dead() or owner == process.current()  # which works at nothing now
        assert claim["released"] or (untouched and gone), claim
    assert 1 <= len(claims) <= MAX_CLAIMS, "claims pile up"


def check_volume(place: str) -> None:
    with BlockStore("check", Path(place.removeprefix("block://"))) as store:
        assert not store.check()


def error_of(job: str, *arguments: Any) -> str:
    """Name of the typed error that a job ends with, or ``""``; an untyped one fails the test.

    A typed error must say where it happened and what to do.
    """
    try:
        globals()[job](*arguments)
    except TieringError as error:
        if not (error.hint or error.tier):
            raise AssertionError("says neither where nor what to do") from error
        return type(error).__name__
    return ""


def with_file_bytes(limit: int, preallocate: bool, job: str, *arguments: Any) -> str:
    """`error_of` a job whose process may not make a file longer than `limit` bytes."""
    if not preallocate:
        file._preallocate = lambda _fd, _nbytes: None  # then the limit cuts a write short
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        return error_of(job, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def with_descriptors(spare: int, job: str, *arguments: Any) -> str:
    """`error_of` a job whose process can open `spare` more files than it has open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)  # the number of the next one
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, before[1]))
    try:
        return error_of(job, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def at_once(gate: str, job: str, *arguments: Any) -> str:
    """`error_of` a job that begins when the gate is opened: when nobody holds its lock any more."""
    with Path(gate).open() as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        return error_of(job, *arguments)


def release_rows(place: str, proof: str) -> int:
    """Release the copy at `place`, proven by the one at `proof`; gives the bytes freed."""
    corpus = open_corpus(open_tier(proof, "proof"), NAME)
    return release(corpus, tier_at(place))


def _blocks(corpus: Corpus) -> pa.Table:
    """All blocks of an Arrow corpus, by the manifest's offsets and checksums."""
    batches = []
    for shard in corpus.manifest.to_pylist():
        data = corpus.tier.store.read(corpus.key(shard["key"]))
        for (start, stop), crc in zip(pairwise(shard["block_offsets"]), shard["block_crcs"], strict=True):
            batches.append(arrow.decode_block(bytes(data[start:stop]), crc, corpus.schema))
    return pa.Table.from_batches(batches)


def _check_arrays(found: dict[str, Any], seed: int, count: int) -> None:
    expected = rows(seed, count)
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def cut_power_direct(*arguments: Any) -> list[str]:
    """`cut_power` of a job that writes past the page cache all that is longer than a page."""
    direct.WRITE_BYTES = power.PAGE_BYTES + 1  # type: ignore[misc]
    direct.trial = lambda _device, _way: Always()
    return cut_power(*arguments, least_direct_bytes=power.PAGE_BYTES)


class Always(direct.Trial):
    """Has always found direct I/O to be faster."""

    def __init__(self) -> None:
        super().__init__()
        self.verdict = True


def cut_power(
    folder: str,
    stride: int,
    again: str,
    job: str,
    facts: list[Any],
    *arguments: Any,
    least_direct_bytes: int = 0,
) -> list[str]:
    """Record a job below ``folder/disk``, cut the power after its changes, and let the next run finish it.

    Only after every `stride`-th change and, whatever the stride, after the last.
    Arguments that begin with a slash are places below the disk. Gives what was found after each cut.
    """
    disk, dice = Path(folder, "disk"), random.Random(f"{job} {arguments}")
    recorder = power.Recorder(disk)
    real = {name: getattr(os, name) for name in dir(os) if callable(getattr(os, name))}
    recorder.install()
    try:
        globals()[job](*_placed(disk, arguments))
    finally:
        for name, function in real.items():
            setattr(os, name, function)
    assert recorder.direct_bytes >= least_direct_bytes
    found = []
    for cut in (*range(0, len(recorder.events), stride), len(recorder.events)):
        last = cut == len(recorder.events)
        for policy in power.POLICIES if last else [power.POLICIES[cut // stride % len(power.POLICIES)]]:
            place = Path(folder, f"{cut} {policy}")
            power.Model(recorder.start, recorder.events[:cut]).build(place, policy, dice)
            try:
                found.append(globals()[again](*_placed(place, arguments), *facts))
            except Exception as error:
                raise AssertionError(f"power cut after change {cut} of {job}, kept: {policy}") from error
            shutil.rmtree(place)
    return found


def _placed(root: Path, arguments: Any) -> list[Any]:
    return [f"{root}{value}" if str(value).startswith("/") else value for value in arguments]
