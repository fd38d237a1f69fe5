from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.tiering.corpora import dead, objects, python, small, wrapped
from tiering import Tier, plan_move, process
from tiering.claim import Claim, check_held, claimed, claims, version_held
from tiering.digest import Buffer, digest
from tiering.errors import Conflict, Corrupt, FormatError, Locked, Unavailable, UnsupportedVersion
from tiering.process import ProcessId
from tiering.stores.base import ObjectInfo, Store
from tiering.stores.wrappers import Wrapper

A, B = digest(b"a"), digest(b"b")
FOLDER = "web/.tiering/claims"


def put(tier: Tier, number: int, intent: str, owner: ProcessId, *, released: bool = False) -> None:
    claim = Claim(number, intent, owner, "token", released)
    tier.store.write(f"{FOLDER}/{number:08d}.json", [claim.encode()])


def elsewhere() -> ProcessId:
    return replace(process.current(), machine="another")


def test_claim_ends_with_its_block_and_its_number_stays(memory: Tier) -> None:
    for number in (1, 2, 3):
        with claimed(memory.store, "web", A, shared=False):
            assert list(objects(memory)) == [f"{FOLDER}/{number:08d}.json"]
    assert list(objects(memory)) == [f"{FOLDER}/00000003.json"]


def test_claim_ends_after_an_error_and_the_error_is_told(memory: Tier) -> None:
    with pytest.raises(KeyboardInterrupt), claimed(memory.store, "web", A, shared=False):
        raise KeyboardInterrupt
    with claimed(memory.store, "web", B, shared=False):
        pass


class NoWrites(Wrapper):
    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        raise Unavailable("the tier is away")


def test_claim_that_cannot_be_released_does_not_hide_the_first_error(memory: Tier) -> None:
    def work() -> None:
        with claimed(broken, "web", A, shared=False):
            broken.inner = NoWrites(memory.store)
            raise KeyboardInterrupt

    broken = Wrapper(memory.store)
    with pytest.raises(KeyboardInterrupt):
        work()
    assert b'"released": false' in objects(memory)[f"{FOLDER}/00000001.json"]
    with claimed(memory.store, "web", B, shared=False):  # what this process holds no more does not count
        pass


def test_claim_of_another_intent_is_a_conflict_and_of_the_same_locked(memory: Tier) -> None:
    with claimed(memory.store, "web", A, shared=True):
        with pytest.raises(Conflict, match="other content by process") as caught:
            claimed(memory.store, "web", B, shared=True).__enter__()
        assert not isinstance(caught.value, Locked)
        with pytest.raises(Locked, match="is being written by process"):
            claimed(memory.store, "web", A, shared=False).__enter__()
        with claimed(memory.store, "web", A, shared=True), claimed(memory.store, "other", B, shared=False):
            pass


def test_claim_of_a_dead_process_does_not_count(memory: Tier) -> None:
    put(memory, 4, B, dead())
    with claimed(memory.store, "web", A, shared=False):
        assert list(objects(memory)) == [f"{FOLDER}/00000005.json"]


