from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.tiering.corpora import flip, killed_after, objects, python, small, small_arrow, tokens
from tiering import Corpus, Tier, catalog, ingest, open_corpus, plan_move, release, verify
from tiering.catalog import Record, publish, unpublish
from tiering.digest import digest
from tiering.errors import Conflict, Corrupt, FormatError, NotFound, UnsupportedVersion, UsageError
from tiering.keys import INTERNAL


def internal(tail: str) -> str:
    return f"web/{INTERNAL}/{tail}"


def second_version(corpus: Corpus) -> Record:
    """Publish the same rows as version 2, asked for differently."""
    contents = replace(corpus.contents, intent=digest(b"another"))
    return publish(corpus.tier.store, "web", 2, contents, contents.encode())


def test_catalog_lists_corpora_alone(lake: Tier) -> None:
    small(lake, "b")
    small(lake, "a")
    for foreign in ("readme", "folder/file", ".hidden/.tiering/versions/00000001.json", "half/.tiering/HEAD"):
        lake.store.write(foreign, [b"x"])
    assert catalog.corpora(lake.store) == ["a", "b"]


def test_catalog_head_names_the_newest_version(lake: Tier) -> None:
    corpus = small(lake)
    assert catalog.head(lake.store, "web") == corpus.record
    newer = second_version(corpus)
    assert catalog.head(lake.store, "web") == newer
    assert catalog.versions(lake.store, "web") == [1, 2]
    assert open_corpus(lake, "web").version == 2
    assert open_corpus(lake, "web", 1).record == corpus.record


@pytest.mark.parametrize(
    "damage", [None, b"", b"{", b"[]", b'{"format_version": 1}', b"\xff" * 20, b"x" * 70_000]
)
def test_catalog_head_that_is_missing_or_damaged_is_read_from_the_records(
    lake: Tier, damage: bytes | None
) -> None:
    corpus = small(lake)
    second_version(corpus)
    lake.store.delete(internal("HEAD"))
    if damage is not None:
        lake.store.write(internal("HEAD"), [damage])
    assert catalog.head(lake.store, "web").version == 2
    publish(lake.store, "web", 1, corpus.contents, corpus.contents.encode())
    assert objects(lake)[internal("HEAD")] == catalog.record(lake.store, "web", 2).encode()


def test_catalog_head_that_is_stale_is_not_believed(lake: Tier) -> None:
    corpus = small(lake)
    for wrong in (Record(7, "0" * 64), Record(1, "0" * 64)):
        lake.store.write(internal("HEAD"), [wrong.encode()])
        assert catalog.head(lake.store, "web") == corpus.record
    lake.store.delete(internal("versions/00000001.json"))
    with pytest.raises(NotFound, match="no corpus 'web'"):
        open_corpus(lake, "web")


def test_catalog_of_the_future_is_refused_by_name(lake: Tier) -> None:
    small(lake)
    future = b'{"format_version": 2, "all": "new"}'
    lake.store.write(internal("HEAD"), [future])
    with pytest.raises(UnsupportedVersion, match="corpus 'web' is of format version 2") as caught:
        open_corpus(lake, "web")
    assert (caught.value.tier, caught.value.key) == ("lake", internal("HEAD"))
    lake.store.write(internal("versions/00000001.json"), [future])
    with pytest.raises(UnsupportedVersion, match="Upgrade"):
        open_corpus(lake, "web", 1)


def test_catalog_what_is_not_there_is_not_found_and_says_what_is(lake: Tier) -> None:
    with pytest.raises(NotFound, match=r"no corpus 'web' \(tier 'lake'\).*tiering ls"):
        open_corpus(lake, "web")
    small(lake)
    with pytest.raises(NotFound, match=r"no version 7 of corpus 'web'.*Versions: 1"):
        open_corpus(lake, "web", 7)
    for name in ("../web", "", "a/b"):
        with pytest.raises(UsageError):
            open_corpus(lake, name)


