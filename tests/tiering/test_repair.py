"""Repair: copies and catalogues made whole from other tiers, and what is left alone."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from distributed import Client

from tests.tiering.corpora import flip, objects, shard_keys, small, without_claims
from tiering import Corpus, Tier, catalog, open_corpus, plan_move, release, verify
from tiering.claim import claimed
from tiering.digest import digest
from tiering.errors import (
    CapacityExceeded,
    Conflict,
    Corrupt,
    NotFound,
    UnsupportedVersion,
    UsageError,
)
from tiering.keys import INTERNAL
from tiering.room import usage


@pytest.fixture
def copies(lake: Tier, disk: Tier) -> Corpus:
    """A corpus on the lake and on the disk, seen on the disk."""
    corpus = small(lake)
    plan_move(corpus, disk).run()
    return corpus.at(disk)


def spoil(tier: Tier, corpus: Corpus) -> dict[str, bytes]:
    """Damage a document, and shards in every way; gives the bad bytes that quarantine must hold."""
    keys = shard_keys(corpus)
    flip(tier, "web/zarr.json")
    tier.store.delete(keys[1])
    flip(tier, keys[2])
    tier.store.write(keys[3], [tier.store.read(keys[3])[:-1]])
    return {key: bytes(tier.store.read(key)) for key in ("web/zarr.json", keys[2], keys[3])}


@pytest.mark.parametrize("on_cluster", [False, True])
def test_repair_makes_a_copy_whole_byte_for_byte(
    copies: Corpus, lake: Tier, cluster: Client, on_cluster: bool
) -> None:
    disk = copies.tier
    good = without_claims(disk)
    bad = spoil(disk, copies)
    report = verify(copies, repair=True, client=cluster if on_cluster else None)
    assert report.ok
    assert report.missing == (copies.manifest["key"][1].as_py(),)
    assert len(report.corrupt) == 3
    assert {one.key: one.source for one in report.repaired} == {
        "zarr.json": "the manifest",
        **dict.fromkeys(copies.manifest["key"].to_pylist()[1:4], "lake"),
    }
    after = {key: data for key, data in objects(disk).items() if "/claims/" not in key}
    aside = {f"web/{INTERNAL}/quarantine/{digest(data)}": data for data in bad.values()}
    assert after == good | aside
    assert verify(copies).ok
    assert verify(copies, repair=True).repaired == ()


def test_repair_says_what_it_cannot_and_why_and_does_the_rest(copies: Corpus, lake: Tier) -> None:
    keys = shard_keys(copies)
    for key in keys[1:3]:
        flip(copies.tier, key)
    flip(lake, keys[2])
    before = bytes(copies.tier.store.read(keys[2]))
    report = verify(copies, repair=True)
    assert not report.ok
    (left,) = report.failed
    assert left.key == copies.manifest["key"][2].as_py()
    assert left.problem is not None
    assert "no good copy of the shard (lake: " in left.problem
    assert [one.key for one in report.repaired if one.problem is None] == [copies.manifest["key"][1].as_py()]
    assert copies.tier.store.read(keys[2]) == before
    report = verify(replace(copies, others=()), repair=True)
    assert "no other tier with a copy is known" in str(report.failed[0].problem)


def test_repair_of_one_part_leaves_the_others(copies: Corpus) -> None:
    for key in shard_keys(copies):
        flip(copies.tier, key)
    first = verify(copies, repair=True, subset=(1, 2))
    assert verify(copies).corrupt == verify(copies, subset=(2, 2)).corrupt
    assert first.ok
    assert verify(copies, repair=True, subset=(2, 2)).ok
    assert verify(copies).ok


def damage_record(tier: Tier) -> str:
    key = catalog.record_key("web", 1)
    flip(tier, key, 0)
    return key


def damage_record_digest(tier: Tier) -> str:
    key = catalog.record_key("web", 1)
    text = bytes(tier.store.read(key))
    at = text.index(b'"manifest": "') + 13
    tier.store.write(key, [text[:at] + (b"0" if text[at : at + 1] != b"0" else b"1") + text[at + 1 :]])
    return key


def damage_manifest(tier: Tier) -> str:
    key = next(key for key in objects(tier) if "/manifests/" in key)
    flip(tier, key, 100)
    return key


def drop_manifest(tier: Tier) -> str:
    key = next(key for key in objects(tier) if "/manifests/" in key)
    tier.store.delete(key)
    return key


def damage_head(tier: Tier) -> str:
    key = f"web/{INTERNAL}/HEAD"
    flip(tier, key)
    return key


def drop_head(tier: Tier) -> str:
    key = f"web/{INTERNAL}/HEAD"
    tier.store.delete(key)
    return key


@pytest.mark.parametrize(
    "harm", [damage_record, damage_record_digest, damage_manifest, drop_manifest, damage_head, drop_head]
)
def test_repair_of_the_catalogue_is_byte_for_byte(
    copies: Corpus, lake: Tier, harm: Callable[[Tier], str]
) -> None:
    disk = copies.tier
    good = objects(disk)
    key = harm(disk)
    report = verify(copies.at(lake), disk, repair=True)
    assert report.ok
    assert f"web/{report.repaired[0].key}" == key
    after = objects(disk)
    assert {name: after[name] for name in good if "/claims/" not in name} == {
        name: data for name, data in good.items() if "/claims/" not in name
    }
    assert ("quarantine" in str(list(after))) == (
        harm in (damage_record, damage_record_digest, damage_manifest)
    )


@pytest.mark.parametrize("harm", [damage_record, damage_record_digest])
def test_repair_takes_nothing_for_its_own_whose_manifest_is_not_there(
    copies: Corpus, lake: Tier, harm: Callable[[Tier], str]
) -> None:
    drop_manifest(copies.tier)
    harm(copies.tier)
    before = objects(copies.tier)
    with pytest.raises(Conflict, match="nothing there says that it is corpus 'web'"):
        verify(copies.at(lake), copies.tier, repair=True)
    after = objects(copies.tier)
    assert {key: after[key] for key in before if "/claims/" not in key} == {
        key: data for key, data in before.items() if "/claims/" not in key
    }


def test_repair_of_a_record_of_the_future_is_refused(copies: Corpus, lake: Tier) -> None:
    key = catalog.record_key("web", 1)
    copies.tier.store.write(key, [b'{"format_version": 2}'])
    with pytest.raises(UnsupportedVersion):
        verify(copies.at(lake), copies.tier, repair=True)
    assert copies.tier.store.read(key) == b'{"format_version": 2}'


def test_repair_of_a_manifest_that_nobody_has_is_refused(copies: Corpus, lake: Tier) -> None:
    damage_manifest(copies.tier)
    damage_manifest(lake)
    before = objects(copies.tier, "web/tokens")
    with pytest.raises(Corrupt, match=r"no good copy of the manifest \(lake: "):
        verify(copies, repair=True)
    assert objects(copies.tier, "web/tokens") == before


def test_repair_leaves_alone_what_was_given_up_is_another_corpus_or_read_only(
    copies: Corpus, lake: Tier, memory: Tier
) -> None:
    small(memory, seed=9)
    with pytest.raises(Conflict, match="another corpus is called 'web' there"):
        verify(copies, memory, repair=True)
    assert verify(open_corpus(memory, "web")).ok
    with pytest.raises(UsageError, match="read-only"):
        verify(copies, replace(copies.tier, read_only=True), repair=True)
    catalog.unpublish(copies.tier.store, "web", 1)
    with pytest.raises(NotFound, match="Move it there again"):
        verify(copies, repair=True)
    assert not catalog.is_published(copies.tier.store, "web", 1)


def test_repair_without_room_for_what_is_put_aside_is_refused(copies: Corpus) -> None:
    disk = copies.tier
    used = usage(disk).used_bytes
    full = replace(disk, capacity_bytes=used)
    flip(disk, shard_keys(copies)[2])
    before = disk.store.read(shard_keys(copies)[2])
    with pytest.raises(CapacityExceeded, match="more bytes"):
        verify(replace(copies, tier=full), repair=True)
    assert disk.store.read(shard_keys(copies)[2]) == before
    assert verify(replace(copies, tier=replace(disk, capacity_bytes=2 * used)), repair=True).ok
    full.close()


def test_repair_beside_a_release_is_refused(copies: Corpus) -> None:
    flip(copies.tier, shard_keys(copies)[2])
    with claimed(copies.tier.store, "web", "0" * 64, shared=False), pytest.raises(Conflict):
        verify(copies, repair=True)


def test_heal_never_writes_over_another_corpus_of_its_name(copies: Corpus, lake: Tier) -> None:
    """A training may still read what was given up, where something else was ingested since."""
    disk, row = copies.tier, copies[0]["tokens"]
    release(copies, disk, copies=[lake])
    other = small(disk, seed=4)
    before = without_claims(disk)
    assert (copies[0]["tokens"] == row).all()
    assert without_claims(disk) == before
    assert verify(other).ok


def test_heal_beside_a_release_leaves_the_shard_bad(copies: Corpus) -> None:
    row = copies[0]["tokens"]
    for key in shard_keys(copies):
        flip(copies.tier, key)
    before = {key: copies.tier.store.read(key) for key in shard_keys(copies)}
    with claimed(copies.tier.store, "web", "0" * 64, shared=False, purpose="released"):
        assert (copies.at(copies.tier)[0]["tokens"] == row).all()
    assert {key: copies.tier.store.read(key) for key in shard_keys(copies)} == before
