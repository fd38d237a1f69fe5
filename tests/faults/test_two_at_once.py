"""Two processes at one name at one moment: one wins or both do the same, and nothing is ever mixed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults import work
from tests.faults.terminal import MAIN, Terminal
from tests.faults.zygote import Zygote
from tiering import Corpus, ingest, open_tier, process, verify
from tiering.claim import Claim, claimed
from tiering.errors import Conflict, Locked
from tiering.stores.base import Store
from tiering.stores.block import format_volume
from tiering.stores.file import FileStore
from tiering.stores.memory import MemoryStore
from tiering.stores.wrappers import Wrapper

ROUNDS = int(os.environ.get("TIERING_RACE_ROUNDS", "6"))
COUNT = 40
MANY = 3000  # rows, so that a move takes a while
FORMS = ("zarr", "arrow")


@pytest.fixture(scope="module")
def rival() -> Iterator[Zygote]:
    with Zygote() as running:
        yield running


def race(zygote: Zygote, rival: Zygote, gate: Path, first: list[Any], second: list[Any]) -> list[str]:
    """Let two jobs begin at one moment; gives the names of the errors they ended with."""
    gate.touch()
    with gate.open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        zygote.begin("at_once", str(gate), *first)
        rival.begin("at_once", str(gate), *second)
    outcomes = [zygote.finish(), rival.finish()]
    assert not any(outcome.error for outcome in outcomes), outcomes
    return [outcome.value for outcome in outcomes]


@pytest.mark.parametrize("form", FORMS)
def test_two_ingests_of_other_content_one_wins(
    zygote: Zygote, rival: Zygote, tmp_path: Path, form: str
) -> None:
    for lap in range(ROUNDS):
        place = str(tmp_path / str(lap))
        jobs = [["ingest_rows", place, form, seed, COUNT] for seed in (1, 2)]
        told = race(zygote, rival, tmp_path / "gate", *jobs)
        assert sorted(told) == ["", "Conflict"]
        seed = 1 + told.index("")
        assert zygote.value("look", place, form, seed, COUNT) == "whole"
        zygote.value("look_plainly", place, form, seed, COUNT)


def test_two_ingests_of_the_same_content_make_one_corpus(
    zygote: Zygote, rival: Zygote, tmp_path: Path
) -> None:
    for lap in range(ROUNDS):
        job = ["ingest_rows", str(tmp_path / str(lap)), "zarr", 1, COUNT]
        told = race(zygote, rival, tmp_path / "gate", job, job)
        assert sorted(told) in (["", ""], ["", "Locked"])
        assert zygote.value("look", *job[1:]) == "whole"


@pytest.mark.parametrize("form", FORMS)
def test_two_moves_to_one_target_both_succeed(
    zygote: Zygote, rival: Zygote, tmp_path: Path, form: str
) -> None:
    source = str(tmp_path / "source")
    zygote.value("ingest_rows", source, form, 1, COUNT)
    for lap in range(ROUNDS):
        place = str(tmp_path / str(lap))
        job = ["move_rows", source, place]
        assert race(zygote, rival, tmp_path / "gate", job, job) == ["", ""]
        assert zygote.value("look", place, form, 1, COUNT) == "whole"


def test_two_moves_to_one_volume_one_waits_its_turn(zygote: Zygote, rival: Zygote, tmp_path: Path) -> None:
    source = str(tmp_path / "source")
    zygote.value("ingest_rows", source, "arrow", 1, COUNT)
    format_volume(tmp_path / "volume.img", 1 << 20)
    job = ["move_rows", source, f"block://{tmp_path}/volume.img"]
    assert set(race(zygote, rival, tmp_path / "gate", job, job)) <= {"", "Locked"}
    assert zygote.value("error_of", *job) == ""
    assert zygote.value("look", job[2], "arrow", 1, COUNT) == "whole"


def test_move_and_ingest_of_other_content_one_wins(zygote: Zygote, rival: Zygote, tmp_path: Path) -> None:
    source = str(tmp_path / "source")
    zygote.value("ingest_rows", source, "arrow", 1, COUNT)
    for lap in range(ROUNDS):
        place = str(tmp_path / str(lap))
        jobs = [["move_rows", source, place], ["ingest_rows", place, "arrow", 2, COUNT]]
        told = race(zygote, rival, tmp_path / "gate", *jobs)
        assert sorted(told) == ["", "Conflict"]
        assert zygote.value("look", place, "arrow", 1 + told.index(""), COUNT) == "whole"


def test_move_and_release_leave_a_whole_copy_or_none(zygote: Zygote, rival: Zygote, tmp_path: Path) -> None:
    source = str(tmp_path / "source")
    zygote.value("ingest_rows", source, "arrow", 1, COUNT)
    for lap in range(ROUNDS):
        place = str(tmp_path / str(lap))
        zygote.value("move_rows", source, place)
        jobs = [["move_rows", source, place], ["release_rows", place, source]]
        told = race(zygote, rival, tmp_path / "gate", *jobs)
        assert set(told) <= {"", "Conflict", "NotFound"}, told
        assert zygote.value("look", place, "arrow", 1, COUNT) in ("whole", "absent")
        assert zygote.value("look", source, "arrow", 1, COUNT) == "whole"


def test_two_releases_never_delete_both_copies(zygote: Zygote, rival: Zygote, tmp_path: Path) -> None:
    for lap in range(ROUNDS):
        one, other = str(tmp_path / f"{lap}-one"), str(tmp_path / f"{lap}-other")
        zygote.value("ingest_rows", one, "arrow", 1, COUNT)
        zygote.value("move_rows", one, other)
        race(
            zygote,
            rival,
            tmp_path / "gate",
            ["release_rows", one, other],
            ["release_rows", other, one],
        )
        looks = [zygote.value("look", place, "arrow", 1, COUNT) for place in (one, other)]
        assert "whole" in looks


INTENTS = [letter * 64 for letter in "abc"]


class Interposed(Wrapper):
    """Lets something happen right after its first listing."""

    def __init__(self, inner: Store, then: Callable[[], object]) -> None:
        super().__init__(inner)
        self._then = [then]

    def children(self, prefix: str = "") -> Sequence[str]:
        found = self.inner.children(prefix)
        while self._then:
            self._then.pop()()
        return found


def test_claim_that_was_overtaken_by_two_others_gives_way() -> None:
    store = MemoryStore("memory")
    first, second, slow = INTENTS
    with claimed(store, "web", first, shared=False):
        pass
    with contextlib.ExitStack() as held:

        def overtake() -> None:
            with claimed(store, "web", first, shared=False):
                pass
            held.enter_context(claimed(store, "web", second, shared=False))

        with pytest.raises(Conflict), claimed(Interposed(store, overtake), "web", slow, shared=False):
            pytest.fail("two intents hold one name")
    with claimed(store, "web", slow, shared=False):
        pass


@pytest.mark.parametrize("if_absent", [False, True])
def test_sweep_beside_a_writer_takes_nothing_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, if_absent: bool
) -> None:
    for call in ("fdatasync", "rename", "link"):
        real = getattr(os, call)

        def swept_before(*arguments: Any, real: Any = real, **options: Any) -> Any:
            assert FileStore("other", tmp_path).sweep() == 0
            return real(*arguments, **options)

        monkeypatch.setattr(os, call, swept_before)
    store = FileStore("file", tmp_path)
    store.write("a/b", [b"bytes"], if_absent=if_absent)
    assert store.read("a/b") == b"bytes"


def test_claim_of_a_process_whose_number_was_given_to_another_does_not_count(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    reused = replace(process.current(), started=1)
    claim = Claim(1, INTENTS[0], reused, "token")
    tier.store.write("web/.tiering/claims/00000001.json", [claim.encode()])
    with claimed(tier.store, "web", INTENTS[1], shared=False):
        pass


def test_ingest_looks_again_once_it_holds_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["tiering.ingest"]
    place = str(tmp_path)

    def claimed_late(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(module, "claimed", claimed)
        work.ingest_rows(place, "arrow", 1, COUNT)  # by another process, from beginning to end
        return claimed(*arguments, **options)

    monkeypatch.setattr(module, "claimed", claimed_late)
    with pytest.raises(Conflict):
        work.ingest_rows(place, "arrow", 2, COUNT)
    assert work.look(place, "arrow", 1, COUNT) == "whole"


def tiering(folder: Path, *arguments: object) -> Terminal:
    environment = {"TERM": "xterm"}
    return Terminal([sys.executable, "-c", MAIN, *map(str, arguments)], folder, environment)


def test_ingest_beside_one_at_work_is_refused_until_that_ends(tmp_path: Path) -> None:
    for name in ("text", "other"):
        (tmp_path / name).write_bytes(name.encode() * 500_000)
    lake = open_tier(tmp_path / "lake")
    options = ("--to", "./lake", "--name", "web", "--reader", "text", "--shard-size", "16KiB")

    def ingest_here(name: str) -> Corpus:
        return ingest(tmp_path / name, lake, "web", reader="text", shard_size="16KiB")

    with tiering(tmp_path, "ingest", tmp_path / "text", *options) as at_work:
        at_work.wait_for("web: ")  # its progress bar
        os.killpg(at_work.process.pid, signal.SIGSTOP)
        with pytest.raises(Locked):
            ingest_here("text")
        with pytest.raises(Conflict):
            ingest_here("other")
        os.killpg(at_work.process.pid, signal.SIGKILL)
        assert at_work.end() == -signal.SIGKILL
    assert verify(ingest_here("other")).ok
    with pytest.raises(Conflict):
        ingest_here("text")


def test_command_ingest_of_other_content_exits_with_1(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).write_text(name * 5000)

    def command(name: str) -> Terminal:
        return tiering(tmp_path, "ingest", name, "--to", "./lake", "--name", "web", "--reader", "text")

    with command("one") as one, command("other") as other:
        assert sorted([one.end(), other.end()]) == [0, 1], (one, other)
        assert ("Conflict" in one.errors) != ("Conflict" in other.errors)


def test_command_run_of_a_running_job_file_exits_with_11(tmp_path: Path, zygote: Zygote) -> None:
    zygote.value("ingest_rows", str(tmp_path / "lake"), "arrow", 1, MANY)
    tiers = "".join(f'[tiers.{name}]\nurl = "{tmp_path}/{name}"\n' for name in ("lake", "disk"))
    job = '[[jobs]]\nname = "morning"\nkind = "stage"\ncorpus = "web"\nfrom = "lake"\nto = "disk"\n'
    (tmp_path / "jobs.toml").write_text(tiers + job)
    with tiering(tmp_path, "run", "jobs.toml") as first:
        first.wait_for("move 'web'")  # its plan
        os.killpg(first.process.pid, signal.SIGSTOP)
        with tiering(tmp_path, "run", "jobs.toml") as second:
            assert second.end() == 11, second
            assert "Locked" in second.errors
        os.killpg(first.process.pid, signal.SIGCONT)
        assert first.end() == 0, first
    assert zygote.value("look", str(tmp_path / "disk"), "arrow", 1, MANY) == "whole"
