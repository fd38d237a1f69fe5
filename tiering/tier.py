"""A tier: a place for copies, with a kind, a capacity, prices and a speed to plan with.

Invariant: a `Tier` is a small immutable value that says how to reach a place, never a connection to it and
never a secret (credentials are references). It travels in Dask graphs; each process opens its own store.
"""

from __future__ import annotations

import difflib
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tiering.arguments import known, need
from tiering.credentials import ENCRYPTION_OPTIONS, check_references, check_url
from tiering.errors import ConfigError, UsageError
from tiering.sizes import parse_size
from tiering.stores.base import Store
from tiering.stores.open import open_store
from tiering.stores.wrappers.options import WrapperOptions

Option = str | int | float | bool

GB: Final = 1_000_000_000
HIGH_WATER: Final = 0.95
LOW_WATER: Final = 0.85
_ALIKE: Final = 0.8  # from here on an option is a slip of the pen for another


@dataclass(frozen=True, slots=True)
class Prices:
    """What a tier costs, in US dollars. GB are 10^9 bytes."""

    storage_gb_month: float = 0.0
    egress_gb: float = 0.0
    get_1000: float = 0.0
    put_1000: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e6:
                raise ConfigError(f"price {name} = {value!r} is not in dollars", hint="Example: 0.023")

    def reading(self, nbytes: int, requests: int) -> float:
        """Dollars to read `nbytes` in `requests` out of the tier."""
        return nbytes / GB * self.egress_gb + requests / 1000 * self.get_1000

    def writing(self, requests: int) -> float:
        """Dollars to write in `requests`."""
        return requests / 1000 * self.put_1000


S3_LIST_PRICES: Final = Prices(storage_gb_month=0.023, egress_gb=0.09, get_1000=0.0004, put_1000=0.005)
"""Amazon's list prices for S3 Standard out to the internet; the default of s3:// on Amazon itself. Egress
inside a region is free: say ``prices.egress_gb = 0`` where the training runs in the bucket's region."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What one node may expect of a tier; used to plan, never to limit."""

    latency_seconds: float
    bytes_per_second: float


_SHARED_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SPEEDS: Final = {
    "memory": Speed(1e-6, 8e9),
    "file": Speed(1e-4, 2e9),
    "block": Speed(1e-4, 2e9),
    "object": Speed(0.03, 5e8),
}


@dataclass(frozen=True, slots=True)
class Tier:
    """A named place. Make one with `open_tier`."""

    name: str
    url: str
    kind: str
    capacity_bytes: int | None = None
    prices: Prices = Prices()
    read_only: bool = False
    high_water: float = HIGH_WATER
    """Share of the capacity above which room is made."""
    low_water: float = LOW_WATER
    """Share of the capacity down to which room is made."""
    option_items: tuple[tuple[str, Option], ...] = field(default=(), repr=False)
    _process: int | None = field(default=None, repr=False, compare=False)

    @property
    def options(self) -> dict[str, Option]:
        """Options of the store and its wrappers, credentials as references."""
        return dict(self.option_items)

    @property
    def speed(self) -> Speed:
        """Latency and throughput to plan with."""
        return _SPEEDS[self.kind]

    @property
    def store(self) -> Store:
        """This process's store of the tier, opened on first use."""
        if self._process not in (None, os.getpid()):
            raise UsageError(
                f"a {self.kind} tier lives in the process that opened it",
                tier=self.name,
                hint="Use a shm:// or file tier for work on other processes, or run without them",
            )
        return _open_store(self, os.getpid())

    @property
    def encrypted(self) -> bool:
        """Whether what lies on the tier is ciphertext."""
        return ENCRYPTION_OPTIONS[0] in self.options

    def is_same(self, other: Tier) -> bool:
        """Whether both name one place in the same words: the url alone may be that of two servers."""
        return (self.url, self.option_items) == (other.url, other.option_items)

    @property
    def process_bound(self) -> bool:
        """Whether only one process at a time can use the tier."""
        return self.kind == "block" or self.url.startswith("memory://")

    def used_bytes(self) -> int:
        """Bytes of all objects on the tier, by listing it."""
        return sum(info.nbytes for info in self.store.list())

    def room_bytes(self) -> int | None:
        """What still fits: the smaller of capacity and medium, or None where neither is known."""
        rooms = [free for free in (self.store.free_bytes(),) if free is not None]
        if self.capacity_bytes is not None:
            rooms.append(max(0, self.capacity_bytes - self.used_bytes()))
        return min(rooms, default=None)

    def close(self) -> None:
        """Close this process's store, which gives back locks and connections; the next use opens it again."""
        store = _open_stores.pop((self, os.getpid()), None)
        if store is not None:
            store.close()