def test_claim_of_a_process_that_dies_while_it_is_looked_at_keeps_nobody_out(
    memory: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(memory, 1, A, dead())
    monkeypatch.setattr(Claim, "counts", True)  # it lived when that was asked
    with claimed(memory.store, "web", B, shared=False):
        pass


def test_claim_of_another_machine_keeps_other_intents_out_alone(memory: Tier) -> None:
    put(memory, 1, A, elsewhere())
    with pytest.raises(Conflict, match="another machine or container") as caught:
        claimed(memory.store, "web", B, shared=True).__enter__()
    assert caught.value.key == f"{FOLDER}/00000001.json"
    assert "tiering unlock web --on memory --claim 1" in str(caught.value)
    with claimed(memory.store, "web", A, shared=False):
        pass
    assert len(objects(memory)) == 2


def flipped() -> bytes:
    """A claim that is released because one of its bits turned."""
    return Claim(1, A, elsewhere(), "token").encode().replace(b"false", b"true")


BAD_CLAIMS = [b"", b"{", b"[]", b'{"format_version": 1}', b"\xff" * 9, b"[" * 70_000, flipped()]


@pytest.mark.parametrize("data", BAD_CLAIMS)
def test_claim_that_is_none_is_a_format_error_with_its_key(memory: Tier, data: bytes) -> None:
    memory.store.write(f"{FOLDER}/00000001.json", [data])
    with pytest.raises(FormatError, match="00000001") as caught:
        claimed(memory.store, "web", A, shared=False).__enter__()
    assert "tiering unlock web --on memory --claim 1 --holder unknown" in (caught.value.hint or "")
    with pytest.raises(FormatError):  # only who says that it is unknown whose it is has looked
        claims(memory.store, "web").unlock(1, "1@machine")
    claims(memory.store, "web").unlock(1, "unknown")
    with claimed(memory.store, "web", A, shared=False):
        assert list(objects(memory)) == [f"{FOLDER}/00000002.json"]


class Flipping(Wrapper):
    """A medium that keeps other bytes than it was given, some times."""

    def __init__(self, inner: Store, times: int) -> None:
        super().__init__(inner)
        self.times = times

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        data = bytearray().join(buffers)
        if self.times:
            self.times -= 1
            data[20] ^= 1
        return super().write(key, [data], if_absent=if_absent)


def test_claim_that_was_flipped_on_its_way_is_written_again(memory: Tier) -> None:
    with claimed(Flipping(memory.store, 2), "web", A, shared=False) as claim:
        assert claims(memory.store, "web").all() == [claim]


def test_claim_that_is_flipped_each_time_is_corrupt_and_leaves_nothing(memory: Tier) -> None:
    with pytest.raises(Corrupt, match="claim was read back with other bytes"):
        claimed(Flipping(memory.store, 99), "web", A, shared=False).__enter__()
    assert not objects(memory)


def test_claim_of_the_future_is_refused_by_name(memory: Tier) -> None:
    memory.store.write(f"{FOLDER}/00000001.json", [b'{"format_version": 2}'])
    with pytest.raises(UnsupportedVersion, match="the claim is of format version 2"):
        claimed(memory.store, "web", A, shared=False).__enter__()


class Late(Wrapper):
    """Does something between the look at the claims and the first write."""

    def __init__(self, inner: object, between: object) -> None:
        super().__init__(inner)  # type: ignore[arg-type]
        self.between = between

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        between, self.between = self.between, None
        if between:
            between()  # type: ignore[operator]
        return super().write(key, buffers, if_absent=if_absent, digest=digest)


def test_claim_with_a_number_that_was_given_and_taken_away_meanwhile_is_given_back(memory: Tier) -> None:
    def others() -> None:  # one comes and goes with our number, the next one takes that away and stays
        with claimed(memory.store, "web", A, shared=False):
            pass
        held.__enter__()

    held = claimed(memory.store, "web", B, shared=False)
    with pytest.raises(Conflict, match="other content"):
        claimed(Late(memory.store, others), "web", A, shared=False).__enter__()
    assert list(objects(memory)) == [f"{FOLDER}/00000002.json"]
    held.__exit__(None, None, None)


def test_claim_races_of_threads_have_one_intent_at_a_time(memory: Tier) -> None:
    inside: list[str] = []
    mixed: list[list[str]] = []
    got = threading.Semaphore(0)

    def work(number: int) -> None:
        intent = (A, B)[number % 2]
        for _attempt in range(20):
            try:
                with claimed(memory.store, "web", intent, shared=True):
                    inside.append(intent)
                    if len(set(inside)) > 1:
                        mixed.append(list(inside))
                    inside.remove(intent)
                    got.release()
            except Conflict:
                continue

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert not mixed
    assert got.acquire(blocking=False)


RACE = """
import os, sys
from tiering import open_tier
from tiering.claim import claimed
from tiering.errors import Conflict
tier = open_tier(sys.argv[1])
flag = os.path.join(sys.argv[1], "flag")
children = []
for number in range(6):
    child = os.fork()
    if not child:
        got = 0
        for attempt in range(15):
            try:
                with claimed(tier.store, "web", "ab"[number % 2] * 64, shared=False):
                    os.close(os.open(flag, os.O_CREAT | os.O_EXCL))  # fails where two are inside
                    os.unlink(flag)
                    got = 1
            except Conflict:
                pass
        os._exit(got)
    children.append(child)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


def test_claim_races_of_processes_have_one_holder(lake: Tier) -> None:
    with python(RACE, lake.url) as child:
        told, _ = child.communicate()
    codes = eval(told)
    assert set(codes) <= {0, 1}, "a child failed: two were inside"
    assert 1 in codes
    assert len(objects(lake, "web")) >= 1


HOLD = """
import sys
from tiering import open_tier
from tiering.claim import claimed
with claimed(open_tier(sys.argv[1]).store, "web", sys.argv[2], shared=False):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_claim_of_a_process_that_was_killed_is_taken_over(lake: Tier) -> None:
    with python(HOLD, lake.url, A) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(Locked):
            claimed(lake.store, "web", A, shared=False).__enter__()
        with pytest.raises(Conflict):
            claimed(lake.store, "web", B, shared=False).__enter__()
        child.kill()
        child.wait()
        with claimed(lake.store, "web", B, shared=False), wrapped(lake, Wrapper(lake.store)):
            pass


def test_a_task_that_outlives_its_claim_writes_nothing(lake: Tier) -> None:
    name, intent = "web", digest(b"one")
    with claimed(lake.store, name, intent, shared=False) as claim:
        check_held(lake.store, name, claim)
    with pytest.raises(Conflict, match="not held any more"):
        check_held(lake.store, name, claim)
    left = replace(claim, owner=dead())
    lake.store.write(claims(lake.store, name).key(left.number), [left.encode()])
    with pytest.raises(Conflict, match="not held any more"):
        check_held(lake.store, name, left)
    with claimed(lake.store, name, digest(b"two"), shared=False) as other:
        with pytest.raises(Conflict, match="not held any more"):
            check_held(lake.store, name, left)
        check_held(lake.store, name, other)


def test_a_move_whose_claim_another_process_took_over_writes_nothing(lake: Tier, disk: Tier) -> None:
    corpus = small(lake)
    plan = plan_move(corpus, disk)
    with version_held(disk, corpus.name, corpus.record) as claim:
        tasks = list(plan.tasks(claim=claim))
    with pytest.raises(Conflict, match="not held any more"):
        tasks[0].compute(scheduler="synchronous")
    assert not [key for key in objects(disk) if "/.tiering/" not in key]
