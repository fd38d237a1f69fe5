"""What all commands share: the configuration, where output goes, and the cluster to work on.

Invariant: with ``--json`` standard output holds exactly one JSON document; what is for people goes to
standard error.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import typer
from distributed import Client
from distributed.security import Security
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tiering.config import Config, load_config
from tiering.errors import NotFound, Unavailable, UsageError
from tiering.tier import Tier

DEFAULT_CONFIG: Final = Path("tiering.toml")
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_SECURE: Final = frozenset({"tls", "wss"})
_SCHEMES: Final = frozenset({"tcp", "ws", *_SECURE})
_CONNECT_SECONDS: Final = 10


@dataclass(frozen=True)
class Session:
    """One call of the command."""

    config: Config
    json: bool = False
    quiet: bool = False
    scheduler: str | None = None
    insecure: bool = False
    console: Console = field(default_factory=Console)

    @classmethod
    def of(cls, context: typer.Context) -> Session:
        """The session that the global options made."""
        session: Session = context.find_root().obj
        return session

    def tier(self, name: str) -> Tier:
        """A tier by its name in the configuration, its url or its path."""
        return self.config.tier(name)

    def source(self, name: str) -> Tier:
        """A tier that must be there, because something is to be read from it."""
        tier = self.tier(name)
        if tier.kind == "file" and not Path(tier.url).is_dir():
            raise NotFound(
                f"tier {name!r} is a folder that does not exist: {tier.url}", hint="Look at its path"
            )
        return tier

    @property
    def progress(self) -> bool | None:
        """Whether to show progress: never with --quiet, else when standard error is a terminal."""
        return False if self.quiet else None

    def say(self, thing: Any) -> None:
        """Print something for people."""
        if not self.quiet:
            self.console.print(thing)

    def result(self, document: Mapping[str, Any], table: Any = None) -> None:
        """Print the result: the document with --json, else the table (or the document as lines)."""
        if self.json:
            typer.echo(json.dumps(document, indent=2, default=str))
        elif not self.quiet:
            self.console.print(table if table is not None else lines(document))

    @contextlib.contextmanager
    def client(self) -> Iterator[Client | None]:
        """A client of the scheduler that --scheduler names, or None."""
        if self.scheduler is None:
            yield None
            return
        scheme, host, port = _address(self.scheduler)
        if scheme not in _SECURE and host not in _LOOPBACK and not self.insecure:
            raise UsageError(
                f"scheduler {self.scheduler!r} is neither on loopback nor reached by TLS",
                hint="Whoever reaches it runs code on it: use tls://, or say --insecure",
            )
        if scheme in _SECURE:
            _check_certificates(self.scheduler)
        address = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        try:
            client = Client(address, timeout=_CONNECT_SECONDS)
        except OSError as error:
            raise Unavailable(
                f"no scheduler answers at {self.scheduler!r}",
                hint="Start one: dask scheduler --host 127.0.0.1",
            ) from error
        with client:
            yield client


def _address(scheduler: str) -> tuple[str, str, int]:
    """Scheme, host and port of ``HOST:PORT`` or a url."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(scheduler if "://" in scheduler else f"tcp://{scheduler}")
        if parts.scheme in _SCHEMES and parts.hostname and parts.port:
            return parts.scheme, parts.hostname, parts.port
    raise UsageError(
        f"scheduler {scheduler!r} is not an address", hint="Example: 127.0.0.1:8786 or tls://host:8786"
    )


def _check_certificates(scheduler: str) -> None:
    with contextlib.suppress(OSError):  # one that cannot be read is none
        if Security().get_connection_args("client").get("ssl_context") is not None:
            return
    raise UsageError(
        f"no certificates to reach scheduler {scheduler!r} by TLS",
        hint="Dask's configuration names them: distributed.comm.tls",
    )


def make_session(
    config: Path | None, *, json: bool, quiet: bool, scheduler: str | None, insecure: bool
) -> Session:
    """The session for the global options; without --config, ``tiering.toml`` here where there is one."""
    if config is None and DEFAULT_CONFIG.exists():
        config = DEFAULT_CONFIG
    return Session(
        config=load_config(config) if config else Config({}),
        json=json,
        quiet=quiet,
        scheduler=scheduler,
        insecure=insecure,
        console=Console(stderr=json),
    )


def lines(document: Mapping[str, Any]) -> Table:
    """A document as a table of two columns."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in document.items():
        table.add_row(f"[bold]{name}", "" if value is None else escape(str(value)))
    return table
