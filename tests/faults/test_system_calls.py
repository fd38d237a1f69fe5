"""P3, P4: killed at any system call, or with any failing, the commit path is old or new, and converges.

The kernel's side of every promise: `strace` kills or fails the real call, so nothing of Python is replaced.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.steps import strace_missing
from tests.faults.zygote import Zygote

STRIDE = int(os.environ.get("TIERING_CALLS_STRIDE", "48"))
"""Kill or fail every call (1); or of large jobs every 48th, of publishing every sixth, of one object all."""

COUNT = 20
FACTS: list[Any] = ["arrow", 1, COUNT]
MISSING = strace_missing()
INTERRUPTED = ("write", "openat", "fsync", "fdatasync", "fallocate")
"""Calls that a signal may interrupt; whoever made them must make them again."""

pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"{MISSING}")

Setup = Callable[[Path], list[Any]]


@pytest.fixture(scope="module")
def corpus(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    zygote.value("ingest_rows", str(folder / "whole"), *FACTS)
    shutil.copytree(folder / "whole", folder / "hidden")
    zygote.value("hide", str(folder / "hidden"))
    zygote.value("lay_old", str(folder / "old"))
    return folder


def copies(corpus: Path, names: dict[str, str], *more: Any) -> Setup:
    """Makes the arguments of a job: fresh copies of these parts of the corpus, and more."""

    def setup(folder: Path) -> list[Any]:
        folder.mkdir()
        for name, part in names.items():
            if part:
                shutil.copytree(corpus / part, folder / name)
        return [*(str(folder / name) for name in names), *more]

    return setup


SMALL: dict[str, tuple[dict[str, str], list[Any], str, list[Any]]] = {
    "replace_object": ({"place": "old"}, [], "object_again", ["replace_object"]),
    "create_object": ({"place": ""}, [], "object_again", ["create_object"]),
    "delete_object": ({"place": "old"}, [], "object_again", ["delete_object"]),
    "publish_version": ({"place": "hidden"}, [1], "publish_again", FACTS),
    "replace_head": ({"place": "whole"}, [2], "publish_again", FACTS),
    "hold_name": ({"place": ""}, [], "hold_name_again", []),
}
"""Job: what it is given, and the job that looks at what is left and does it again."""

PUBLISHING = {"publish_version", "replace_head"}

LARGE: dict[str, tuple[dict[str, str], list[Any], str, list[Any]]] = {
    "ingest_rows": ({"place": ""}, FACTS, "ingest_again", []),
    "move_rows": ({"from": "whole", "to": ""}, [], "move_again", FACTS),
    "demote_rows": ({"from": "whole", "to": ""}, [], "demote_again", FACTS),
    "release_rows": ({"place": "whole", "proof": "whole"}, [], "release_again", FACTS),
}

STATES = {
    "replace_object": {"old", "new"},
    "create_object": {"absent", "new"},
    "delete_object": {"old", "absent"},
    "publish_version": {"0", "1"},
    "replace_head": {"1", "2"},
    "hold_name": {"0", "1"},
    "release_rows": {"whole", "absent"},
    "ingest_rows": {"absent", "whole"},
    "move_rows": {"absent", "whole"},
    "demote_rows": {"whole absent", "whole whole", "absent whole"},
}
"""What may be found after a fault: whole states alone."""


class Campaign:
    """One job, done again and again with another fault each time."""

    def __init__(self, zygote: Zygote, folder: Path, corpus: Path, job: str) -> None:
        names, more, self.again, self.facts = {**SMALL, **LARGE}[job]
        self.zygote, self.folder = zygote, folder
        self.job = {"replace_head": "publish_version"}.get(job, job)
        self.setup = copies(corpus, names, *more)
        self.states = STATES[job]
        self.seen: Counter[str] = Counter()
        self.counts: dict[str, int] = zygote.value("calls_of", self.job, *self.setup(folder / "count"))
        self.rounds = 0

    def do(self, call: str, how: str) -> tuple[bool, str, int]:
        """One round; whether the process was killed, its error, and how many calls failed."""
        self.rounds += 1
        place = self.folder / str(self.rounds)
        arguments = self.setup(place)
        outcome = self.zygote.run("with_calls", [call], how, self.job, *arguments)
        what = f"{self.job}, {call}: {how}"
        assert outcome.error is None, (what, outcome.error)
        told, failed = outcome.value or ["", 0]
        try:
            found = self.zygote.value(self.again, *arguments, *self.facts)
        except AssertionError as error:
            raise AssertionError(f"{what} ({told or 'no error'}): {error}") from error
        assert found in self.states, what
        self.seen[found] += 1
        shutil.rmtree(place)
        return outcome.killed, told, failed

    def steps(self, stride: int) -> list[tuple[str, int]]:
        """Each call by its number, or every `stride`-th of all."""
        every = [(call, n) for call, count in self.counts.items() for n in range(1, count + 1)]
        return every[::stride]


def stride_of(job: str) -> int:
    if job in LARGE:
        return STRIDE
    return min(6, STRIDE) if job in PUBLISHING else 1


def campaign_of(zygote: Zygote, tmp_path: Path, corpus: Path, job: str) -> Campaign:
    campaign = Campaign(zygote, tmp_path, corpus, job)
    assert sum(campaign.counts.values()) > 3, campaign.counts
    return campaign


@pytest.mark.parametrize("job", [*SMALL, *LARGE])
def test_killed_at_every_system_call_is_finished_by_the_next(
    zygote: Zygote, tmp_path: Path, corpus: Path, job: str
) -> None:
    campaign = campaign_of(zygote, tmp_path, corpus, job)
    for call, n in campaign.steps(stride_of(job)):
        killed, _, _ = campaign.do(call, f"signal=KILL:when={n}")
        assert killed, (call, n)
    killed, told, _ = campaign.do("fsync", f"signal=KILL:when={campaign.counts['fsync'] + 1}")
    assert (killed, told) == (False, "")  # so these were all of them
    if job in SMALL:
        assert set(campaign.seen) == campaign.states


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("job", [*SMALL, *LARGE])
def test_any_system_call_that_fails_is_a_typed_error_or_success(
    zygote: Zygote, tmp_path: Path, corpus: Path, job: str, error: str
) -> None:
    campaign = campaign_of(zygote, tmp_path, corpus, job)
    told: Counter[str] = Counter()
    for number, (call, n) in enumerate(campaign.steps(2 * stride_of(job))):
        for_ever = "+" if number % 2 else ""
        killed, name, failed = campaign.do(call, f"error={error}:when={n}{for_ever}")
        assert not killed
        assert failed, (call, n)
        told[name] += 1
    assert set(told) <= {"", "Unavailable", "CapacityExceeded", "Corrupt", "LastCopy"}, told
    assert told.total() > told[""]


@pytest.mark.parametrize("job", ["replace_object", "create_object", "publish_version"])
def test_interrupted_system_call_is_made_again(
    zygote: Zygote, tmp_path: Path, corpus: Path, job: str
) -> None:
    campaign = campaign_of(zygote, tmp_path, corpus, job)
    for call in INTERRUPTED:
        for n in range(1, campaign.counts.get(call, 0) + 1, stride_of(job)):
            killed, told, failed = campaign.do(call, f"error=EINTR:when={n}")
            assert (killed, failed) == (False, 1), (call, n)
            # Python repeats all of them but the opening of a folder that is listed.
            assert told == "" or (call, told) == ("openat", "Unavailable"), (call, n)
    assert campaign.rounds > 3


@pytest.mark.parametrize(
    ("call", "error", "names"),
    [
        ("openat", "EMFILE", {"Unavailable"}),
        ("openat", "ENFILE", {"Unavailable"}),
        ("openat", "EROFS", {"UsageError", "Unavailable"}),
        ("write", "EDQUOT", {"CapacityExceeded"}),
        ("fallocate", "ENOSPC", {"CapacityExceeded"}),
    ],
)
def test_move_that_runs_out_of_something_for_good_is_a_typed_error(
    zygote: Zygote, tmp_path: Path, corpus: Path, call: str, error: str, names: set[str]
) -> None:
    campaign = campaign_of(zygote, tmp_path, corpus, "move_rows")
    count = campaign.counts[call]
    told = {campaign.do(call, f"error={error}:when={n}+")[1] for n in range(1, count + 1, -(-count // 6))}
    assert told <= {"", *names}
    assert told & names


@pytest.mark.parametrize("call", ["fsync", "openat"])
def test_delete_whose_folder_cannot_be_synced_is_a_typed_error(
    zygote: Zygote, tmp_path: Path, call: str
) -> None:
    zygote.value("lay_old", str(tmp_path))
    outcome = zygote.run("with_calls", [call], "error=EIO:when=1", "delete_object", str(tmp_path))
    assert outcome.error is None
    assert outcome.value == ["Unavailable", 1]
