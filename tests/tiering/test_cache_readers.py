"""Readers that are registered with a node cache: who they are, how far, and that the dead are gone."""

from __future__ import annotations

import gc
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from loaders import Loader
from tests.corpora import memory_corpus, run_python, start_python
from tests.tiering.cache_tools import Make, caches_in, name_of, outlook, put
from tiering import NodeCache
from tiering.cache import Registration, numbers_of, registration
from tiering.errors import Corrupt


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with caches_in(tmp_path / "cache") as make_cache:
        yield make_cache


def files_of(nodes: NodeCache) -> list[Path]:
    return sorted((nodes.path / "readers").iterdir())


def test_registration_says_who_reads_and_how_far(make: Make) -> None:
    nodes, reader = make(9), Registration()
    nodes.foretell(
        reader, outlook([[0, 1, 2], [2, 0, 1]], 0.25, corpus="web", version=3, rank=1, world_size=2)
    )
    reader.begin(0)
    for number in (0, 1):
        put(nodes, number, reader=reader)
    (one,) = make(9).status().readers  # as another process sees it
    assert (one.pid, one.corpus, one.version, one.rank, one.world_size) == (os.getpid(), "web", 3, 1, 2)
    assert (one.epoch, one.position, one.uses, one.uses_per_second) == (0, 2, 3, 0.25)
    assert 0 <= one.idle_seconds < 60
    reader.begin(1)
    put(nodes, 2, reader=reader)
    (one,) = nodes.status().readers
    assert (one.epoch, one.position, one.uses) == (1, 1, 3)


def test_registration_measures_its_speed(make: Make) -> None:
    nodes, reader = make(9), Registration()
    nodes.foretell(reader, outlook([range(4)], 0.0))
    for number in range(3):
        put(nodes, number, reader=reader)
    (one,) = nodes.status().readers
    assert one.uses_per_second > 0


def test_registration_ends_with_its_reader_and_is_replaced_when_renewed(make: Make) -> None:
    nodes, reader = make(9), Registration()
    nodes.foretell(reader, outlook([[0, 1]]))
    before = files_of(nodes)
    nodes.foretell(reader, outlook([[1, 0]]))
    (file,) = files_of(nodes)
    assert [file] != before
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(nodes.status().readers) == 1
    del reader
    gc.collect()
    assert files_of(nodes) == []
    assert nodes.status().readers == ()


def test_registration_takes_uses_out_of_turn_for_done_and_forgives_what_never_comes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(registration, "_SLACK", 4)
    reader = Registration()
    reader.renew(tmp_path, outlook([range(12)]))
    assert [reader.ask(name_of(number)) for number in (1, 0, 2, 4)] == [2, 1, 3, 5]
    assert reader.done == 3  # 3 was not asked for yet
    assert [reader.ask(name_of(number)) for number in (5, 6)] == [6, 7]
    assert reader.done == 3
    reader.ask(name_of(7))
    assert reader.done == 8  # and will not be
    assert reader.ask(name_of(7)) == 8  # asked for again


def test_registration_that_is_asked_before_it_knows_its_future_catches_up(tmp_path: Path) -> None:
    reader = Registration()
    reader.begin(5)
    for number in (0, 1):
        reader.ask(name_of(number))
    reader.renew(tmp_path, outlook([[0, 1, 2], [1, 0, 2]], first_epoch=5))
    assert reader.done == 2
    assert reader.ask(name_of(1)) == 2  # its next use is of another epoch
    reader.begin(6)
    assert (reader.done, reader.ask(name_of(1))) == (3, 4)
    reader.begin(6)  # the epoch begins anew
    assert reader.done == 3
    reader.begin(9)  # nothing of that was foretold
    assert reader.ask(name_of(1)) == reader.done == 3


def test_registration_is_bounded_by_the_horizon(monkeypatch: pytest.MonkeyPatch, make: Make) -> None:
    monkeypatch.setattr(registration, "HORIZON", 5)
    nodes, reader = make(9), Registration()
    nodes.foretell(reader, outlook([range(4), range(4)]))
    (found,) = nodes._admission.readers.living()
    assert (len(found.told.uses), found.told.about.epoch_ends) == (5, [4])
    assert files_of(nodes)[0].stat().st_size < 1000


