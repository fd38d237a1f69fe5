"""The file tier: rights, links, unfinished writes of others, and a disk or server that fails."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tiering.corpora import dead, python
from tiering import process
from tiering.errors import NotFound, UsageError
from tiering.stores import file_systems
from tiering.stores.base import Strays
from tiering.stores.file import FileStore


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore("file", tmp_path / "root")


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system whose locks may not reach other machines."""
    monkeypatch.setattr(file_systems, "locks_are_believed", lambda _fd: False)


def temps(store: FileStore) -> list[Path]:
    return sorted(store.root.rglob(".tmp-*"))


# Rights and links


def test_write_makes_folders_and_files_for_this_user_alone(store: FileStore) -> None:
    before = os.umask(0)
    try:
        store.write("a/b/k", [b"x"])
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (store.root, *store.root.rglob("*"))}
    assert modes == {"root": 0o700, "a": 0o700, "b": 0o700, "k": 0o600}


def calls(key: str) -> list[Callable[[FileStore], object]]:
    return [
        lambda store: store.read(key),
        lambda store: store.read_into(key, 0, memoryview(bytearray(1))),
        lambda store: store.stat(key),
        lambda store: store.locate(key),
        lambda store: store.write(key, [b"new"]),
        lambda store: store.write(key, [b"new"], if_absent=True),
        lambda store: store.delete(key),
    ]


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("key", ["link", "folder/k", "a/inner/k", "dangling"])
def test_symbolic_link_below_the_root_is_refused(
    store: FileStore, tmp_path: Path, number: int, key: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "k").write_bytes(b"secret")
    store.write("a/k", [b"x"])
    for link, target in {"link": "k", "folder": ".", "a/inner": ".", "dangling": "none"}.items():
        (store.root / link).symlink_to(outside / target)
    # An object is not there; to change what is, or to pass through it, is refused.
    missing = number < 4 and "/" not in key
    with pytest.raises(NotFound if missing else UsageError, match="symbolic link") as caught:
        calls(key)[number](store)
    assert (caught.value.tier, caught.value.key) == ("file", key)
    assert [path.name for path in outside.iterdir()] == ["k"]
    assert (outside / "k").read_bytes() == b"secret"


def test_list_and_sweep_neither_show_nor_follow_links(store: FileStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "k").write_bytes(b"secret")
    (outside / f".tmp-{secrets.token_hex(8)}").write_bytes(b"theirs")
    store.write("a/k", [b"x"])
    (store.root / "link").symlink_to(outside / "k")
    (store.root / "folder").symlink_to(outside)
    assert [info.key for info in store.list()] == ["a/k"]
    assert list(store.children()) == ["a"]
    for call in (lambda: list(store.list("folder")), lambda: store.children("folder")):
        with pytest.raises(UsageError):
            call()
    with pytest.raises(UsageError):
        store.sweep("folder")
    assert store.sweep() == 0
    assert len(list(outside.iterdir())) == 2


