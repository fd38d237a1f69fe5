"""Kill -9 at any instant leaves old or new, whole: through the index and through a scan of the volume."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tiering.stores.block import BlockStore
from tiering.stores.block_index import span_of
from tiering.stores.block_layout import DATA_START

MIB = 1 << 20
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def lose_index(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(f"{path.name}.index{suffix}").unlink(missing_ok=True)


def contents(store: BlockStore) -> dict[str, bytes]:
    return {info.key: bytes(store.read(info.key)) for info in store.list()}


KILL_AT_EVERY_STEP = """
import os, shutil, signal, sys
from pathlib import Path
from tiering.stores import block_stream
from tiering.stores.block import BlockStore

folder, what = Path(sys.argv[1]), sys.argv[2]

def act(store, steps):
    left = [steps]
    def step(*_):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
    def stepping(real):
        def call(*args):
            step()
            return real(*args)
        return call
    block_stream._put = stepping(block_stream._put)
    os.fdatasync = stepping(os.fdatasync)
    store._index._db.set_trace_callback(step)
    if what == "delete":
        store.delete("k")
    else:
        store.write("fresh" if what == "create" else "k", [b"n" * 9000])
    step()  # killed just after it returned

for steps in range(100):
    image = folder / f"{steps}.img"
    for suffix in ("", ".index"):
        shutil.copy(folder / f"volume.img{suffix}", f"{image}{suffix}")
    child = os.fork()
    if not child:
        act(BlockStore("child", image), steps)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        print(steps)
        break
"""


@pytest.mark.parametrize("what", ["create", "overwrite", "delete"])
def test_kill_at_every_step_leaves_old_or_new(path: Path, tmp_path: Path, what: str) -> None:
    old = {"k": b"o" * 5000, "other": b"x" * 100}
    with BlockStore("blocks", path) as store:
        for key, data in old.items():
            store.write(key, [data])
    new = {
        "create": {**old, "fresh": b"n" * 9000},
        "overwrite": {**old, "k": b"n" * 9000},
        "delete": {"other": old["other"]},
    }[what]
    run = subprocess.run(
        [sys.executable, "-c", KILL_AT_EVERY_STEP, str(tmp_path), what],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.stdout, run.stderr
    steps = int(run.stdout)
    assert steps >= 9
    seen = []
    for step in range(steps):
        image, scanned = tmp_path / f"{step}.img", tmp_path / f"{step}.scan.img"
        shutil.copy(image, scanned)
        for volume in (image, scanned):
            with BlockStore("blocks", volume) as store:
                assert store.rebuilt == (volume == scanned)
                found = contents(store)
                assert found in (old, new), step
                assert store.check() == []
                taken_bytes = sum(span_of(len(data)) for data in found.values())
                assert store.info().free_bytes == 2 * MIB - DATA_START - taken_bytes, "space leaked"
            lose_index(volume)
            with BlockStore(
                "blocks", volume
            ) as store:  # what opening decided is what a scan says from now on
                assert contents(store) == found
            seen.append(found)
    assert seen[0] == old
    assert seen[-1] == seen[-2] == new, "killed after it had returned"


WRITE_FOR_EVER = """
import sys
from pathlib import Path
from tiering.stores.block import BlockStore
sys.path.insert(0, sys.argv[2])
from test_block_kill import operation

store = BlockStore("child", Path(sys.argv[1]))
for number in range(int(sys.argv[3]), 1_000_000):
    key, data = operation(number)
    if data is None:
        store.delete(key)
    else:
        store.write(key, [data])
    print(number, flush=True)
"""


def operation(number: int) -> tuple[str, bytes | None]:
    dice = random.Random(number)
    key = f"dir{dice.randrange(2)}/k{dice.randrange(4)}"
    return key, None if dice.random() < 0.25 else bytes([number % 256]) * dice.randrange(60_000)


def apply(state: dict[str, bytes], number: int) -> dict[str, bytes]:
    key, data = operation(number)
    rest = {k: v for k, v in state.items() if k != key}
    return rest if data is None else {**rest, key: data}


def test_kill_of_a_busy_writer_loses_nothing_that_it_was_told(path: Path) -> None:
    dice = random.Random(7)
    state: dict[str, bytes] = {}
    done = 0
    for lap in range(6):
        command = [sys.executable, "-c", WRITE_FOR_EVER, str(path), str(Path(__file__).parent), str(done)]
        with subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout
            for _ in range(dice.randrange(1, 40)):
                assert child.stdout.readline()
                state, done = apply(state, done), done + 1
            child.kill()
            for _ in child.stdout.read().split():  # what it finished before the signal came
                state, done = apply(state, done), done + 1
        if lap % 2:
            lose_index(path)
        with BlockStore("blocks", path) as store:
            found = contents(store)
            assert store.check() == []
        assert found in (state, apply(state, done))
        lose_index(path)
        with BlockStore("blocks", path) as store:
            assert contents(store) == found
        if found != state:  # the child was killed after the commit and before it could tell
            state, done = found, done + 1
