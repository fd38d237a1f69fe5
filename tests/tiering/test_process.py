from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiering.corpora import dead, python
from tiering import process
from tiering.process import ProcessId, current


def test_process_knows_itself_alive() -> None:
    me = current()
    assert me == current()
    assert me.pid == os.getpid()
    assert me.is_alive()
    assert not me.is_dead()


def test_process_text_round_trip() -> None:
    assert ProcessId.parse(current().text()) == current()
    for bad in ("", "a/b", "a/b/c", "a/1/x"):
        with pytest.raises(ValueError, match=r".*"):
            ProcessId.parse(bad)


def test_process_killed_is_dead_also_while_nobody_waited_for_it() -> None:
    with python("import sys; sys.stdin.read()") as child:
        them = ProcessId(current().machine, child.pid, process._start_time(child.pid) or 0)
        assert them.is_alive()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended and is still a zombie
        assert them.is_dead()
        assert not them.is_alive()
    assert them.is_dead()


def test_process_whose_first_thread_ended_lives_while_another_runs() -> None:
    """As one that was killed while a thread waits for a disk that does not answer."""
    code = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
ctypes.CDLL(None).pthread_exit(None)
"""
    with python(code) as child:
        stat = Path(f"/proc/{child.pid}/stat")
        while (state := stat.read_bytes().rpartition(b")")[2].split()[0]) != b"Z":
            assert child.poll() is None, state
        them = ProcessId(current().machine, child.pid, int(stat.read_bytes().rpartition(b")")[2].split()[19]))
        assert them.is_alive()
        assert not them.is_dead()
    assert them.is_dead()


def test_process_of_a_reused_pid_is_dead() -> None:
    assert replace(current(), started=1).is_dead()
    assert dead().is_dead()


def test_process_of_another_machine_is_neither() -> None:
    them = replace(current(), machine="other")
    assert not them.is_alive()
    assert not them.is_dead()


def test_process_that_proc_hides_is_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    def hide(path: Path) -> bytes:
        raise PermissionError

    them = current()
    current.__globals__["_machine"]()  # cached before /proc is hidden
    monkeypatch.setattr(Path, "read_bytes", hide)
    assert not them.is_alive()
    assert not them.is_dead()


@pytest.mark.parametrize("pid", [1 << 30, 1 << 70])
def test_process_number_that_none_has_is_dead(pid: int) -> None:
    assert replace(current(), pid=pid).is_dead()
