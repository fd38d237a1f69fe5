"""Which corpora and versions a tier holds, told by the tier's own objects alone.

Below ``<corpus>/.tiering/`` lie ``manifests/<digest>.parquet``, one small record per version
(``versions/00000001.json``) and ``HEAD``, a copy of the newest record.

Invariant: a version exists from the instant its record does. Records are created, never changed, and
exactly one of any number of racing writers creates one: that holds on every store, also where no
conditional update exists. ``HEAD`` only saves a listing and is never believed without its record: where it is
missing, damaged or stale, the records are asked, and the next writer puts it back. So a version whose record
was deleted is gone at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from tiering.digest import Buffer, check_digest_form, digest
from tiering.errors import (
    CapacityExceeded,
    Conflict,
    Corrupt,
    FormatError,
    NotFound,
    TieringError,
    UnsupportedVersion,
)
from tiering.keys import INTERNAL, validate_name
from tiering.manifest import FORMAT_VERSION, MAX_MANIFEST_BYTES, Manifest, check_version, decode, parse_json
from tiering.stores.base import ObjectInfo, Store
from tiering.transfer import put_verified

T = TypeVar("T")

log = logging.getLogger("tiering.catalog")

MAX_RECORD_BYTES: Final = 1 << 16
MAX_VERSIONS: Final = 99_999_999
_RECORD_NAME: Final = re.compile(r"(\d{8})\.json")
_OWN_KEY: Final = re.compile(r"part-\d{6,}\.arrow|(?:[^/.][^/]*/)?zarr\.json|[^/.][^/]*/c(?:/\d+)+")
"""Shards and documents of either format, relative to the corpus."""


@dataclass(frozen=True, slots=True)
class Record:
    """One version of a corpus: its number and the name of its manifest."""

    version: int
    manifest: str

    def encode(self) -> bytes:
        """The JSON document."""
        fields = {"format_version": FORMAT_VERSION, "version": self.version, "manifest": self.manifest}
        return json.dumps(fields, sort_keys=True).encode()


def corpora(store: Store) -> list[str]:
    """Names of the corpora that a tier holds, sorted."""
    return [name for name in store.children() if _is_corpus(store, name)]


def head(store: Store, name: str) -> Record:
    """The newest version of corpus `name`.

    Raises:
        NotFound: no such corpus here.
        UnsupportedVersion: a newer engine wrote it.
    """
    validate_name(name)
    try:
        entry = _read_record(store, _head_key(name))
        if record(store, name, entry.version) == entry:  # else a turned bit made it name another version
            return entry
    except UnsupportedVersion:
        raise
    except (FileNotFoundError, FormatError, Corrupt) as error:
        log.debug("HEAD of corpus %r is of no use, its records are asked: %s", name, error)
    numbers = versions(store, name)
    if not numbers:
        hint = "'tiering ls' lists what is there"
        raise NotFound(f"no corpus {name!r}", tier=store.name, hint=hint)
    return record(store, name, numbers[-1])


def versions(store: Store, name: str) -> list[int]:
    """Numbers of all versions, ascending."""
    found = (_RECORD_NAME.fullmatch(child) for child in store.children(f"{name}/{INTERNAL}/versions"))
    return sorted(int(match[1]) for match in found if match)


def record(store: Store, name: str, version: int) -> Record:
    """The record of one version.

    Raises:
        NotFound: no such version here.
    """
    key = record_key(name, version)
    try:
        found = _read_record(store, key)
    except FileNotFoundError:
        known = ", ".join(map(str, versions(store, name))) or "none"
        raise NotFound(
            f"no version {version} of corpus {name!r}", tier=store.name, hint=f"Versions: {known}"
        ) from None
    if found.version != version:
        raise FormatError(f"the record says that it is of version {found.version}", tier=store.name, key=key)
    return found


def is_published(store: Store, name: str, version: int) -> bool:
    """Whether the version exists here."""
    return store.exists(record_key(name, version))


def load(store: Store, name: str, version: int | None = None) -> tuple[Record, Manifest]:
    """The record and manifest of a version, or of the newest."""
    validate_name(name)
    entry = head(store, name) if version is None else record(store, name, version)
    data = manifest_bytes(store, name, entry)
    try:
        return entry, decode(data, entry.manifest)
    except TieringError as error:
        error.tier, error.key = store.name, manifest_key(name, entry.manifest)
        raise


def manifest_bytes(store: Store, name: str, entry: Record) -> Buffer:
    """The manifest of a version as it is stored.

    Raises:
        Corrupt: it is missing, or has other bytes than its name says.
    """
    key = manifest_key(name, entry.manifest)
    hint = (
        f"'tiering verify {name} --on {store.name} --repair' takes it from another tier; where this was the"
        f" last copy, 'tiering forget {name} --on {store.name} --last-copy' clears what is left"
    )
    try:
        nbytes = store.stat(key).nbytes
        if nbytes > MAX_MANIFEST_BYTES:
            raise FormatError(
                f"a manifest of {nbytes} bytes, over {MAX_MANIFEST_BYTES}", tier=store.name, key=key
            )
        data = store.read(key)
    except FileNotFoundError:
        raise Corrupt("the manifest is missing", tier=store.name, key=key, hint=hint) from None
    if digest(data) != entry.manifest:
        raise Corrupt("the manifest has other bytes than its name says", tier=store.name, key=key, hint=hint)
    return data


def publish(store: Store, name: str, version: int, manifest: Manifest, encoded: Buffer) -> Record:
    """Make a version exist, after all its shards do. Publishing the same again changes nothing.

    The caller holds a claim on the name. Objects that an ingest or move left behind that never ended are
    swept away first, so that other tools, which read whatever lies there, see this version alone.

    Raises:
        Conflict: this version number exists with another manifest; nothing was written.
    """
    entry = Record(version, digest(encoded))
    known = versions(store, name)
    if version in known:
        _check_same(store, name, entry)
    store.sweep(name)
    if not known:
        _sweep(store, name, manifest.named())
    for key, document in manifest.documents.items():
        put_verified(store, f"{name}/{key}", [document], len(document), digest(document))
    put_verified(store, manifest_key(name, entry.manifest), [encoded], len(encoded), entry.manifest)
    try:
        store.write(record_key(name, version), [entry.encode()], if_absent=True)
    except FileExistsError:
        _check_same(store, name, entry)
    _write_head(store, name)
    return entry


def unpublish(store: Store, name: str, version: int) -> None:
    """Make a version invisible on this tier; the objects of its shards stay."""
    store.delete(record_key(name, version))
    _write_head(store, name)


def write_head(store: Store, name: str) -> bool:
    """Let ``HEAD`` name the newest version where it does not; whether that changed it."""
    newest = max(versions(store, name), default=0)
    if not newest:
        return False
    try:
        right = bytes(store.read(_head_key(name))) == record(store, name, newest).encode()
    except TieringError:
        right = False
    if not right:
        _write_head(store, name)
    return not right


def drop_head(store: Store, name: str) -> None:
    """Delete ``HEAD``, which nothing needs; whoever publishes or unpublishes next puts it back."""
    store.delete(_head_key(name))


def put_head_back(store: Store, name: str) -> None:
    """Write ``HEAD`` again if it is not right, and if that can be done: it saves a listing, nothing more."""
    with contextlib.suppress(TieringError):
        write_head(store, name)


def with_room(store: Store, name: str, write: Callable[[], T]) -> T:
    """What `write` returns, which writes a small object.

    Where a full medium refuses it, ``HEAD``, which is a hint, makes room for it.
    """
    try:
        return write()
    except CapacityExceeded:
        drop_head(store, name)
        return write()


def manifest_key(name: str, manifest: str) -> str:
    """Where the manifest of that digest lies."""
    return f"{name}/{INTERNAL}/manifests/{manifest}.parquet"


def record_key(name: str, version: int) -> str:
    """Where the record of a version lies."""
    return f"{name}/{INTERNAL}/versions/{version:08d}.json"


def _head_key(name: str) -> str:
    return f"{name}/{INTERNAL}/HEAD"


def _is_corpus(store: Store, name: str) -> bool:
    return not name.startswith((".", "_")) and bool(versions(store, name))


def _check_same(store: Store, name: str, entry: Record) -> None:
    if record(store, name, entry.version) != entry:
        raise Conflict(
            f"corpus {name!r} already has a version {entry.version} with other content",
            tier=store.name,
            hint="Choose another name, or release that corpus first",
        )


def _write_head(store: Store, name: str) -> None:
    """Let ``HEAD`` name the newest version. A writer looks again afterwards: the last one leaves it right."""
    written = None
    while (newest := max(versions(store, name), default=0)) != written:
        try:
            if newest:
                store.write(_head_key(name), [record(store, name, newest).encode()])
            else:
                drop_head(store, name)
        except CapacityExceeded:  # none at all is better than an old one: then the records are asked
            drop_head(store, name)
        written = newest


def own_objects(listed: Iterable[ObjectInfo], name: str) -> list[ObjectInfo]:
    """Of the objects below the folder `name`, those whose keys a shard or document of the corpus may have.

    A tier inside of that folder has corpora with such keys, too; theirs are left out.
    """
    keys = {info: info.key.removeprefix(f"{name}/") for info in listed}
    inner = {parts[0] for key in keys.values() if (parts := key.split("/"))[1:2] == [INTERNAL]}
    return [
        info
        for info, key in keys.items()
        if _OWN_KEY.fullmatch(key) is not None and key.split("/")[0] not in inner
    ]


def _sweep(store: Store, name: str, keep: Set[str]) -> None:
    """Delete what looks like a corpus's object below `name` and is not to be kept; nothing else."""
    for info in own_objects(store.list(name), name):
        if info.key.removeprefix(f"{name}/") not in keep:
            store.delete(info.key)


def _read_record(store: Store, key: str) -> Record:
    nbytes = store.stat(key).nbytes
    if nbytes > MAX_RECORD_BYTES:
        raise FormatError(f"a record of {nbytes} bytes", tier=store.name, key=key)
    try:
        fields: dict[str, Any] = parse_json(store.read(key), "a version record", MAX_RECORD_BYTES)
        check_version(fields.get("format_version"), f"corpus {key.split('/')[0]!r}")
        version = fields.get("version")
        if not isinstance(version, int) or isinstance(version, bool) or not 0 < version <= MAX_VERSIONS:
            raise FormatError(f"a record of the version {version!r}")
        return Record(version, check_digest_form(fields.get("manifest"), "the manifest of a record"))
    except TieringError as error:
        error.tier, error.key = error.tier or store.name, error.key or key
        raise
