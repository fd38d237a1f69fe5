"""Lifecycle jobs: rules over real corpora on real folders."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiering.corpora import small_arrow
from tiering import Tier, catalog, ingest, open_corpus, open_tier, plan_move, verify
from tiering.config import Config
from tiering.errors import ConfigError, Conflict, Corrupt, FormatError, LastCopy, NotFound, UsageError
from tiering.jobs.lock import job_lock
from tiering.jobs.result import JobResult
from tiering.jobs.run import run_jobs
from tiering.jobs.spec import load_jobs

TIERS = ("archive", "disk", "lake")
DAY = 86_400
FREE = 'name = "free"\naction = "release"\ntier = "disk"\n'
COOL = 'name = "cool"\naction = "move"\ntier = "disk"\nto = "lake"\nidle_for = "30d"\n'


def job(folder: Path, *rules: str, extra: str = "") -> Path:
    """A job file with these rules over three folders."""
    tiers = "".join(f'[tiers.{name}]\nurl = "{folder}/{name}"\n' for name in TIERS)
    path = folder / "jobs.toml"
    head = f'[[jobs]]\nname = "nightly"\nkind = "lifecycle"\n{extra}'
    path.write_text(tiers + head + "".join(f"[[jobs.rules]]\n{rule}" for rule in rules))
    return path


def put(folder: Path, tier: str, name: str, days: float = 0) -> None:
    """A small corpus, ingested so many days ago."""
    data = {"x": int.from_bytes(name.encode()[:6]) + np.arange(len(name) * 900).reshape(-1, 3)}
    corpus = ingest(data, open_tier(folder / tier, tier), name, shard_size="8KiB")
    age(folder / tier, name, corpus.version, days)


def age(folder: Path, name: str, version: int, days: float) -> None:
    path = folder / catalog.record_key(name, version)
    then = path.stat().st_mtime - days * DAY
    os.utime(path, (then, then))


def run(path: Path, **options: Any) -> list[JobResult]:
    return list(run_jobs(load_jobs(path, Config({})), **options))


def held(folder: Path) -> dict[str, list[str]]:
    """What each tier holds; every copy is whole."""
    found = {}
    for tier in TIERS:
        place = open_tier(folder / tier, tier)
        found[tier] = catalog.corpora(place.store)
        assert all(verify(open_corpus(place, name)).ok for name in found[tier])
    return found


def test_rules_move_what_is_old_and_leave_the_rest(tmp_path: Path) -> None:
    put(tmp_path, "disk", "old", days=31)
    put(tmp_path, "disk", "new", days=29)
    (result,) = run(job(tmp_path, COOL))
    assert (result.job, result.status) == ("nightly: move old v1 disk to lake", "done")
    assert result.freed_bytes > result.nbytes > 0
    assert held(tmp_path) == {"archive": [], "disk": ["new"], "lake": ["old"]}
    assert [again.status for again in run(job(tmp_path, COOL))] == ["nothing to do"]


def log(folder: Path, **days: float) -> str:
    """An access log in which corpora on the disk were read so many days ago; as a key of a job."""
    lines = []
    for name, ago in days.items():
        for shard in open_corpus(open_tier(folder / "disk", "disk"), name).shards("x"):
            line = {"time": time.time() - ago * DAY, "digest": shard.digest, "bytes": 1, "hit": True}
            lines.append(json.dumps(line))
    (folder / "access.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return f'access_logs = ["{folder}/access.jsonl"]\n'


def test_corpus_that_the_access_log_names_was_used_when_it_was_read(tmp_path: Path) -> None:
    for name, age_days in (("read", 90), ("once", 90), ("never", 90)):
        put(tmp_path, "disk", name, days=age_days)
    said: list[str] = []
    path = job(tmp_path, COOL, extra=log(tmp_path, once=40, read=2))
    moved = [result.job for result in run(path, announce=said.append)]
    assert moved == ["nightly: move never v1 disk to lake", "nightly: move once v1 disk to lake"]
    assert not said


def test_corpus_counts_as_used_when_the_access_logs_began(tmp_path: Path) -> None:
    put(tmp_path, "disk", "never", days=90)
    put(tmp_path, "disk", "read", days=90)
    assert [result.status for result in run(job(tmp_path, COOL, extra=log(tmp_path, read=29)))] == [
        "nothing to do"
    ]


def test_rule_over_reads_counts_what_the_access_log_has(tmp_path: Path) -> None:
    put(tmp_path, "disk", "read", days=90)
    put(tmp_path, "disk", "never", days=90)
    cold = 'name = "cold"\naction = "move"\ntier = "disk"\nto = "lake"\nmax_accesses = 0\n'
    (refused,) = run(job(tmp_path, cold))
    assert "accesses" in str(refused.error)
    moved = [result.job for result in run(job(tmp_path, cold, extra=log(tmp_path, read=1)))]
    assert moved == ["nightly: move never v1 disk to lake"]


def test_access_log_that_tells_nothing_is_no_reason_to_move(tmp_path: Path) -> None:
    put(tmp_path, "disk", "old", days=90)
    path = job(tmp_path, COOL, extra=log(tmp_path))
    errors = [run(path)[0].error]
    (tmp_path / "access.jsonl").write_text("no log\n")
    errors += [run(path)[0].error]
    (tmp_path / "access.jsonl").unlink()
    errors += [run(path)[0].error]
    assert list(map(type, errors)) == [FormatError, FormatError, NotFound]
    assert "has no line yet" in str(errors[0])
    assert "line 1 is no line of an access log" in str(errors[1])
    with pytest.raises(ConfigError, match=r"access_logs = .* is not a list of paths"):
        run(job(tmp_path, COOL, extra="access_logs = [7]\n"))
    assert held(tmp_path)["disk"] == ["old"]


def test_corpus_is_as_old_as_its_oldest_copy(tmp_path: Path) -> None:
    put(tmp_path, "disk", "old", days=31)
    corpus = open_corpus(open_tier(tmp_path / "disk", "disk"), "old")
    plan_move(corpus, open_tier(tmp_path / "lake", "lake")).run()
    assert [result.job for result in run(job(tmp_path, COOL))] == ["nightly: release old v1 from disk"]


def test_dry_run_explains_each_copy_and_changes_nothing(tmp_path: Path) -> None:
    put(tmp_path, "disk", "old", days=31)
    put(tmp_path, "disk", "new", days=29)
    before = sorted(tmp_path.rglob("*"))
    said: list[str] = []
    path = job(tmp_path, COOL)
    (result,) = run(path, dry_run=True, announce=said.append)
    assert (result.status, result.moved) == ("planned", 0)
    assert result.nbytes > 0
    assert set(tmp_path.rglob("*")) == {*before, path}
    assert "no access_logs are named" in said[0]
    assert said[1:] == [
        "new v1\n  disk: cool does not apply: idle for 29d, not 30d",
        "old v1\n  disk: cool applies: all conditions hold, move to lake",
    ]


def test_copy_then_release_keeps_the_copies_that_rules_want(tmp_path: Path) -> None:
    put(tmp_path, "disk", "old")
    backup = 'name = "backup"\naction = "copy"\ntier = "disk"\nto = "lake"\n'
    free = FREE + "min_copies = 2\n"
    archive = 'name = "archive"\naction = "copy"\ntier = "lake"\nto = "archive"\nmax_size = 1\n'
    assert [r.status for r in run(job(tmp_path, backup, archive, free))] == ["done"]
    assert held(tmp_path) == {"archive": [], "disk": ["old"], "lake": ["old"]}
    results = run(job(tmp_path, backup, archive.replace("max_size = 1\n", ""), free))
    assert [r.job.split(": ")[1] for r in results] == [
        "copy old v1 disk to archive",
        "release old v1 from disk",
    ]
    assert held(tmp_path) == {"archive": ["old"], "disk": [], "lake": ["old"]}


def two_versions(folder: Path) -> Tier:
    """The lake, with versions 1 and 2 of a corpus of which the second has fewer rows."""
    lake = open_tier(folder / "lake", "lake")
    small_arrow(lake, rows=24)
    newer = small_arrow(open_tier(folder / "disk", "disk"), rows=20)
    catalog.publish(lake.store, "text", 2, newer.contents, newer.contents.encode())
    return lake


def test_old_versions_are_forgotten_and_their_last_copy_only_where_told(tmp_path: Path) -> None:
    lake = two_versions(tmp_path)
    old = 'name = "old"\naction = "forget"\ntier = "lake"\nkeep_newest = 1\n'
    tiers = 'tiers = ["archive", "lake"]\n'
    assert [r.status for r in run(job(tmp_path, old, extra=tiers))] == ["nothing to do"]
    results = run(job(tmp_path, old + "min_copies = 0\n", extra=tiers))
    assert [(r.job, r.status) for r in results] == [("nightly: forget text v1 from lake", "done")]
    assert catalog.versions(lake.store, "text") == [2]
    assert verify(open_corpus(lake, "text")).ok


def test_version_that_one_rule_moves_and_another_forgets_is_forgotten(tmp_path: Path) -> None:
    lake = two_versions(tmp_path)
    away = 'name = "away"\naction = "move"\ntier = "lake"\nto = "archive"\n'
    old = 'name = "old"\naction = "forget"\nkeep_newest = 1\nmin_copies = 0\n'
    results = run(job(tmp_path, away, old, extra='tiers = ["archive", "lake"]\n'))
    assert [(r.job, r.status) for r in results] == [
        ("nightly: move text v2 lake to archive", "done"),
        ("nightly: forget text v1 from lake", "done"),
    ]
    assert catalog.versions(lake.store, "text") == []


def test_release_of_a_copy_whose_proof_is_damaged_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "disk", "web")
    corpus = open_corpus(open_tier(tmp_path / "disk", "disk"), "web")
    for tier in ("lake", "archive"):
        plan_move(corpus, open_tier(tmp_path / tier, tier)).run()
    shard = tmp_path / "lake" / corpus.key(corpus.manifest["key"][0].as_py())
    shard.write_bytes(shard.read_bytes()[:-1])
    (result,) = run(job(tmp_path, FREE + "min_copies = 2\n"))
    assert isinstance(result.error, LastCopy)
    assert verify(corpus).ok


def test_action_that_fails_does_not_stop_the_next(tmp_path: Path) -> None:
    put(tmp_path, "disk", "bad", days=40)
    put(tmp_path, "disk", "good", days=40)
    key = open_corpus(open_tier(tmp_path / "disk", "disk"), "bad").manifest["key"][0].as_py()
    (tmp_path / "disk" / "bad" / key).unlink()
    bad, good = run(job(tmp_path, COOL))
    assert (bad.status, good.status) == ("failed", "done")


def test_rule_that_needs_what_nobody_records_is_refused_by_name(tmp_path: Path) -> None:
    put(tmp_path, "disk", "web")
    for condition, fact in (('tags = ["x"]', "tags"), ("max_accesses = 3", "accesses")):
        (result,) = run(job(tmp_path, COOL + condition + "\n"))
        assert isinstance(result.error, ConfigError)
        assert f"rule 'cool' needs {fact}" in str(result.error)
    assert held(tmp_path)["disk"] == ["web"]


def test_two_corpora_of_one_name_are_a_conflict(tmp_path: Path) -> None:
    put(tmp_path, "disk", "web")
    ingest({"y": np.arange(9)}, open_tier(tmp_path / "lake", "lake"), "web")
    (result,) = run(job(tmp_path, COOL))
    assert isinstance(result.error, Conflict)


def test_no_corpora_are_nothing_to_do(tmp_path: Path) -> None:
    assert [result.status for result in run(job(tmp_path, COOL))] == ["nothing to do"]
    assert not (tmp_path / "disk").exists()


@pytest.mark.parametrize(
    ("rule", "extra", "said"),
    [
        (COOL.replace("idle_for", "idle_fro"), "", "rules[0].idle_fro is not a known key. Example: "),
        (COOL.replace('"30d"', "30"), "", "jobs[0].rules[0].idle_for = 30 is not a duration. Example: '30d'"),
        (COOL.replace('"lake"', '"lak"'), "", "jobs[0]: rule 'cool': no tier is called 'lak'"),
        (COOL, 'tiers = "disk"\n', "jobs[0].tiers = 'disk' is not right"),
        (COOL, "tiers = []\n", "jobs[0].tiers = [] is not a list of names"),
        (COOL, "min_copies = 2\n[[jobs.rules]]\nmin_copies = 1\n" + FREE, "all rules must leave 2"),
        ("", "", "jobs[0].rules[0].name is missing"),
    ],
)  # fmt: skip
def test_wrong_rules_are_answered_with_a_right_example(
    tmp_path: Path, rule: str, extra: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_jobs(job(tmp_path, rule, extra=extra), Config({}))
    assert said in str(caught.value)


def test_rule_takes_the_water_marks_of_its_tier(tmp_path: Path) -> None:
    for name in ("one", "two"):
        put(tmp_path, "disk", name)
        plan_move(open_corpus(open_tier(tmp_path / "disk", "disk"), name), open_tier(tmp_path / "lake")).run()
    nbytes = sum(open_corpus(open_tier(tmp_path / "disk"), name).nbytes for name in ("one", "two"))
    path = job(tmp_path, f'{FREE}high_water = "tier"\n')
    text = path.read_text()
    marks = {"0.9": ["nothing to do"], "0.7": ["done"]}
    for high, expected in marks.items():
        configured = f"[tiers.disk]\ncapacity = {int(nbytes / 0.8)}\nhigh_water = {high}\nlow_water = 0.5\n"
        path.write_text(text.replace("[tiers.disk]\n", configured))
        assert [result.status for result in run(path)] == expected
    with pytest.raises(ConfigError, match="high_water = 'tier' is not a share of 1"):
        run(job(tmp_path, f'{FREE.replace("disk", "none")}high_water = "tier"\nlow_water = 0.5\n'))


def test_newest_version_in_memory_alone_saves_the_last_one_that_lasts(tmp_path: Path) -> None:
    lake = open_tier(tmp_path / "lake", "lake")
    older = small_arrow(lake, rows=24)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        memory = open_tier(folder, "disk")
        plan_move(older, memory).run()
        newer = small_arrow(open_tier(tmp_path / "archive", "archive"), rows=20)
        catalog.publish(memory.store, "text", 2, newer.contents, newer.contents.encode())
        old = 'name = "old"\naction = "forget"\nkeep_newest = 1\nmin_copies = 0\n'
        path = job(tmp_path, old, extra='tiers = ["disk", "lake"]\n')
        path.write_text(path.read_text().replace(f"{tmp_path}/disk", folder))
        told = {result.job: result for result in run(path)}
        assert told["nightly: forget text v1 from disk"].status == "done"
        assert isinstance(told["nightly: forget text v1 from lake"].error, LastCopy)
        assert verify(older).ok


def test_job_file_below_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be opened: Not a directory"), job_lock(tmp_path / "file/x"):
        pass


def test_corpus_whose_manifest_is_damaged_stops_no_other(tmp_path: Path) -> None:
    for name in ("bad", "good"):
        put(tmp_path, "disk", name, days=31)
    (manifest,) = (tmp_path / "disk/bad/.tiering/manifests").iterdir()
    manifest.write_bytes(b"rot")
    told = {result.job: result for result in run(job(tmp_path, COOL))}
    assert isinstance(told.pop("nightly: bad").error, Corrupt)
    assert {name: result.status for name, result in told.items()} == {
        "nightly: move good v1 disk to lake": "done"
    }