def open_tier(
    url: str | os.PathLike[str],
    name: str | None = None,
    *,
    options: Mapping[str, Option] | None = None,
    capacity: str | int | None = None,
    prices: Prices | Mapping[str, float] | None = None,
    read_only: bool = False,
    high_water: float = HIGH_WATER,
    low_water: float = LOW_WATER,
) -> Tier:
    """Describe the tier at `url`; nothing is opened until it is used.

    Args:
        url: a folder (``/mnt/nvme/tier`` or ``file://``), ``s3://bucket/prefix``, ``gs://``, ``az://``,
            ``block:///path/volume``, ``memory://name`` (this process), ``shm://name`` (the processes of this
            user on this node, while any of them lives), or any scheme fsspec knows.
        name: the tier's name in messages, plans and manifests of jobs; by default made from the url.
        options: of the store, and of its wrappers (`tiering.stores.wrappers.options`). Credentials as
            references: ``{"secret_access_key": "env:LAKE_SECRET"}``.
        capacity: bytes the tier may hold, as a number or as ``"2TB"``, ``"64MiB"``; None for no limit.
        prices: `Prices` or their fields, in US dollars.
        read_only: refuse every write and delete.
        high_water, low_water: shares of the capacity; above the first, room is made down to the second.

    Raises:
        ConfigError: something is wrong with an argument; the message shows a right one.
    """
    need(url, str | os.PathLike, "the url of a tier", "open_tier('s3://bucket/prefix')")
    url, kind = _normalise(os.fspath(url), name)
    options = dict(options or {})
    check_references(options, f"tier {name or url!r}")
    if ENCRYPTION_OPTIONS[1] in options and ENCRYPTION_OPTIONS[0] not in options:
        raise ConfigError(
            f"tier {name or url!r} has an {ENCRYPTION_OPTIONS[1]} without an {ENCRYPTION_OPTIONS[0]}",
            hint=f'Give the key to wrap by: {ENCRYPTION_OPTIONS[0]} = "file:/path/to/key"',
        )
    for option, value in options.items():
        if not isinstance(value, str | int | float):
            raise ConfigError(
                f"option {option!r} of tier {name or url!r} is a {type(value).__name__}",
                hint="Options are text, numbers, true or false",
            )
    WrapperOptions.parse(options, kind, f"tier {name or url!r}")
    _check_known(options, kind, f"tier {name or url!r}")
    _check_water(low_water, high_water)
    bare_s3 = url.startswith("s3://") and "endpoint_url" not in options
    return Tier(
        name=name or _default_name(url),
        url=url,
        kind=kind,
        capacity_bytes=None if capacity is None else parse_size(capacity, "capacity"),
        prices=_prices(prices, S3_LIST_PRICES if bare_s3 else Prices()),
        read_only=read_only,
        high_water=high_water,
        low_water=low_water,
        option_items=tuple(sorted(options.items())),
        _process=os.getpid() if url.startswith("memory://") else None,
    )


def _check_known(options: Mapping[str, Option], kind: str, where: str) -> None:
    """A misspelt option must not be passed over: it may be the one by which a tier is encrypted."""
    right = [*WrapperOptions.names(), *ENCRYPTION_OPTIONS]
    for option in sorted(set(options).difference(right)):
        # Those of object tiers are checked by their store; but fsspec's filesystems take any.
        if kind != "object" or difflib.get_close_matches(option, ENCRYPTION_OPTIONS, 1, _ALIKE):
            raise ConfigError(f"{where} has no option {option!r}", hint=known(option, right))


def need_tier(tier: object, what: str = "tier") -> None:
    """Raise `UsageError` unless it is a `Tier`."""
    need(tier, Tier, what, f"{what} = open_tier('/mnt/nvme/tier')")


