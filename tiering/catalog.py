"""Which corpora and versions a tier holds, told by the tier's own objects alone.

Below ``<corpus>/.tiering/`` lie ``manifests/<digest>.parquet``, one small record per version
(``versions/00000001.json``) and ``HEAD``, a copy of the newest record.

Invariant: a version exists from the instant its record does. Records are created, never changed, and
exactly one of any number of racing writers creates one: that holds on every store, also where no
conditional update exists. ``HEAD`` only saves a listing: where it is missing, the records are asked, and the
next writer puts it back. A corpus is deleted by its records first, then ``HEAD``, so that it stays deleted.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from tiering.digest import Buffer, check_digest_form, digest
from tiering.errors import Conflict, Corrupt, FormatError, NotFound, TieringError
from tiering.keys import INTERNAL, validate_name
from tiering.manifest import FORMAT_VERSION, MAX_MANIFEST_BYTES, Manifest, check_version, decode, parse_json
from tiering.stores.base import Store

MAX_RECORD_BYTES: Final = 1 << 16
MAX_VERSIONS: Final = 99_999_999
_RECORD_NAME: Final = re.compile(r"(\d{8})\.json")


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
        FormatError: ``HEAD`` is not one; UnsupportedVersion: it is of a newer engine.
    """
    validate_name(name)
    try:
        return _read_record(store, f"{name}/{INTERNAL}/HEAD")
    except FileNotFoundError:
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
    try:
        return _read_record(store, _record_key(name, version))
    except FileNotFoundError:
        known = ", ".join(map(str, versions(store, name))) or "none"
        raise NotFound(
            f"no version {version} of corpus {name!r}", tier=store.name, hint=f"Versions: {known}"
        ) from None


def is_published(store: Store, name: str, version: int) -> bool:
    """Whether the version exists here."""
    return store.exists(_record_key(name, version))


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


def manifest_bytes(store: Store, name: str, entry: Record) -> bytearray:
    """The manifest of a version as it is stored.

    Raises:
        Corrupt: it is missing, or has other bytes than its name says.
    """
    key = manifest_key(name, entry.manifest)
    hint = "Move the corpus here again from another tier"
    try:
        nbytes = store.stat(key).nbytes
        if nbytes > MAX_MANIFEST_BYTES:
            raise FormatError(f"a manifest of {nbytes} bytes, over {MAX_MANIFEST_BYTES}", tier=store.name, key=key)
        data = store.read(key)
    except FileNotFoundError:
        raise Corrupt("the manifest is missing", tier=store.name, key=key, hint=hint) from None
    if digest(data) != entry.manifest:
        raise Corrupt("the manifest has other bytes than its name says", tier=store.name, key=key, hint=hint)
    return data


def publish(store: Store, name: str, version: int, manifest: Manifest, encoded: Buffer) -> Record:
    """Make a version exist, after all its shards do. Publishing the same again changes nothing.

    Raises:
        Conflict: this version number exists with another manifest.
    """
    entry = Record(version, digest(encoded))
    for key, document in manifest.documents.items():
        store.write(f"{name}/{key}", [document])
    store.write(manifest_key(name, entry.manifest), [encoded])
    try:
        store.write(_record_key(name, version), [entry.encode()], if_absent=True)
    except FileExistsError:
        if record(store, name, version) != entry:
            raise Conflict(
                f"corpus {name!r} already has a version {version} with other content",
                tier=store.name,
                hint="Choose another name, or release that corpus first",
            ) from None
    newest = versions(store, name)[-1]
    store.write(f"{name}/{INTERNAL}/HEAD", [record(store, name, newest).encode()])
    return entry


def unpublish(store: Store, name: str) -> None:
    """Make the corpus invisible on this tier; the objects of its shards stay."""
    for version in versions(store, name):
        store.delete(_record_key(name, version))
    store.delete(f"{name}/{INTERNAL}/HEAD")


def manifest_key(name: str, manifest: str) -> str:
    """Where the manifest of that digest lies."""
    return f"{name}/{INTERNAL}/manifests/{manifest}.parquet"


def _record_key(name: str, version: int) -> str:
    return f"{name}/{INTERNAL}/versions/{version:08d}.json"


def _is_corpus(store: Store, name: str) -> bool:
    if name.startswith((".", "_")):
        return False
    return store.exists(f"{name}/{INTERNAL}/HEAD") or bool(versions(store, name))


def _read_record(store: Store, key: str) -> Record:
    nbytes = store.stat(key).nbytes
    if nbytes > MAX_RECORD_BYTES:
        raise FormatError(f"a record of {nbytes} bytes", tier=store.name, key=key)
    try:
        fields: dict[str, Any] = parse_json(store.read(key), "a version record", MAX_RECORD_BYTES)
        check_version(fields.get("format_version"), f"corpus {key.split('/')[0]!r}")
        version = fields.get("version")
        if not isinstance(version, int) or not 0 < version <= MAX_VERSIONS:
            raise FormatError(f"a record of the version {version!r}")
        return Record(version, check_digest_form(fields.get("manifest"), "the manifest of a record"))
    except TieringError as error:
        error.tier, error.key = error.tier or store.name, error.key or key
        raise
