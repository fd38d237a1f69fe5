"""The commands that keep tiers sound, from the command line to the files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.tiering.corpora import flip, killed_after, objects, shard_keys, small
from tests.tiering.test_claim import A, elsewhere
from tests.tiering.test_claim import put as put_claim
from tests.tiering.test_reservation import put as put_reservation
from tiering import Corpus, Tier, plan_move, release, verify
from tiering.stores.file import FileStore
from tiering.stores.object import ObjectStore
from tiering.tickets import holder


@pytest.fixture
def corpus(tiering: Any, lake: Tier, disk: Tier) -> Corpus:
    """On the lake and on the disk, seen on the disk; both are configured."""
    made = small(lake)
    plan_move(made, disk).run()
    tiers = (f'[tiers.{tier.name}]\nurl = "{tier.url}"\ncapacity = "1MB"\n' for tier in (lake, disk))
    Path("tiering.toml").write_text("".join(tiers))
    return made.at(disk)


def test_verify_repairs_from_the_other_tiers_of_the_configuration(tiering: Any, corpus: Corpus) -> None:
    keys = shard_keys(corpus)
    flip(corpus.tier, keys[0])
    found = tiering("verify", "web", "--on", "disk", "--json")
    assert (found.code, found.document["corrupt"]) == (1, ["tokens/c/0/0"])
    done = tiering("verify", "web", "--on", "disk", "--repair", "--json")
    assert done.code == 0
    assert done.document["repaired"] == [{"key": "tokens/c/0/0", "source": "lake", "problem": None}]
    assert done.document["share"] == 1.0
    assert "whole" in tiering("verify", "web", "--on", "disk").out


def test_verify_that_repairs_a_part_exits_with_3_and_none_with_1(
    tiering: Any, corpus: Corpus, lake: Tier
) -> None:
    keys = shard_keys(corpus)
    flip(corpus.tier, keys[0])
    flip(corpus.tier, keys[1])
    flip(lake, keys[1])
    done = tiering("verify", "web", "--on", "disk", "--repair", "--from", "lake")
    assert done.code == 3
    assert "repaired: tokens/c/0/0 from lake" in done.out
    assert "left: tokens/c/1/0 not repairable: no good copy" in done.out
    again = tiering("verify", "web", "--on", "disk", "--repair", "--json")
    assert (again.code, len(again.document["failed"])) == (1, 1)


def test_verify_repairs_a_catalogue_that_cannot_be_opened(tiering: Any, corpus: Corpus) -> None:
    for tail in ("versions", "manifests"):
        key = next(key for key in objects(corpus.tier) if f"/{tail}/" in key)
        flip(corpus.tier, key, 0)
        assert tiering("verify", "web", "--on", "disk").code == 1
        assert tiering("verify", "web", "--on", "disk", "--repair").code == 0
        assert verify(corpus).ok


def test_verify_of_a_part_says_its_share(tiering: Any, corpus: Corpus) -> None:
    parts = [tiering("verify", "web", "--on", "disk", "--subset", f"{k}/3", "--json") for k in (1, 2, 3)]
    assert sum(part.document["checked"] for part in parts) == len(corpus.contents.named())
    told = [tiering("verify", "web", "--on", "disk", "--subset", f"{k}/3").out for k in (1, 2, 3)]
    assert all("whole in this part" in each and "% of all" in each for each in told)
    empty = tiering("verify", "web", "--on", "disk", "--subset", "1/1000000")
    assert "as far as it is in this part: no object is" in " ".join(empty.out.split())
    assert tiering("verify", "web", "--on", "disk", "--subset", "4/3").code == 2


def test_usage_tells_water_marks(tiering: Any, corpus: Corpus) -> None:
    found = tiering("usage", "disk", "--json").document
    assert found["capacity_bytes"] == 1_000_000
    assert found["used_bytes"] + found["free_bytes"] == 1_000_000
    assert (found["over_high"], found["excess_bytes"]) == (False, 0)
    corpus.tier.store.write("ballast", [bytes(found["free_bytes"])])
    assert tiering("usage", "disk", "--json").document["excess_bytes"] == 150_000
    assert "over high" in tiering("usage", "disk").out
    assert "no limit" in tiering("usage", corpus.tier.url).out


def test_gc_prints_what_would_go_and_then_takes_it(tiering: Any, corpus: Corpus, disk: Tier) -> None:
    with killed_after(5, disk):
        small(disk, "dead")
    left = [key for key in objects(disk, "dead") if "/.tiering/" not in key]
    assert left
    planned = tiering("gc", "disk", "--dry-run", "--older-than", "0s", "--json").document
    assert {one["reason"] for one in planned["garbage"]} >= {"orphaned: no version names it"}
    assert tiering("gc", "disk", "--json").document["bytes"] < planned["bytes"]
    told = tiering("gc", "disk", "dead", "--older-than", "0s", "--quarantine", "0s")
    assert told.code == 0
    assert all(key in told.out for key in left)
    assert "unfinished writes removed" in told.out
    assert not [key for key in objects(disk, "dead") if "/.tiering/" not in key]
    assert tiering("gc", "disk", "--older-than", "soon").code == 2
    assert tiering("gc", "disk", "--quarantine", "2w").code == 0


def test_forget_asks_and_refuses_the_last_copy(tiering: Any, corpus: Corpus, lake: Tier) -> None:
    refused = tiering("forget", "web", "--on", "disk")
    assert refused.code == 2
    assert "--yes" in refused.err
    refused = tiering("forget", "web", "--on", "disk", "--yes", "--min-copies", 0)
    assert refused.code == 2
    assert "min_copies = 0 is below 1" in refused.err
    assert tiering("forget", "nope", "--on", "disk", "--yes").code == 1
    assert tiering("forget", "web", "--on", "disk", "--version", 1, "--yes").code == 0
    assert "LastCopy" in tiering("forget", "web", "--on", "lake", "--yes").err
    assert verify(corpus.at(lake)).ok
    assert tiering("forget", "web", "--on", "lake", "--yes", "--last-copy").code == 0
    assert tiering("ls", "lake", "--json").document["corpora"] == []


def test_forget_and_unlock_take_a_typed_answer(
    tiering: Any, corpus: Corpus, disk: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiering.cli.upkeep.sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("typer.prompt", lambda *_, **__: "no")
    assert "not confirmed" in tiering("forget", "web", "--on", "disk").err
    assert verify(corpus).ok
    put_claim(disk, 9, A, elsewhere())
    monkeypatch.setattr("typer.prompt", lambda *_, **__: holder(elsewhere()))
    assert tiering("unlock", "web", "--on", "disk", "--claim", 9).code == 0
    monkeypatch.setattr("typer.prompt", lambda *_, **__: "yes")
    assert tiering("forget", "web", "--on", "disk").code == 0


def test_unlock_shows_who_holds_a_name_and_frees_their_room(tiering: Any, corpus: Corpus, disk: Tier) -> None:
    assert "Nobody holds web" in tiering("unlock", "web", "--on", "disk").out
    put_claim(disk, 9, A, elsewhere())
    put_reservation(disk, 9, 10_000_000, elsewhere(), "web")
    shown = tiering("unlock", "web", "--on", "disk", "--json").document
    assert shown["claims"] == [{"claim": 9, "holder": holder(elsewhere()), "purpose": "written"}]
    assert shown["reservations"] == [{"reservation": 9, "holder": holder(elsewhere()), "bytes": 10_000_000}]
    assert "reservation 9: " in tiering("unlock", "web", "--on", "disk").out
    assert tiering("unlock", "web", "--on", "disk", "--claim", 9, "--reservation", 9).code == 2
    refused = tiering("unlock", "web", "--on", "disk", "--claim", 9)
    assert refused.code == 2
    assert "--holder NAME" in refused.err
    assert tiering("unlock", "web", "--on", "disk", "--claim", 9, "--holder", "1@x").code == 1
    done = tiering("unlock", "web", "--on", "disk", "--claim", 9, "--holder", holder(elsewhere()))
    assert done.code == 0
    assert "1 reservations" in done.out
    assert tiering("usage", "disk", "--json").document["reserved_bytes"] == 0
    put_reservation(disk, 9, 10_000_000, elsewhere(), "web")
    words = ("unlock", "web", "--on", "disk", "--reservation", 9, "--holder", holder(elsewhere()))
    assert tiering(*words).code == 0
    assert tiering("usage", "disk", "--json").document["reserved_bytes"] == 0


def test_ingest_over_a_damaged_claim_leads_out_by_its_own_words(
    tiering: Any, corpus: Corpus, disk: Tier
) -> None:
    release(corpus, disk)
    claims = "web/.tiering/claims"
    (name,) = disk.store.children(claims)
    flip(disk, f"{claims}/{name}", 30)
    disk.store.write("web/tokens/c/7/0", [b"left by a killed ingest"])
    again = ("move", "web", "--from", "lake", "--to", "disk")
    refused = tiering(*again)
    assert refused.code == 1
    command = re.search(
        r"tiering (unlock web --on disk --claim \d+ --holder unknown)", " ".join(refused.err.split())
    )
    assert command, refused.err
    assert "damaged, by unknown" in tiering("unlock", "web", "--on", "disk").out
    assert tiering(*command[1].split()).code == 0
    assert tiering(*again).code == 0
    assert verify(corpus, disk).ok


def test_gc_and_doctor_tell_what_writers_of_other_machines_left(
    tiering: Any, corpus: Corpus, disk: Tier
) -> None:
    owner = elsewhere().text().replace("/", "~")
    stray = Path(disk.url) / "web" / f".tmp-{owner}~0123456789abcdef"
    stray.write_bytes(bytes(2048))
    for more in (["--dry-run"], []):
        found = tiering("gc", "disk", "--json", *more).document["strays"]
        assert (found["count"], found["nbytes"]) == (1, 2048)
        assert "1 unfinished writes (2.00 kiB) were left" in tiering("gc", "disk", *more).out
    told = {check["name"]: check for check in tiering("doctor", "disk", "--json").document["checks"]}
    assert told["tier disk: unfinished writes"]["verdict"] == "optional"
    assert found["command"] in told["tier disk: unfinished writes"]["detail"]
    assert stray.exists()
    stray.unlink()
    assert "unfinished writes" not in tiering("doctor", "disk").out


def test_gc_and_doctor_tell_what_no_client_can_list(
    tiering: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ObjectStore("lake", "gs://archive/x", {"anonymous": True}) as cloud:
        strays = cloud.strays()
    monkeypatch.setattr(FileStore, "strays", lambda store: strays)
    for more in (["--dry-run"], []):
        told = " ".join(tiering("gc", "disk", *more).out.split())
        assert "cannot be listed on gs://: let a lifecycle rule of bucket archive end them" in told
        assert "unfinished writes (0" not in told
        found = tiering("gc", "disk", "--json", *more).document["strays"]
        assert (found["count"], found["unlisted"]) == (0, strays.unlisted)
    checks = {check["name"]: check for check in tiering("doctor", "disk", "--json").document["checks"]}
    assert checks["tier disk: unfinished writes"]["detail"] == strays.unlisted


@pytest.mark.parametrize(
    ("url", "words"), [("s3://box", ""), ("az://box", "in container box by itself after 7 days")]
)
def test_uploads_that_gc_can_list_need_no_words(url: str, words: str) -> None:
    with ObjectStore("lake", url, {"anonymous": True}) as cloud:
        assert words in cloud.strays().unlisted
        assert bool(cloud.strays().unlisted) == bool(words)