@pytest.mark.parametrize(
    "record",
    [
        b"{",
        b'{"format_version": 1, "version": 2, "manifest": "%s"}' % (b"0" * 64),
        b'{"format_version": 1, "version": true, "manifest": "%s"}' % (b"0" * 64),
        b'{"format_version": 1, "version": 1, "manifest": "../../x"}',
        b'{"format_version": 1, "version": 0, "manifest": "%s"}' % (b"0" * 64),
        b" " * 70_000,
    ],
)
def test_catalog_record_that_is_none_is_a_format_error_with_its_key(lake: Tier, record: bytes) -> None:
    small(lake)
    lake.store.write(internal("versions/00000001.json"), [record])
    with pytest.raises(FormatError) as caught:
        open_corpus(lake, "web", 1)
    assert (caught.value.tier, caught.value.key) == ("lake", internal("versions/00000001.json"))


def test_catalog_manifest_that_is_missing_or_damaged_is_corrupt_with_its_key(lake: Tier) -> None:
    corpus = small(lake)
    key = catalog.manifest_key("web", corpus.record.manifest)
    flip(lake, key, 1000)
    with pytest.raises(Corrupt, match="other bytes than its name says") as caught:
        open_corpus(lake, "web")
    assert (caught.value.tier, caught.value.key) == ("lake", key)
    lake.store.delete(key)
    with pytest.raises(Corrupt, match="the manifest is missing"):
        open_corpus(lake, "web")


def test_publish_again_changes_nothing_and_mends_what_is_damaged(lake: Tier) -> None:
    corpus = small(lake)
    before = objects(lake)
    flip(lake, "web/zarr.json")
    flip(lake, catalog.manifest_key("web", corpus.record.manifest))
    assert publish(lake.store, "web", 1, corpus.contents, corpus.contents.encode()) == corpus.record
    assert objects(lake) == before


def test_publish_of_other_content_under_a_taken_number_writes_nothing(lake: Tier, disk: Tier) -> None:
    small(lake)
    other = small(disk, seed=5, rows=30)
    before = objects(lake)
    with pytest.raises(Conflict, match="already has a version 1"):
        publish(lake.store, "web", 1, other.contents, other.contents.encode())
    assert objects(lake) == before


def test_publish_sweeps_what_unfinished_work_left_and_nothing_else(lake: Tier, memory: Tier) -> None:
    left = small_arrow(memory, "web")
    with killed_after(4, lake):
        plan_move(left, lake).run()
    lake.store.write("web/old/c/0/0", [b"x"])
    for foreign in ("web/readme.md", "web/part-1.arrow", "web/notes/c.txt"):
        lake.store.write(foreign, [b"x"])
    assert "web/part-000000.arrow" in objects(lake)
    corpus = small(lake)
    assert verify(corpus).extra == ("notes/c.txt", "part-1.arrow", "readme.md")


def test_publish_races_of_threads_have_one_winner(memory: Tier, lake: Tier) -> None:
    made = [small(lake, f"web{seed}", seed=seed).contents for seed in range(6)]

    def work(number: int) -> Record | None:
        try:
            return publish(memory.store, "web", 1, made[number], made[number].encode())
        except Conflict:
            return None

    with ThreadPoolExecutor(6) as pool:
        records = [record for record in pool.map(work, range(6)) if record]
    assert len(records) == 1
    assert catalog.head(memory.store, "web") == records[0]


def test_publish_races_of_versions_leave_head_at_the_newest(memory: Tier, lake: Tier) -> None:
    contents = small(lake).contents

    def work(version: int) -> Record:
        other = replace(contents, intent=digest(str(version).encode()))
        return publish(memory.store, "web", version, other, other.encode())

    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(work, range(1, 9)))
    assert catalog.versions(memory.store, "web") == list(range(1, 9))
    assert objects(memory)[internal("HEAD")] == records[-1].encode()


