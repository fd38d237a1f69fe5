"""Small jobs for children of the zygote, one system call of which fails or is the last one.

`strace` attaches to the child itself, which costs milliseconds. Tasks run one after the other in the child's
only thread, because strace counts the calls of each thread by itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults import trip, work
from tests.faults.jobs import find
from tests.faults.mutants import MUTANTS
from tests.faults.work import NAME, look, open_tier
from tiering import Tier, TieringError, catalog, graph, open_corpus, plan_move, verify
from tiering.claim import claimed
from tiering.errors import Corrupt, NotFound
from tiering.stores.file import FileStore

CALLS = (
    *("write", "pwrite64", "pwritev", "pwritev2", "fdatasync", "fsync", "sync_file_range", "ftruncate"),
    *("rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir"),
    *("openat", "fallocate"),
)
"""All that changes a disk, under the names of this and other processors, and what opens files."""

KEY = "folder/object"
OLD, NEW = b"old" * 1000, b"new!" * 3000
INTENT = "a" * 64


def one_by_one(tasks: Any) -> Iterator[Any]:
    """In place of the engine's threads."""
    return (task.compute(scheduler="synchronous") for task in tasks)


def strace_missing() -> str | None:
    """Why calls cannot be made to fail here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = "import ctypes; exit(ctypes.CDLL(None, use_errno=True).fsync(0) != -1 or ctypes.get_errno() != 5)"
    command = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO"]
    done = subprocess.run([*command, sys.executable, "-c", probe], capture_output=True, text=True)
    return None if done.returncode == 0 else f"strace may not trace here: {done.stderr.strip()[:200]}"


@contextlib.contextmanager
def straced(calls: tuple[str, ...], *options: str) -> Iterator[Counter[str]]:
    """Trace these calls of this process in the block; the counter is filled at its end.

    It has how often each was made, and under ``injected`` how often one was made to fail.
    """
    graph._on_threads = one_by_one
    known = ",".join(f"?{name}" for name in calls)
    counts: Counter[str] = Counter()
    with tempfile.NamedTemporaryFile() as log:
        tracer = subprocess.Popen(
            ["strace", "-f", "-o", log.name, "-e", "signal=none", "-e", f"trace={known}", *options,
             "-p", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        assert tracer.stderr
        told = tracer.stderr.readline()
        assert b"attached" in told, told
        try:
            yield counts
        finally:
            tracer.terminate()
            tracer.communicate()
        for line in log.read().decode(errors="replace").splitlines():
            if made := re.match(r"\d+\s+(\w+)\(", line):
                counts[made[1]] += 1
            counts["injected"] += "(INJECTED)" in line


def calls_of(job: str, *arguments: Any) -> dict[str, int]:
    """How often a job makes each of `CALLS`."""
    with straced(CALLS) as counts:
        find(job)(*arguments)
    del counts["injected"]
    return {name: counts[name] for name in CALLS if counts[name]}


def with_calls(calls: list[str], how: str, job: str, *arguments: Any) -> list[Any]:
    """Do a job while calls of it fail as strace is told; its typed error's name, and how many failed."""
    known = ",".join(f"?{name}" for name in calls)
    with straced(tuple(calls), "-e", f"inject={known}:{how}") as counts:
        told = typed_error_of(job, *arguments)
    return [told, counts["injected"]]


def kill_at(step: int, torn: bool, job: str, *arguments: Any) -> Any:
    """Do a job, but be killed before its `step`-th change of the disk; `torn` leaves half of a write."""
    trip.arm(step, torn)
    return find(job)(*arguments)


def typed_error_of(job: str, *arguments: Any) -> str:
    """As `work.error_of`, for the jobs here too."""
    try:
        find(job)(*arguments)
    except TieringError as error:
        if not (error.hint or error.tier):
            raise AssertionError("says neither where nor what to do") from error
        return type(error).__name__
    return ""


def store_at(place: str) -> FileStore:
    return FileStore("tier", Path(place))


def assert_no_temporary(place: str) -> None:
    left = list(Path(place).rglob(".tmp-*"))
    assert not left, f"unfinished writes after a sweep: {left}"


def lay_old(place: str) -> None:
    store_at(place).write(KEY, [OLD])


def replace_object(place: str) -> None:
    store_at(place).write(KEY, [NEW[:5000], NEW[5000:]])


def create_object(place: str) -> None:
    with contextlib.suppress(FileExistsError):  # by the one that was killed
        store_at(place).write(KEY, [NEW], if_absent=True)


def delete_object(place: str) -> None:
    store_at(place).delete(KEY)


def object_again(place: str, job: str) -> str:
    """Whether an object is ``old``, ``new`` or ``absent``, and that the job can be done again."""
    store = store_at(place)
    try:
        found = {OLD: "old", NEW: "new"}[bytes(store.read(KEY))]
    except NotFound:
        found = "absent"
    assert [info.key for info in store.list()] == ([] if found == "absent" else [KEY])
    find(job)(place)
    store.sweep()
    assert_no_temporary(place)
    assert [bytes(store.read(info.key)) for info in store.list()] == ([] if job == "delete_object" else [NEW])
    return found


def hide(place: str) -> None:
    """Have all of a corpus but its version record and HEAD."""
    catalog.unpublish(store_at(place), NAME, 1)


