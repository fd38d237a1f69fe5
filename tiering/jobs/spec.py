"""Job files: jobs in TOML, checked when they are read.

Invariant: a specification that loads names tiers that exist, kinds that are known, and nothing else.

Example::

    [tiers.lake]
    url = "s3://bucket/prefix"

    [tiers.disk]
    url = "/mnt/nvme/tier"

    [[jobs]]
    name = "morning"
    kind = "stage"          # copy towards the GPU
    corpus = "web-text"
    from = "lake"
    to = "disk"

    [[jobs]]
    name = "evening"
    kind = "demote"         # copy away from the GPU, then give up the source's copy
    corpus = "web-text"
    from = "disk"
    to = "lake"
    min_copies = 1          # verified copies that must remain elsewhere
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tiering.config import Config, Table, read_tiers, read_toml
from tiering.errors import ConfigError
from tiering.keys import validate_name
from tiering.tier import Tier

Kind = Literal["stage", "demote"]
KINDS: Final[tuple[Kind, ...]] = ("stage", "demote")


@dataclass(frozen=True, slots=True)
class Job:
    """One move of one corpus."""

    name: str
    kind: Kind
    corpus: str
    source: Tier
    target: Tier
    version: int | None = None
    min_copies: int = 1
    """Demote: verified copies that must remain elsewhere."""


def load_jobs(path: Path, config: Config) -> list[Job]:
    """Read a job file; its own ``[tiers]`` come before those of the configuration.

    Raises:
        ConfigError: something is wrong; names the key, the value and a right example.
        NotFound: there is no such file, or no such tier.
    """
    table = read_toml(path)
    tiers = Config({**config.tiers, **read_tiers(table)}, path)
    entries = table.get("jobs", list, "[[jobs]]")
    table.finish()
    if not entries:
        raise ConfigError(f"{str(path)!r} has no jobs", hint="Example: [[jobs]] kind = 'stage' ...")
    jobs = [_read_job(entry, f"jobs[{number}]", tiers) for number, entry in enumerate(entries)]
    names = [job.name for job in jobs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two jobs are called {twice!r}", hint="Give each its own name")
    return jobs


def _read_job(entry: Mapping[str, object], where: str, tiers: Config) -> Job:
    table = Table(entry, where)
    kind = table.require("kind", str, "'stage'")
    if kind not in KINDS:
        raise ConfigError(f"{where}.kind = {kind!r} is not known", hint=f"Kinds: {', '.join(KINDS)}")
    corpus = validate_name(table.require("corpus", str, "'web-text'"))
    job = Job(
        name=table.get("name", str, "'morning'", f"{kind} {corpus}"),
        kind=kind,
        corpus=corpus,
        source=tiers.tier(table.require("from", str, "'lake'")),
        target=tiers.tier(table.require("to", str, "'disk'")),
        version=table.get("version", int, "1"),
        min_copies=table.get("min_copies", int, "1", 1),
    )
    table.finish()
    if job.min_copies < 1:
        raise ConfigError(f"{where}.min_copies = {job.min_copies} is below 1", hint="Example: min_copies = 1")
    if job.source.url == job.target.url:
        raise ConfigError(f"{where} moves from tier {job.source.name!r} to itself", hint="Name two tiers")
    return job
