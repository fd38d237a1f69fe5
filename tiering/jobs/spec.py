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

    [[jobs]]
    name = "nightly"
    kind = "lifecycle"      # what the rules say, over all corpora on these tiers
    tiers = ["lake", "disk"]

        [[jobs.rules]]
        name = "cool down"
        action = "move"
        tier = "disk"
        to = "lake"
        idle_for = "30d"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from policies.lifecycle import Rules, load_rules
from tiering.config import Config, Table, read_tiers, read_toml
from tiering.errors import ConfigError, TieringError, UsageError
from tiering.keys import validate_name
from tiering.tier import Tier

Kind = Literal["stage", "demote", "lifecycle"]
KINDS: Final[tuple[Kind, ...]] = ("stage", "demote", "lifecycle")


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
    others: tuple[Tier, ...] = ()
    """Demote: the other tiers of the job file and the configuration, where such copies may be."""


@dataclass(frozen=True, slots=True)
class LifecycleJob:
    """Rules over all corpora on some tiers."""

    name: str
    rules: Rules
    tiers: tuple[Tier, ...]
    access_logs: tuple[Path, ...] = ()
    """Of the node caches through which the corpora are read."""


def load_jobs(path: Path, config: Config) -> list[Job | LifecycleJob]:
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


def _read_job(entry: Mapping[str, object], where: str, tiers: Config) -> Job | LifecycleJob:
    table = Table(entry, where)
    kind = table.require("kind", str, "'stage'")
    if kind not in KINDS:
        raise ConfigError(f"{where}.kind = {kind!r} is not known", hint=f"Kinds: {', '.join(KINDS)}")
    if kind == "lifecycle":
        return _read_lifecycle(table, tiers)
    name = table.require("corpus", str, "'web-text'")
    try:
        corpus = validate_name(name)
    except UsageError as error:
        raise ConfigError(f"{where}.corpus = {name!r}: {error.message}", hint=error.hint) from None
    source = _tier(tiers, table, "from", "'lake'")
    job = Job(
        name=table.get("name", str, "'morning'", f"{kind} {corpus}"),
        kind=kind,
        corpus=corpus,
        source=source,
        target=_tier(tiers, table, "to", "'disk'"),
        version=table.get("version", int, "1"),
        min_copies=table.get("min_copies", int, "1", 1) if kind == "demote" else 1,
        others=tuple(tier for tier in tiers.tiers.values() if not tier.is_same(source)),
    )
    table.finish()
    if job.min_copies < 1:
        raise ConfigError(f"{where}.min_copies = {job.min_copies} is below 1", hint="Example: min_copies = 1")
    if job.source.is_same(job.target):
        raise ConfigError(f"{where} moves from tier {job.source.name!r} to itself", hint="Name two tiers")
    return job


def _read_lifecycle(table: Table, tiers: Config) -> LifecycleJob:
    names = table.get("tiers", list, "['lake', 'disk']", list(tiers.tiers))
    if not names or not all(isinstance(name, str) for name in names):
        hint = "Example: tiers = ['lake', 'disk']"
        raise ConfigError(f"{table.where}.tiers = {names!r} is not a list of names", hint=hint)
    rules = table.get("rules", list, f"[[{table.where.split('[')[0]}.rules]]", [])
    min_copies = table.get("min_copies", int, "1", 1)
    logs = table.get("access_logs", list, "['/mnt/nvme/access.jsonl']", [])
    if not all(isinstance(log, str) and log for log in logs):
        hint = "Example: access_logs = ['/mnt/nvme/access.jsonl']"
        raise ConfigError(f"{table.where}.access_logs = {logs!r} is not a list of paths", hint=hint)
    name = table.get("name", str, "'nightly'", "lifecycle")
    table.finish()
    places = tuple(_named(tiers, name, f"{table.where}.tiers") for name in names)
    try:
        loaded = load_rules(
            [_with_marks(rule, tiers) for rule in rules],
            [tier.name for tier in places],
            min_copies=min_copies,
            where=f"{table.where}.rules",
        )
    except ValueError as error:
        message, _, example = str(error).rpartition("; e.g. ")
        if table.where not in message:
            message = f"{table.where}: {message}"
        raise ConfigError(message, hint=f"Example: {example}") from None
    try:
        paths = tuple(Path(log).expanduser() for log in logs)
    except RuntimeError as error:
        raise ConfigError(f"{table.where}.access_logs: {error}", hint="Give the whole path") from None
    return LifecycleJob(name, loaded, places, paths)


def _tier(tiers: Config, table: Table, key: str, example: str) -> Tier:
    return _named(tiers, table.require(key, str, example), f"{table.where}.{key}")


def _named(tiers: Config, name: str, where: str) -> Tier:
    try:
        return tiers.tier(name)
    except TieringError as error:
        raise ConfigError(f"{where} = {name!r}: {error.message}", hint=error.hint) from None


def _with_marks(rule: Any, tiers: Config) -> Any:
    """The rule with the water marks of its tier where it says ``high_water = "tier"``."""
    wanted = isinstance(rule, Mapping) and rule.get("high_water") == "tier"
    tier = tiers.tiers.get(str(rule.get("tier"))) if wanted else None
    if tier is None:  # what is wrong with it is told where all rules are checked
        return rule
    return {"low_water": tier.low_water, **rule, "high_water": tier.high_water}