def publish_version(place: str, version: int) -> None:
    """Publish the one manifest that lies here as a version."""
    store = store_at(place)
    (info,) = store.list(f"{NAME}/.tiering/manifests")
    encoded = store.read(info.key)
    name = info.key.rpartition("/")[2].removesuffix(".parquet")
    catalog.publish(store, NAME, version, catalog.decode(encoded, name), encoded)


def publish_again(place: str, version: int, form: str, seed: int, count: int) -> str:
    """The version of the newest whole corpus, and that the publication can be done again."""
    tier = open_tier(place, "tier")
    try:
        newest = open_corpus(tier, NAME).version
    except NotFound:
        newest = 0
    if newest:
        assert look(place, form, seed, count) == "whole"
    publish_version(place, version)
    assert look(place, form, seed, count) == "whole"
    assert open_corpus(tier, NAME).version == version
    assert catalog.Record(**_fields(place)).version == version
    assert_no_temporary(place)
    return str(newest)


def _fields(place: str) -> dict[str, Any]:
    fields = catalog.parse_json(Path(place, NAME, ".tiering", "HEAD").read_bytes(), "HEAD", 1 << 16)
    del fields["format_version"]
    return fields


def hold_name(place: str) -> None:
    with claimed(store_at(place), NAME, INTENT, shared=False):
        pass


def hold_name_again(place: str) -> str:
    """Another intent takes the name at once, and claims do not pile up."""
    store = store_at(place)
    before = len(store.children(f"{NAME}/.tiering/claims"))
    with claimed(store, NAME, "b" * 64, shared=False):
        pass
    assert len(store.children(f"{NAME}/.tiering/claims")) <= work.MAX_CLAIMS
    store.sweep()
    assert_no_temporary(place)
    return str(before)


def release_again(place: str, proof: str, form: str, seed: int, count: int) -> str:
    """What is left of a release, and that it can be finished; the proof has not suffered."""
    found = look(place, form, seed, count)
    assert look(proof, form, seed, count) == "whole"
    work.release_rows(place, proof)
    assert look(place, form, seed, count) == "absent"
    tickets = ("/claims/", "/reservations/")  # whose numbers go on
    left = [info.key for info in store_at(place).list() if not any(word in info.key for word in tickets)]
    assert not left
    store_at(place).sweep()
    assert_no_temporary(place)
    assert look(proof, form, seed, count) == "whole"
    return found


def mutated(mutant: str | None, job: str, *arguments: Any) -> Any:
    """Do a job with a guard of the engine taken away."""
    if mutant:
        MUTANTS[mutant]()
    return find(job)(*arguments)


def ingest_on_a_lying_disk(place: str, *facts: Any) -> None:
    """A disk that writes other bytes is found out before anything is published."""
    write, lies = os.write, [1]

    def lie(fd: int, data: Any) -> int:
        changed = lies.pop() if lies and len(data) > 4096 else 0
        return write(fd, bytes([data[0] ^ changed]) + bytes(data[1:]))

    os.write = lie  # type: ignore[assignment]
    told = typed_error_of("ingest_rows", place, *facts)
    os.write = write
    assert told == "Corrupt", f"told {told!r}"
    assert look(place, *facts) == "absent"


def read_flipped(place: str, form: str, seed: int, count: int) -> None:
    """Whatever single bit of a block is turned, no wrong row is handed out."""
    corpus = open_corpus(open_tier(place, "tier"), NAME)
    shard = Path(place, corpus.key(corpus.manifest["key"][0].as_py()))
    good = shard.read_bytes()
    for bit in range(0, 8 * 4096, 1009):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(changed)
        with contextlib.suppress(Corrupt):
            work.check_loaded(corpus, seed, count)
    shard.write_bytes(good)


def ingest_beside_another(place: str, *facts: Any) -> None:
    """A name that somebody writes with other content is not for us."""
    with claimed(store_at(place), NAME, "f" * 64, shared=False):
        told = typed_error_of("ingest_rows", place, *facts)
    assert told == "Conflict", f"told {told!r}"
    assert look(place, *facts) == "absent"


def release_with_a_bad_copy(place: str, proof: str, *facts: Any) -> None:
    """The copy that is to prove a release is damaged."""
    corpus = open_corpus(open_tier(proof, "tier"), NAME)
    shard = Path(proof, corpus.key(corpus.manifest["key"][0].as_py()))
    shard.write_bytes(bytes(shard.stat().st_size))
    told = typed_error_of("release_rows", place, proof)
    assert told == "LastCopy", f"told {told!r}"
    assert look(place, *facts) == "whole"


def probe(place: str, other: str, seed: int, count: int) -> dict[str, str]:
    """What each way to a copy with something strange in it tells: a typed error's name, or its answer."""
    tier, spare = open_tier(place, "tier"), open_tier(other, "other")

    def verified() -> str:
        report = verify(open_corpus(tier, NAME))
        return "missing" if report.missing else "corrupt" if report.corrupt else "whole"

    def loaded(*others: Tier) -> str:
        work.check_loaded(open_corpus(tier, NAME, others=others), seed, count)
        return "right"

    def moved() -> str:
        plan_move(open_corpus(spare, NAME), tier).run()
        return verified()

    told = {}
    ways = {"verify": verified, "load": loaded, "heal": lambda: loaded(spare), "move": moved}
    for way, action in ways.items():
        try:
            told[way] = action()
        except TieringError as error:
            told[way] = type(error).__name__ if error.tier or error.hint else "says neither where nor what"
    return told