RACE = """
import os, sys
from tiering import open_corpus, open_tier
from tiering.catalog import publish
from tiering.errors import Conflict
lake, disk = map(open_tier, sys.argv[1:])
children = []
for number in range(5):
    contents = open_corpus(lake, f"web{number}").contents
    child = os.fork()
    if not child:
        try:
            publish(disk.store, "web", 1, contents, contents.encode())
        except Conflict:
            os._exit(1)
        os._exit(0)
    children.append(child)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


def test_publish_races_of_processes_have_one_winner(lake: Tier, disk: Tier) -> None:
    made = [small(lake, f"web{seed}", seed=seed).record.manifest for seed in range(5)]
    with python(RACE, lake.url, disk.url) as child:
        told, _ = child.communicate()
    codes = eval(told)
    assert sorted(codes) == [0, 1, 1, 1, 1]
    assert catalog.head(disk.store, "web").manifest == made[codes.index(0)]


def test_unpublish_makes_a_version_invisible_and_keeps_the_others(lake: Tier) -> None:
    corpus = small(lake)
    second_version(corpus)
    unpublish(lake.store, "web", 2)
    assert open_corpus(lake, "web").version == 1
    assert objects(lake)[internal("HEAD")] == corpus.record.encode()
    unpublish(lake.store, "web", 1)
    assert catalog.corpora(lake.store) == []
    assert internal("HEAD") not in objects(lake)
    assert verify_shards(corpus) == 6


def verify_shards(corpus: Corpus) -> int:
    return len(corpus.manifest) - len(corpus.absent())


def test_unpublish_killed_after_each_step_is_gone_from_the_first_one(lake: Tier) -> None:
    for changes in range(3):
        name = f"web{changes}"
        small(lake, name)
        with killed_after(changes, lake) as stores:
            unpublish(lake.store, name, 1)
        if changes == 0:
            assert open_corpus(lake, name)
        else:
            with pytest.raises(NotFound):
                open_corpus(lake, name)
    assert stores[0].left == 0


@pytest.mark.parametrize("make", [small, small_arrow], ids=["zarr", "arrow"])
def test_ingest_killed_at_any_write_publishes_all_or_nothing_and_converges(
    lake: Tier, memory: Tier, make: object
) -> None:
    whole = make(lake, "whole", 10)  # type: ignore[operator]
    for changes in range(40):
        name = f"web{changes}"
        with killed_after(changes, memory) as stores:
            make(memory, name, 10)  # type: ignore[operator]
        try:
            found = open_corpus(memory, name)
        except NotFound:
            assert stores[0].left < 0
        else:
            assert verify(found).ok
        again = make(memory, name, 10)  # type: ignore[operator]
        assert again.record == whole.record
        assert verify(again).ok
        assert verify(again).extra == ()
        if stores[0].left >= 0:
            break
    assert changes > 6


def test_move_and_release_killed_at_any_write_keep_a_whole_copy_and_converge(disk: Tier, lake: Tier) -> None:
    for changes in range(60):
        name = f"web{changes}"
        corpus = ingest(tokens(10), lake, name, shard_size=4096, block_rows=4)
        with killed_after(changes, lake, disk) as stores:
            plan_move(corpus, disk, release=True).run()
        copies = []
        for tier in (lake, disk):
            try:
                copies.append(open_corpus(tier, name))
            except NotFound:
                continue
            assert verify(copies[-1]).ok
        assert copies, "the last copy is gone"
        if copies[0].tier == lake:
            plan_move(copies[0], disk, release=True).run()
        else:
            release(copies[0], lake)
        assert verify(open_corpus(disk, name)).ok
        left = [key for key in objects(lake, name) if "/claims/" not in key]
        assert [key for key in left if "/probes/" not in key] == []
        if all(store.left >= 0 for store in stores):
            break
    assert changes > 6