def need_tiers(tiers: object, what: str) -> None:
    """Raise `UsageError` unless it is a sequence of tiers."""
    need(tiers, Sequence, what, f"{what}=[open_tier('/mnt/nvme/tier')]")
    for tier in tiers:  # type: ignore[attr-defined]
        need_tier(tier, f"one of {what}")


def _prices(given: Prices | Mapping[str, float] | None, default: Prices) -> Prices:
    if given is None or isinstance(given, Prices):
        return given or default
    unknown = sorted(set(given) - set(Prices.__slots__))
    if unknown:
        known = ", ".join(Prices.__slots__)
        raise ConfigError(f"price {unknown[0]!r} is not known", hint=f"Prices are {known}, in US dollars")
    return Prices(**given)


def _check_water(low: float, high: float) -> None:
    for what, value, right in (("high_water", high, HIGH_WATER), ("low_water", low, LOW_WATER)):
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
            raise ConfigError(f"{what} = {value!r} is not a share of 1", hint=f"Example: {what} = {right}")
    if low >= high:
        hint = f"Example: low_water = {LOW_WATER}, high_water = {HIGH_WATER}"
        raise ConfigError(f"low_water = {low!r} is not below high_water = {high!r}", hint=hint)


def _normalise(url: str, name: str | None) -> tuple[str, str]:
    """The url with an absolute path and without ``file://``, and the tier's kind."""
    if not url.strip() or "\0" in url:
        raise ConfigError(
            f"tier url {url!r} is empty or has a NUL byte", hint="Example: 's3://bucket/prefix'"
        )
    if slip := re.match(r"(file|block|s3a?|gs|az|abfs|shm|memory|https?):/(?!/)", url):
        hint = f"Say '{slip[1]}://...', or './{url}' if it is a folder"
        raise ConfigError(f"tier url {url!r} has one slash where two belong", hint=hint)
    scheme, separator, rest = url.partition("://")
    if not separator:
        return str(Path(url).expanduser().absolute()), "file"
    scheme = scheme.lower()
    if scheme in ("file", "block"):
        if not rest.startswith("/") or rest.strip("/") == "":
            raise ConfigError(
                f"tier url {url!r} has no absolute path", hint=f"Example: '{scheme}:///mnt/nvme/tier'"
            )
        path = Path(rest)
        return (str(path), "file") if scheme == "file" else (f"block://{path}", "block")
    try:
        check_url(url, "a tier")
    except ValueError:  # also of what is no url at all
        raise ConfigError(
            f"the url of tier {name or scheme!r} carries credentials, a query or a fragment, or is none",
            hint="""Give "s3://bucket/prefix" and options = {secret_access_key = "env:LAKE_SECRET"}""",
        ) from None
    if scheme == "memory":
        return f"memory://{rest}", "memory"
    if scheme == "shm":
        if not _SHARED_NAME.fullmatch(rest):
            raise ConfigError(f"tier url {url!r} names no shared memory", hint="Example: 'shm://staging'")
        return f"shm://{rest}", "memory"
    if not rest.strip("/") or rest.startswith("/"):
        raise ConfigError(f"tier url {url!r} names no bucket or host", hint="Example: 's3://bucket/prefix'")
    return f"{scheme}://{rest.rstrip('/')}", "object"


def _default_name(url: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", url.split("://")[-1]).strip("-.") or "root"


_open_stores: dict[tuple[Tier, int], Store] = {}
"""Connections by tier and process; a forked child must not use its parent's."""
_opening: dict[tuple[str, int], threading.Lock] = {}
"""Held while a store opens, which may take long; a forked child must not wait for its parent's threads."""


def _open_store(tier: Tier, process: int) -> Store:
    if (store := _open_stores.get((tier, process))) is not None:
        return store
    with _opening.setdefault((tier.url, process), threading.Lock()):
        store = _open_stores.get((tier, process))
        if store is None:
            store = open_store(tier)
            _open_stores[tier, process] = store
        return store


def close_stores() -> None:
    """Close all stores of this process: gives back locks and connections; the next use opens them again."""
    for tier, process in list(_open_stores):
        if process == os.getpid():
            tier.close()
