"""An encrypted store under threads and processes: one corpus key, and readers that go undisturbed."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conformance.patterns import read_range
from tests.tiering.corpora import python
from tests.tiering.encryption.tools import encrypted
from tiering.encryption.frames import FRAME_BYTES
from tiering.stores.file import FileStore
from tiering.stores.memory import MemoryStore

DATA = random.Random(1).randbytes(2 * FRAME_BYTES + 100)


def test_threads_that_write_first_use_one_key(tmp_path: Path) -> None:
    inner = MemoryStore("lake")
    stores = [encrypted(inner, tmp_path) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: stores[i].write(f"web/{i}", [b"%d" % i]), range(8)))
    for i in range(8):
        assert stores[-1 - i].read(f"web/{i}") == b"%d" % i


WRITER = """
import sys
from pathlib import Path
from tests.tiering.encryption.tools import encrypted
from tiering.stores.file import FileStore

folder = Path(sys.argv[1])
store = encrypted(FileStore("lake", folder / "lake"), folder)
print("ready", flush=True)
sys.stdin.readline()
store.write(f"web/{sys.argv[2]}", [b"from " + sys.argv[2].encode()])
"""


def test_processes_that_write_first_use_one_key(tmp_path: Path) -> None:
    encrypted(MemoryStore("lake"), tmp_path)  # makes the key file
    writers = [python(WRITER, tmp_path, number) for number in range(2)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        assert writer.wait(60) == 0
        writer.communicate()
    store = encrypted(FileStore("lake", tmp_path / "lake"), tmp_path)
    for number in range(2):
        assert store.read(f"web/{number}") == b"from %d" % number


def test_threads_that_read_one_object_do_not_disturb_each_other(tmp_path: Path) -> None:
    store = encrypted(MemoryStore("lake"), tmp_path)
    store.write("web/s", [DATA])

    def look(seed: int) -> bool:
        chance = random.Random(seed)
        starts = [chance.randrange(len(DATA) - 1000) for _ in range(40)]
        return all(read_range(store, "web/s", start, 1000) == DATA[start : start + 1000] for start in starts)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(look, range(8)))
