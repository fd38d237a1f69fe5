"""Job files: read, planned, run, locked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tiering import ingest, open_corpus, open_tier, plan_move, verify
from tiering.config import Config
from tiering.errors import ConfigError, Locked, NotFound
from tiering.jobs.lock import job_lock
from tiering.jobs.run import run_jobs
from tiering.jobs.spec import Job, load_jobs
from tiering.stores import file_systems

STAGE = '[[jobs]]\nname = "morning"\nkind = "stage"\ncorpus = "web"\nfrom = "lake"\nto = "disk"\n'
DEMOTE = '[[jobs]]\nname = "evening"\nkind = "demote"\ncorpus = "web"\nfrom = "disk"\nto = "lake"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lake = open_tier(tmp_path / "lake", "lake")
    ingest({"x": np.arange(3000).reshape(1000, 3)}, lake, "web", shard_size="8KiB")
    path = tmp_path / "jobs.toml"
    tiers = "".join(f'[tiers.{name}]\nurl = "{tmp_path}/{name}"\n' for name in ("lake", "disk"))
    path.write_text(tiers + STAGE)
    return path


def tiers_of(file: Path, *jobs: str) -> None:
    text = file.read_text()
    file.write_text(text[: text.index("[[jobs]]")] + "".join(jobs))


def test_stage_copies_and_keeps_the_source(file: Path) -> None:
    (result,) = run_jobs(load_jobs(file, Config({})))
    assert (result.status, result.skipped) == ("done", 0)
    for name in ("lake", "disk"):
        assert verify(open_corpus(open_tier(file.parent / name), "web")).ok


def test_stage_again_is_nothing_to_do(file: Path) -> None:
    first, second = (next(run_jobs(load_jobs(file, Config({})))) for _ in range(2))
    assert second.status == "nothing to do"
    assert second.skipped == first.moved > 1


def test_demote_releases_the_source_after_proof(file: Path) -> None:
    tiers_of(file, STAGE, DEMOTE)
    _, demoted = run_jobs(load_jobs(file, Config({})))
    assert demoted.status == "done"
    assert demoted.freed_bytes > 0
    with pytest.raises(NotFound):
        open_corpus(open_tier(file.parent / "disk"), "web")
    assert verify(open_corpus(open_tier(file.parent / "lake"), "web")).ok


def test_demote_again_is_nothing_to_do(file: Path) -> None:
    tiers_of(file, STAGE, DEMOTE)
    list(run_jobs(load_jobs(file, Config({}))))
    tiers_of(file, DEMOTE)
    assert next(run_jobs(load_jobs(file, Config({})))).status == "nothing to do"


def test_dry_run_changes_nothing(file: Path) -> None:
    before = sorted(file.parent.rglob("*"))
    (result,) = run_jobs(load_jobs(file, Config({})), dry_run=True)
    assert result.status == "planned"
    assert result.nbytes > 24_000
    assert sorted(file.parent.rglob("*")) == before


def test_failed_job_does_not_stop_the_next(file: Path) -> None:
    tiers_of(file, STAGE.replace("web", "gone").replace("morning", "first"), STAGE)
    first, second = run_jobs(load_jobs(file, Config({})))
    assert isinstance(first.error, NotFound)
    assert second.status == "done"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (STAGE.replace('"stage"', '"copy"'), "kind = 'copy'"),
        (STAGE.replace('"lake"', '"lak"'), "Did you mean 'lake'?"),
        (STAGE.replace("kind", "knid"), "jobs[0].kind is missing"),
        (STAGE + "extra = 1\n", "jobs[0].extra is not a known key"),
        (STAGE.replace("stage", "demote") + 'min_copies = "two"\n', "Example: min_copies = 1"),
        (STAGE.replace("stage", "demote") + "min_copies = 0\n", "is below 1"),
        (STAGE + "min_copies = 2\n", "jobs[0].min_copies is not a known key"),
        (STAGE.replace('"lake"', '"s3:/lake"'), "jobs[0].from = 's3:/lake'"),
        (STAGE.replace('"web"', '"a/b"'), "jobs[0].corpus = 'a/b'"),
        (STAGE + "version = true\n", "Example: version = 1"),
        (STAGE + STAGE, "two jobs are called 'morning'"),
        (STAGE.replace('"disk"', '"lake"'), "to itself"),
        (STAGE.replace("web", "../web"), "has a '..' segment"),
        ("jobs = 3\n", "jobs = 3 is not right"),
        ("jobs = []\n", "has no jobs"),
        ("[[jobs]", "is not TOML"),
    ],
)
def test_wrong_specification_names_what_is_wrong(file: Path, wrong: str, said: str) -> None:
    text = file.read_text()
    file.write_text((wrong if wrong.startswith("jobs") else "") + text[: text.index("[[jobs]]")])
    if not wrong.startswith("jobs"):
        file.write_text(file.read_text() + wrong)
    with pytest.raises((ConfigError, NotFound, ValueError)) as caught:
        load_jobs(file, Config({}))
    assert said in str(caught.value)


def test_second_run_of_a_file_is_locked_out(file: Path) -> None:
    with job_lock(file), pytest.raises(Locked, match="another process"), job_lock(file):
        pass
    with job_lock(file):
        pass


def test_lock_of_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no file .*none\.toml"), job_lock(tmp_path / "none.toml"):
        pass


def test_demote_that_needs_more_copies_counts_those_of_other_tiers(file: Path) -> None:
    text = file.read_text()
    keep = f'[tiers.keep]\nurl = "{file.parent}/keep"\n'
    demote = DEMOTE.replace('"disk"', '"lake"', 1).replace('to = "lake"', 'to = "disk"') + "min_copies = 2\n"
    file.write_text(text[: text.index("[[jobs]]")] + keep + demote)
    before = sorted(file.parent.rglob("*"))
    for dry_run in (True, False):  # nothing is copied in vain
        (result,) = run_jobs(load_jobs(file, Config({})), dry_run=dry_run)
        assert result.status == "failed"
        assert "would have 1 copies elsewhere, 2 needed" in str(result.error)
    assert sorted(file.parent.rglob("*")) == before
    lake, kept = open_tier(file.parent / "lake"), open_tier(file.parent / "keep")
    plan_move(open_corpus(lake, "web"), kept).run()
    (result,) = run_jobs(load_jobs(file, Config({})))
    assert (result.status, result.error) == ("done", None)
    with pytest.raises(NotFound):
        open_corpus(lake, "web")
    for name in ("keep", "disk"):
        assert verify(open_corpus(open_tier(file.parent / name), "web")).ok
    assert next(run_jobs(load_jobs(file, Config({})))).status == "nothing to do"


def test_tiers_of_one_url_on_two_servers_are_two(file: Path) -> None:
    tiers = "".join(
        f'[tiers.{name}]\nurl = "s3://bucket/x"\noptions = {{endpoint_url = "http://127.0.0.1:{port}"}}\n'
        for name, port in (("lake", 1), ("disk", 2))
    )
    file.write_text(tiers + DEMOTE)
    (job,) = load_jobs(file, Config({}))
    assert isinstance(job, Job)
    assert [tier.name for tier in job.others] == ["lake"]


def test_demote_into_memory_is_refused_before_anything_is_copied(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_systems, "is_memory", lambda _path: False)  # wherever this test has its folders
    text = file.read_text()
    ram = '[tiers.ram]\nurl = "memory://demoted"\n'
    demote = DEMOTE.replace('"disk"', '"lake"', 1).replace('to = "lake"', 'to = "ram"')
    file.write_text(text[: text.index("[[jobs]]")] + ram + demote)
    (result,) = run_jobs(load_jobs(file, Config({})))
    assert result.status == "failed"
    assert "would have 0 copies elsewhere, 1 needed (ram: in memory" in str(result.error)
    assert list(open_tier("memory://demoted").store.list()) == []