@pytest.mark.parametrize("garbage", [b"", b"TIERRDR1", b"x" * 500, b"TIERRDR1" + bytes(48) + b"{}"])
def test_registration_that_makes_no_sense_is_passed_over(make: Make, garbage: bytes) -> None:
    nodes, reader = make(9), Registration()
    nodes.foretell(reader, outlook([[0, 1]]))
    (file,) = files_of(nodes)
    with file.open("r+b") as handle:  # still locked by a living reader
        handle.truncate(0)
        handle.write(garbage)
    other = make(9, "clairvoyant")
    assert other.status().readers == ()
    assert put(other, 1)
    (nodes.path / "readers" / "folder").mkdir()
    (nodes.path / "readers" / "link").symlink_to("/dev/null")
    assert other.status().readers == ()


@pytest.mark.parametrize(
    "about", [{}, [], {"pid": -1}, {"pid": "x"}, {"epoch_ends": [9]}, {"epoch_ends": [2, 1]}, {"corpus": 7}]
)
def test_registration_with_a_senseless_header_is_passed_over(
    make: Make, monkeypatch: pytest.MonkeyPatch, about: object
) -> None:
    nodes, reader, dumps = make(9), Registration(), registration.json.dumps
    monkeypatch.setattr(registration.json, "dumps", lambda real: dumps({**real, **about} if about else about))
    nodes.foretell(reader, outlook([[0, 1]]))
    monkeypatch.undo()
    assert nodes.status().readers == ()
    assert put(nodes, 0, reader=reader)


READER = """
import os, signal, sys
from tests.tiering.cache_tools import NBYTES, outlook, put
from tiering import NodeCache
from tiering.cache import Registration

nodes, reader = NodeCache(sys.argv[1], 3 * NBYTES), Registration()
nodes.foretell(reader, outlook([[0, 1, 2]]))
put(nodes, 0, reader=reader)
child = os.fork()
if not child:  # outlives its parent, and must not keep its registration alive
    os.close(1)
    sys.stdin.readline()
    os._exit(0)
print("reading", flush=True)
signal.pause()
"""


def test_registration_of_a_killed_process_is_gone_at_once_also_where_its_child_lives(make: Make) -> None:
    nodes = make(3)
    with start_python(READER, nodes.path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        (one,) = nodes.status().readers
        assert (one.pid, one.position) == (process.pid, 1)
        process.kill()
        process.wait()
        assert nodes.status().readers == ()
        assert files_of(nodes) == []


FORKED = """
import os, sys, warnings
from loaders import Loader
from tests.corpora import make_corpus, promised, seen
from tiering import NodeCache, open_tier

warnings.simplefilter("ignore", DeprecationWarning)
corpus = make_corpus(open_tier(sys.argv[1] + "/tier"), 64, 4, 4, format="arrow")
nodes = NodeCache(sys.argv[1] + "/cache", corpus.nbytes // 2)
loader = Loader(corpus, 16, cache=nodes)
seen(loader)
child = os.fork()
if not child:
    loader.set_epoch(0)
    assert seen(loader) == promised(loader.order, 16)
    print(sorted({one.pid == os.getpid() for one in nodes.status().readers}), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print([one.pid == os.getpid() for one in nodes.status().readers])
nodes.close()
"""


def test_loader_in_a_forked_child_registers_for_itself(tmp_path: Path) -> None:
    assert run_python(FORKED, tmp_path).splitlines() == ["[False, True]", "[True]"]


def test_loader_registers_what_it_will_read(tmp_path: Path) -> None:
    with memory_corpus(160, 4, 4) as corpus:
        nodes = NodeCache(tmp_path, corpus.nbytes)
        loader = Loader(corpus, 16, rank=1, world_size=2, cache=nodes, lanes=2)
        for _ in loader:
            pass
        (one,) = nodes.status().readers
        assert (one.corpus, one.version, one.rank, one.world_size, one.epoch) == ("c", 1, 1, 2, 0)
        shards = len(loader.order.shards(0, 1)) * len(corpus.schema.names)
        assert (one.position, one.uses) == (shards, shards)
        copy = pickle.loads(pickle.dumps(loader))  # one more reader, once it reads
        assert len(nodes.status().readers) == 1
        copy.set_epoch(4)
        batches = iter(copy)
        next(batches)
        state = copy.state_dict()
        batches.close()
        copy.load_state_dict(state)
        for _ in copy:
            pass
        assert sorted(one.epoch for one in nodes.status().readers) == [0, 4]
        del loader, copy, batches
        gc.collect()
        assert nodes.status().readers == ()
        nodes.close()


def test_shards_are_told_by_the_first_eight_bytes_of_their_digests() -> None:
    assert numbers_of(["00000000000000ff" * 4]).tolist() == [255]
    assert numbers_of([]).dtype == np.uint64
    with pytest.raises(Corrupt, match="no digest"):
        numbers_of(["nonsense" * 8])
