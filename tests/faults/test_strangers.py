"""P1, P4: what is no file, or not ours, in place of an object: told, not followed, not waited for."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.surroundings import NOBODY
from tests.faults.work import NAME
from tests.faults.zygote import Zygote
from tiering import open_corpus, open_tier, release, verify

COUNT = 20
FACTS = [1, COUNT]
OBJECTS = {
    "shard": "tokens/c/0/0",
    "document": "tokens/zarr.json",
    "head": ".tiering/HEAD",
    "record": ".tiering/versions/00000001.json",
    "manifest": ".tiering/manifests",
    "claim": ".tiering/claims",
}


@pytest.fixture(scope="module")
def source(zygote: Zygote) -> Iterator[Path]:
    """A corpus, in a folder that any user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="strangers-"))
    folder.chmod(0o755)
    zygote.value("ingest_rows", str(folder / "source"), "zarr", *FACTS)
    zygote.value("move_rows", str(folder / "source"), str(folder / "other"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def place(source: Path) -> Iterator[Path]:
    """A copy of it to put strange things in."""
    shutil.copytree(source / "source", source / "place")
    yield source / "place"
    for path in source.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(source / "place")


def object_of(place: Path, what: str) -> Path:
    path = place / NAME / OBJECTS[what]
    return next(path.iterdir()) if path.is_dir() else path


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("something")


def put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def probe(zygote: Zygote, place: Path) -> dict[str, str]:
    return zygote.value("probe", str(place), str(place.with_name("other")), *FACTS)


@pytest.mark.parametrize("put", [put_folder, put_pipe])
def test_strange_thing_in_place_of_a_shard_is_a_missing_shard(
    zygote: Zygote, place: Path, put: Callable[[Path], None]
) -> None:
    put(object_of(place, "shard"))
    told = probe(zygote, place)
    moved = "UsageError" if put is put_folder else "whole"  # a folder is not taken away with what is in it
    assert told == {"verify": "missing", "load": "Corrupt", "heal": "right", "move": moved}
    if put is put_folder:
        assert (place / NAME / OBJECTS["shard"] / "inside").exists()


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("what", ["shard", "document", "head", "record", "manifest", "claim"])
def test_link_in_place_of_an_object_is_a_missing_object_and_never_followed(
    zygote: Zygote, place: Path, what: str, dangling: bool
) -> None:
    path = object_of(place, what)
    aside = place.with_name("aside")
    path.rename(aside)
    before = aside.read_bytes()
    path.symlink_to("/nowhere/at/all" if dangling else aside)
    try:
        told = probe(zygote, place)
        assert told["move"] == "UsageError"  # nothing is written over it
        opened = {"record": "NotFound", "manifest": "Corrupt"}.get(what)
        missing = opened or ("missing" if what in ("shard", "document") else "whole")
        assert (told["verify"], told["heal"]) == (missing, opened or "right")
        assert told["load"] == (opened or ("Corrupt" if what == "shard" else "right"))
        assert path.is_symlink()
        assert aside.read_bytes() == before
    finally:
        aside.unlink()


@pytest.mark.parametrize("what", ["document", "head", "record", "manifest", "claim"])
@pytest.mark.parametrize("put", [put_folder, put_pipe])
def test_strange_thing_in_place_of_a_document_is_a_typed_error_or_harmless(
    zygote: Zygote, place: Path, put: Callable[[Path], None], what: str
) -> None:
    put(object_of(place, what))
    told = probe(zygote, place)  # it would fail after a minute if anything waited for the pipe
    opened = {"record": "NotFound", "manifest": "Corrupt"}.get(what)
    assert told["load"] == (opened or "right")
    assert told["verify"] == (opened or {"document": "missing"}.get(what, "whole"))


def put_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize("what", ["shard", "document", "manifest"])
@pytest.mark.parametrize("put", [put_folder, put_pipe, put_link])
def test_strange_thing_in_place_of_an_object_is_put_aside_as_it_is_by_a_repair(
    place: Path, put: Callable[[Path], None], what: str
) -> None:
    tier, other = open_tier(place, "tier"), open_tier(place.with_name("other"), "other")
    corpus = open_corpus(other, NAME)
    path = object_of(place, what)
    good = path.read_bytes()
    put(path)
    kind = path.lstat().st_mode
    report = verify(corpus, tier, repair=True, progress=False)
    assert report.ok
    assert report.repaired
    assert path.read_bytes() == good
    (aside,) = (place / NAME / ".tiering" / "quarantine").iterdir()
    assert aside.lstat().st_mode == kind
    if put is put_folder:
        assert (aside / "inside").read_text() == "something"
    assert verify(corpus, tier, progress=False).ok


def bind(place: Path) -> None:
    """Give a copy to a user whom permissions bind."""
    if os.geteuid() == 0:
        for path in (place, place.with_name("other")):
            shutil.chown(path, NOBODY, NOBODY)
            for each in path.rglob("*"):
                shutil.chown(each, NOBODY, NOBODY)


@pytest.mark.parametrize("what", ["shard", "document", "record", "manifest", "claim"])
@pytest.mark.parametrize("folder", [False, True])
def test_what_may_not_be_read_is_a_typed_error(zygote: Zygote, place: Path, what: str, folder: bool) -> None:
    bind(place)
    path = object_of(place, what)
    (path.parent if folder else path).chmod(0)
    told = zygote.value("as_nobody", "probe", str(place), str(place.with_name("other")), *FACTS)
    refused = {"load", "verify", "move"} if what != "document" else {"verify"}
    refused = {"move"} if what == "claim" else refused
    assert {way for way in refused if told[way] not in ("UsageError", "Corrupt")} == set(), told
    assert told["heal"] in ("right", "UsageError")


def test_folder_that_may_not_be_written_is_a_usage_error(zygote: Zygote, place: Path) -> None:
    bind(place)
    folder = place / NAME / ".tiering" / "claims"
    folder.chmod(0o500)
    job = ["release_rows", str(place), str(place.with_name("other"))]
    assert zygote.value("as_nobody", "typed_error_of", *job) == "UsageError"
    assert zygote.value("as_nobody", "look", str(place), "zarr", *FACTS) == "whole"


def test_foreign_files_in_a_corpus_are_told_and_left_alone(zygote: Zygote, place: Path) -> None:
    foreign = ["README.txt", "tokens/notes", "deep/er/file", "tokens/c/0/.hidden", "tokens/\nname"]
    for name in foreign:
        path = place / NAME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not ours")
    os.mkfifo(place / NAME / "pipe")
    (place / NAME / "link").symlink_to("/etc/passwd")
    told = probe(zygote, place)
    assert told == {"verify": "whole", "load": "right", "heal": "right", "move": "whole"}
    corpus = open_corpus(open_tier(place, "tier"), NAME)
    assert set(verify(corpus).extra) == {*foreign[:4], "pipe"}
    release(corpus, corpus.tier, copies=[open_tier(place.with_name("other"))])
    for name in (*foreign, "pipe", "link"):
        assert os.path.lexists(place / NAME / name)
