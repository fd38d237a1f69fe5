"""`tiering.toml`: the tiers and node caches a team has, told once.

Invariant: a configuration that loads is right in every key and type; one that is wrong is answered with the
key, the value seen and a right example, and nothing is opened.

Example::

    [tiers.lake]
    url = "s3://bucket/prefix"
    options = {endpoint_url = "http://127.0.0.1:7480", secret_access_key = "env:LAKE_SECRET"}
    prices = {egress_gb = 0.0}

    [tiers.disk]
    url = "/mnt/nvme/tier"
    capacity = "2TB"
    high_water = 0.95
    low_water = 0.85

    [caches.node]
    path = "/mnt/nvme/cache"
    capacity = "500GB"
    policy = "auto"
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Final, TypeVar, get_args, overload

from tiering.arguments import known
from tiering.cache import NodeCache
from tiering.errors import ConfigError, NotFound
from tiering.tier import HIGH_WATER, LOW_WATER, Tier, open_tier

MAX_CONFIG_BYTES: Final = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Config:
    """What a configuration file says."""

    tiers: Mapping[str, Tier]
    path: Path | None = None
    caches: Mapping[str, NodeCache] = field(default_factory=dict)

    def tier(self, name: str) -> Tier:
        """The tier called `name`, or the one at `name` where that is a url or a path.

        Raises:
            NotFound: neither.
        """
        if name in self.tiers:
            return self.tiers[name]
        if "://" in name or os.sep in name or name in (".", ".."):
            return open_tier(name)
        raise NotFound(
            f"no tier is called {name!r}",
            hint=f"{known(name, self.tiers)} Or give a url or a path such as './{name}'",
        )


class Table:
    """A TOML table read key by key: every value is checked, every key must be asked for."""

    def __init__(self, values: object, where: str, *, shows: bool = True) -> None:
        if not isinstance(values, dict):
            seen = f" = {values!r}" if shows else ""
            raise ConfigError(
                f"{where}{seen} is not a table", hint=_example(where.partition("[")[0], f"[{where}]")
            )
        self._values: dict[str, Any] = values
        self._asked: set[str] = set()
        self.where = where
        self.shows = shows
        """Whether messages show values: not where a credential may have been written by mistake."""

    @overload
    def get(self, key: str, kind: type[T] | UnionType, example: str, default: T) -> T: ...
    @overload
    def get(self, key: str, kind: type[T] | UnionType, example: str, default: None = None) -> T | None: ...
    def get(self, key: str, kind: Any, example: str, default: Any = None) -> Any:
        """The value of `key`, or `default`; raises `ConfigError` when it has another type."""
        self._asked.add(key)
        if key not in self._values:
            return default
        value = self._values[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and bool not in (kind, *get_args(kind))):
            seen = f" = {value!r}" if self.shows else ""
            raise ConfigError(f"{self.where}.{key}{seen} is not right", hint=_example(key, example))
        return value

    def require(self, key: str, kind: type[T], example: str) -> T:
        """The value of `key`, which must be there."""
        value = self.get(key, kind, example)
        if value is None:
            raise ConfigError(f"{self.where}.{key} is missing", hint=_example(key, example))
        return value

    def keys(self) -> list[str]:
        """All keys, in the order of the file."""
        return list(self._values)

    def finish(self) -> None:
        """Raise `ConfigError` when the table has a key that nobody asked for."""
        for key in self._values:
            if key not in self._asked:
                hint = known(key, sorted(self._asked))
                raise ConfigError(f"{self.where}.{key} is not a known key", hint=hint)


def load_config(path: str | os.PathLike[str] = "tiering.toml") -> Config:
    """Read a configuration file.

    Raises:
        NotFound: there is no such file.
        ConfigError: it is not TOML, or a key or value is wrong.
    """
    path = Path(path)
    table = read_toml(path)
    config = Config(read_tiers(table), path, _read_caches(table))
    table.finish()
    return config


def read_toml(path: Path) -> Table:
    """Read a TOML file of bounded size."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        raise NotFound(f"no file {str(path)!r}", hint="Give its path with --config") from None
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{str(path)!r} is over {MAX_CONFIG_BYTES} bytes", hint="Is it a configuration?")
    try:
        return Table(tomllib.loads(data.decode()), path.name)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{str(path)!r} is not TOML: {error}") from error


def read_tiers(table: Table) -> Mapping[str, Tier]:
    """The tiers of the table ``[tiers]``."""
    tiers = Table(table.get("tiers", dict, "[tiers.lake]", {}), "tiers")
    return MappingProxyType({name: _read_tier(name, tiers) for name in tiers.keys()})  # noqa: SIM118  # not a dict


def _read_tier(name: str, tiers: Table) -> Tier:
    table = Table(tiers.get(name, dict, "{url = '/mnt/nvme/tier'}"), f"tiers.{name}")
    given = table.get("options", object, "{region = 'eu-west-1'}", {})
    options = Table(given, f"{table.where}.options", shows=False)
    prices = Table(table.get("prices", dict, "{egress_gb = 0.09}", {}), f"{table.where}.prices")
    try:
        tier = open_tier(
            table.require("url", str, "'s3://bucket/prefix'"),
            name,
            options={key: _option(options, key) for key in options.keys()},  # noqa: SIM118
            capacity=table.get("capacity", str | int, "'2TB'"),
            prices={key: _price(prices, key) for key in prices.keys()} or None,  # noqa: SIM118
            read_only=table.get("read_only", bool, "true", False),
            high_water=table.get("high_water", int | float, str(HIGH_WATER), HIGH_WATER),
            low_water=table.get("low_water", int | float, str(LOW_WATER), LOW_WATER),
        )
    except ConfigError as error:
        if table.where in error.message:
            raise
        raise ConfigError(f"{table.where}: {error.message}", hint=error.hint) from None
    table.finish()
    return tier


def _read_caches(table: Table) -> Mapping[str, NodeCache]:
    """The node caches of the table ``[caches]``; nothing is made or opened."""
    caches = Table(table.get("caches", dict, "[caches.node]", {}), "caches")
    return MappingProxyType({name: _read_cache(name, caches) for name in caches.keys()})  # noqa: SIM118


def _read_cache(name: str, caches: Table) -> NodeCache:
    table = Table(caches.get(name, dict, "{path = '/mnt/nvme/cache', capacity = '500GB'}"), f"caches.{name}")
    try:
        cache = NodeCache(
            table.require("path", str, "'/mnt/nvme/cache'"),
            table.get("capacity", str | int, "'500GB'") or table.require("capacity", str, "'500GB'"),
            table.get("policy", str, "'auto'", "auto"),
        )
    except ConfigError as error:
        if table.where in error.message:
            raise
        raise ConfigError(f"{table.where}: {error.message}", hint=error.hint) from None
    table.finish()
    return cache


def _example(key: str, example: str) -> str:
    """A line of TOML; a table is one by itself."""
    is_table = example.startswith("[") and "'" not in example  # else it may be a list
    return f"Example: {example}" if is_table else f"Example: {key} = {example}"


def _option(options: Table, key: str) -> Any:
    return options.get(key, str | int | float | bool, "'eu-west-1'")


def _price(prices: Table, key: str) -> Any:
    return prices.get(key, int | float, "0.09")