def test_folder_that_becomes_a_link_during_a_call_leads_nowhere(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    (outside / "b").mkdir(parents=True)
    (outside / "b" / "k").write_bytes(b"secret")
    store.write("a/b/k", [b"mine"])
    opened = os.open

    def open_and_swap(path: Any, *arguments: Any, **options: Any) -> int:
        if path == "b":
            monkeypatch.setattr(os, "open", opened)
            (store.root / "a").rename(store.root / "moved")
            (store.root / "a").symlink_to(outside)
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", open_and_swap)
    assert store.read("a/b/k") == b"mine"


def test_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    store = FileStore("file", tmp_path / "link")
    store.write("a/k", [b"x"])
    assert store.read("a/k") == b"x"
    assert store.locate("a/k").path.read_bytes() == b"x"
    store.delete("a/k")
    assert list((tmp_path / "real").iterdir()) == []


def test_fifo_and_names_that_nfs_keeps_are_no_objects(store: FileStore) -> None:
    store.write("a/k", [b"x"])
    silly = f".nfs{secrets.token_hex(12)}"
    (store.root / "a" / silly).write_bytes(b"removed while open")
    os.mkfifo(store.root / "pipe")
    assert [info.key for info in store.list("a")] == ["a/k"]
    assert list(store.children("a")) == ["k"]
    with pytest.raises(NotFound):
        store.read("pipe")
    with pytest.raises(UsageError):
        store.write(f"a/{silly}", [b"x"])


def test_object_in_the_way_of_a_folder_is_kept(store: FileStore) -> None:
    store.write("a", [b"x"])
    with pytest.raises(UsageError, match="in the way"):
        store.write("a/k", [b"y"])
    store.write("b/k", [b"y"])
    with pytest.raises(UsageError, match="in the way"):
        store.write("b", [b"x"])
    assert (store.read("a"), store.read("b/k")) == (b"x", b"y")
    assert temps(store) == []


# Unfinished writes


def owned(owner: process.ProcessId) -> str:
    return f".tmp-{owner.text().replace('/', '~')}~{secrets.token_hex(8)}"


def leave(store: FileStore, name: str) -> Path:
    store.write("a/k", [b"x"])
    path = store.root / "a" / name
    path.write_bytes(b"half")
    return path


@pytest.mark.usefixtures("far")
def test_sweep_where_locks_are_not_believed_takes_only_what_is_proven_dead(store: FileStore) -> None:
    here = process.current()
    elsewhere = replace(dead(), machine="another-boot-4026531836")
    kept = [leave(store, owned(owner)) for owner in (here, elsewhere)]
    kept.append(leave(store, f".tmp-{secrets.token_hex(8)}"))
    for owner in (dead(), replace(here, started=1)):
        leave(store, owned(owner))
    assert store.sweep() == 2
    assert temps(store) == sorted(kept)


def test_sweep_where_locks_are_believed_also_spares_owners_of_other_machines(store: FileStore) -> None:
    other = leave(store, owned(replace(dead(), machine="another-boot-4026531836")))
    leave(store, owned(dead()))
    leave(store, f".tmp-{secrets.token_hex(8)}")
    assert store.sweep() == 2
    assert temps(store) == [other]


@pytest.mark.usefixtures("far")
def test_sweep_beside_a_writer_without_locks_takes_nothing_from_it(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for call in ("fdatasync", "rename"):
        real = getattr(os, call)

        def swept_before(*arguments: Any, real: Any = real, **options: Any) -> Any:
            seen.append(temps(store)[0].name)
            assert FileStore("other", store.root).sweep() == 0
            return real(*arguments, **options)

        monkeypatch.setattr(os, call, swept_before)
    store.write("a/b", [b"bytes"])
    assert store.read("a/b") == b"bytes"
    assert process.current().text().replace("/", "~") in seen[0]


@pytest.mark.parametrize("locks", [True, False])
def test_strays_are_those_whose_writers_nobody_here_can_know(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    monkeypatch.setattr(file_systems, "locks_are_believed", lambda _fd: locks)
    assert store.strays() == Strays()
    store.root /= "it's here"
    store = FileStore("file", store.root)
    for owner in (process.current(), dead()):
        leave(store, owned(owner))
    assert store.strays() == Strays()
    strays = [leave(store, owned(replace(dead(), machine="another-boot-4026531836")))]
    nameless = leave(store, f".tmp-{secrets.token_hex(8)}")
    strays += [] if locks else [nameless]
    found = store.strays()
    assert (found.count, found.nbytes) == (len(strays), len(b"half") * len(strays))
    store.sweep()
    assert set(temps(store)) >= set(strays)
    subprocess.check_call(found.command, shell=True)
    assert set(temps(store)) >= set(strays)  # they are young
    for path in strays:
        os.utime(path, (0, 0))
    subprocess.check_call(found.command, shell=True)
    assert not set(temps(store)) & set(strays)
    assert store.read("a/k") == b"x"


KILLED = """
import os, signal, sys
from pathlib import Path
from tiering.stores import file_systems
from tiering.stores.file import FileStore
file_systems.locks_are_believed = lambda fd: False
os.fdatasync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
FileStore("file", Path(sys.argv[1])).write("a/k", [b"half"])
"""


@pytest.mark.usefixtures("far")
def test_sweep_without_locks_takes_what_a_killed_process_left(store: FileStore) -> None:
    with python(KILLED, store.root) as child:
        child.wait(60)
    assert len(temps(store)) == 1
    assert store.sweep() == 1
    assert temps(store) == []


def test_locks_are_believed_on_local_file_systems_alone(tmp_path: Path) -> None:
    found = {}
    for place in (tmp_path, Path("/proc/self"), Path("/sys")):
        fd = os.open(place, os.O_PATH)
        found[place] = file_systems.locks_are_believed(fd)
        os.close(fd)
    kind = subprocess.check_output(["stat", "-f", "-c", "%t", tmp_path], text=True)
    assert found[tmp_path] == (int(kind, 16) in file_systems._ONE_KERNEL)
    assert not found[Path("/proc/self")]
    assert not found[Path("/sys")]
