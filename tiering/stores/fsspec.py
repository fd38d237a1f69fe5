"""fsspec tier: every other scheme, and S3 by s3fs, through an fsspec filesystem.

Invariant: a read is one request for exactly the bytes asked for, never `open()`, and never a short answer.

What a scheme gives beyond that:

- ``s3`` (s3fs): a write is one PUT, or above 100 MB a multipart upload that is aborted when it fails; atomic,
  and conditional with ``if_absent``, always as one PUT, where the server keeps conditions (it is asked
  first). Options are those of an object tier.
- ``memory``: atomic; ``if_absent`` under a lock of this process. Durable as long as the process.
- the other schemes in `ATOMIC`: a write is one upload that shows when it is complete. No ``if_absent``.
- ``http``, ``https``: read-only. Listing is what the server's index pages say, with a request for each size.
- all others (hdfs, webhdfs, sftp, smb, ...): a write goes to a temporary name and is renamed over the old
  object. As atomic as the server's rename; where that refuses to replace, the old object is removed first,
  and for that instant a reader may find none. No ``if_absent``.

Deadlines: as for an object tier with ``s3``; with other asynchronous filesystems for writes only, the rest is
as the filesystem has it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn
from urllib.parse import urlsplit

import fsspec
import fsspec.asyn

from tiering.credentials import Options, aws_keys, check_references, check_url, resolve
from tiering.digest import Buffer
from tiering.errors import ConfigError, Corrupt, NotFound, Unavailable, UsageError
from tiering.keys import TEMP_PREFIX, validate, validate_prefix
from tiering.stores.aws_sessions import asyncio_session
from tiering.stores.base import ObjectInfo, Store, check_range, total_bytes
from tiering.stores.fsspec_errors import code, typed
from tiering.stores.object_conditional import ConditionalCreate
from tiering.stores.object_options import ObjectOptions, deadline_seconds
from tiering.stores.object_uploads import ABANDONED_SECONDS, abort_abandoned, sweep_uploads

ATOMIC = frozenset({"abfs", "abfss", "adl", "az", "gcs", "gs", "memory", "oci", "oss", "s3"})
READ_ONLY = frozenset({"http", "https"})
_CONDITIONAL = frozenset({"memory", "s3"})
_ONE_PUT_BYTES = 5 << 30
_UPLOAD_BYTES_PER_SECOND = 1 << 20
_CONNECT_SECONDS = 5

_memory_lock = threading.Lock()
"""fsspec's memory filesystem is one for the whole process, so its check and write share one lock."""


class FsspecStore(Store):
    """Objects below `url`; options go to the filesystem, credentials among them as references.

    Raises:
        ConfigError: a scheme that fsspec does not know, a package that is missing, a credential that is no
            reference.
    """

    kind: ClassVar[str] = "object"

    def __init__(self, name: str, url: str, options: Options | None = None) -> None:
        self.name = name
        self.scheme = urlsplit(url).scheme.replace("s3a", "s3")
        self._where = f"tier {name!r}"
        check_url(url, self._where)
        check_references(options or {}, self._where)
        self._options: Options = MappingProxyType(dict(options or {}))
        self._s3 = ObjectOptions.parse(name, url, self._options) if self.scheme == "s3" else None
        self._deadline_seconds = deadline_seconds(self._options, self._where)
        self._make = _filesystem_class(self.scheme, self._where)
        self._url = url
        self._root: str = self._make._strip_protocol(url).rstrip("/")
        self._lock = threading.Lock()
        self._opened: tuple[int, Any] | None = None
        self._conditional = ConditionalCreate(
            name, self._create_probe, self.delete, known=self._s3 is None or self._s3.is_cloud
        )

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        validate(key)
        if offset < 0 or buffer.nbytes == 0:  # a missing object is that first, as on every store
            check_range(self.name, key, offset, buffer.nbytes, self.stat(key).nbytes)
            return
        data = self._cat(key, offset, offset + buffer.nbytes)
        if len(data) > buffer.nbytes:
            hint = "Copy the corpus to a server that answers ranges with status 206"
            raise UsageError("the server ignores ranges", tier=self.name, key=key, hint=hint)
        if len(data) < buffer.nbytes:  # the object ends there, or the answer does
            check_range(self.name, key, offset, buffer.nbytes, self.stat(key).nbytes)
            raise self._short(key, len(data), buffer.nbytes)
        buffer[:] = data

    def read(self, key: str) -> bytearray:
        validate(key)
        data = self._cat(key, 0, None)
        if self._s3 and len(data) != (nbytes := self.stat(key).nbytes):  # a whole answer tells no total
            raise self._short(key, len(data), nbytes)
        return bytearray(data)

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        path = self._path(key)
        self._check_writable(key, if_absent=if_absent)
        if if_absent:
            self._conditional.require(key)
        nbytes = total_bytes(buffers)
        data = buffers[0] if len(buffers) == 1 and isinstance(buffers[0], bytes) else b"".join(buffers)
        try:
            if if_absent:
                self._create(path, data)
            elif self.scheme in ATOMIC:
                self._pipe(path, data)
            else:
                self._replace(path, data)
        except Exception as error:  # noqa: BLE001 - a filesystem raises what it likes
            raise self._typed(error, key) from None
        info = self.stat(key)
        if info.nbytes != nbytes:
            problem = f"{info.nbytes} bytes are there after {nbytes} were written"
            raise Corrupt(problem, tier=self.name, key=key, hint="Another writer was at work: write it again")
        return info

    def delete(self, key: str) -> None:
        path = self._path(key)
        self._check_writable(key)
        try:
            self._filesystem().rm_file(path)
        except Exception as error:  # noqa: BLE001
            self._fail(error, key, absent_is_empty=True)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        validate_prefix(prefix)
        try:
            found = self._filesystem().find(self._path(prefix) if prefix else self._root, detail=True)
        except Exception as error:  # noqa: BLE001
            self._fail(error, prefix or None, absent_is_empty=True)
            found = {}
        start = f"{self._root}/"
        keys = {path.removeprefix(start): entry for path, entry in found.items() if path.startswith(start)}
        folder = f"{prefix}/" if prefix else ""
        for key in sorted(keys, key=str.encode):
            if _valid(key) and key.startswith(folder) and keys[key]["type"] == "file":
                # Index pages of web servers tell no sizes.
                yield self._info(key, keys[key]) if keys[key].get("size") is not None else self.stat(key)

    def children(self, prefix: str = "") -> Sequence[str]:
        validate_prefix(prefix)
        path = self._path(prefix) if prefix else self._root
        try:
            entries = self._filesystem().ls(path, detail=True)
        except Exception as error:  # noqa: BLE001
            self._fail(error, prefix or None, absent_is_empty=True)
            return []
        paths = {entry["name"].rstrip("/") for entry in entries} - {path.strip("/"), path}
        return sorted(name for name in (p.rpartition("/")[2] for p in paths) if _valid(name))

    def stat(self, key: str) -> ObjectInfo:
        path = self._path(key)
        try:
            entry = self._filesystem().info(path)
        except Exception as error:  # noqa: BLE001
            raise self._typed(error, key) from None
        if entry["type"] != "file":
            raise NotFound("no such object", tier=self.name, key=key)
        return self._info(key, entry)

    def sweep(self, prefix: str = "") -> int:
        validate_prefix(prefix)
        return sweep_uploads(self._s3, prefix) if self._s3 else 0

    def abort_uploads(self, prefix: str = "", older_than_seconds: float = ABANDONED_SECONDS) -> int:
        """Abort multipart uploads below `prefix` that were begun longer ago; returns how many. S3 alone."""
        validate_prefix(prefix)
        return abort_abandoned(self._s3, prefix, older_than_seconds) if self._s3 else 0

    def supports_conditional_create(self) -> bool:
        """Whether the server refuses to overwrite when asked to; without it nothing can be published."""
        return self.scheme in _CONDITIONAL and self._conditional.supported()

    def close(self) -> None:
        with self._lock:
            self._opened = None

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"store {self.name!r} is not pickled: each process opens its own from the Tier")

    def _short(self, key: str, sent: int, asked: int) -> Unavailable:
        hint = "The same call may succeed later; if not, 'tiering verify' tells which copies are whole"
        return Unavailable(f"the server sent {sent} of {asked} bytes", tier=self.name, key=key, hint=hint)

    def _path(self, key: str) -> str:
        return f"{self._root}/{validate(key)}"

    def _info(self, key: str, entry: dict[str, Any]) -> ObjectInfo:
        # What identifies a version has another name in each filesystem; a time alone is too coarse.
        etag = entry.get("ETag") or entry.get("etag") or entry.get("md5Hash")
        size = entry.get("size")
        if size is None:
            raise UsageError("the server tells no length", tier=self.name, key=key)
        return ObjectInfo(key, int(size), str(etag) if etag else None)

    def _check_writable(self, key: str, *, if_absent: bool = False) -> None:
        if self.scheme in READ_ONLY:
            raise UsageError(f"{self.scheme}:// tiers are read-only", tier=self.name, key=key)
        if if_absent and self.scheme not in _CONDITIONAL:
            hint = "Use an s3://, gs://, az:// or file tier where several writers may meet"
            raise UsageError(f"{self.scheme}:// has no conditional write", tier=self.name, key=key, hint=hint)

    def _filesystem(self) -> Any:
        """The filesystem of this process."""
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = (os.getpid(), self._make(**self._arguments(), skip_instance_cache=True))
                self._opened[1].retries = 1  # s3fs: retrying is a wrapper's work
            return self._opened[1]

    def _arguments(self) -> dict[str, Any]:
        if self._s3:
            return _s3fs_arguments(self._s3, self._where)
        given = resolve(self._options, self._where)
        given.pop("deadline_seconds", None)
        return {**self._make._get_kwargs_from_urls(self._url), **given}

    def _cat(self, key: str, start: int, end: int | None) -> bytes:
        """Bytes ``[start, end)``, fewer where the object ends; all from `start` on without `end`."""
        try:
            data: bytes = self._filesystem().cat_file(self._path(key), start=start, end=end)
        except Exception as error:  # noqa: BLE001
            if code(error) not in ("InvalidRange", "416"):
                raise self._typed(error, key) from None
            data = b""  # the object ends at or before `start`
        return data

    def _pipe(self, path: str, data: Buffer, **options: Any) -> None:
        """Upload `data` within the deadline and a second per MiB, which s3fs would not keep by itself."""
        fs = self._filesystem()
        if not fs.async_impl:
            fs.pipe_file(path, data, **options)
            return
        seconds = self._deadline_seconds + len(data) / _UPLOAD_BYTES_PER_SECOND
        fsspec.asyn.sync(fs.loop, fs._pipe_file, path, data, timeout=seconds, **options)

    def _create_probe(self, key: str) -> None:
        try:
            self._create(self._path(key), b"probe")
        except Exception as error:  # noqa: BLE001
            raise self._typed(error, key) from None

    def _create(self, path: str, data: Buffer) -> None:
        if self.scheme == "memory":
            with _memory_lock:
                self._pipe(path, data, mode="create")
        elif len(data) >= _ONE_PUT_BYTES:
            raise UsageError(f"{len(data)} bytes are too many for a conditional write, over {_ONE_PUT_BYTES}")
        else:
            self._pipe(path, data, mode="create", chunksize=_ONE_PUT_BYTES)

    def _replace(self, path: str, data: Buffer) -> None:
        fs = self._filesystem()
        parent = path.rpartition("/")[0]
        temp = f"{parent}/{TEMP_PREFIX}{secrets.token_hex(8)}"
        fs.makedirs(parent, exist_ok=True)
        try:
            self._pipe(temp, data)
            try:
                fs.mv(temp, path)
            except OSError:
                if not fs.exists(path):
                    raise
                fs.rm_file(path)
                fs.mv(temp, path)
        except BaseException:
            with contextlib.suppress(Exception):
                fs.rm_file(temp)
            raise

    def _fail(self, error: Exception, key: str | None, *, absent_is_empty: bool) -> None:
        """Raise the typed error, unless it says that nothing is there and that is no error here."""
        if not (absent_is_empty and isinstance(error, FileNotFoundError) and code(error) != "NoSuchBucket"):
            raise self._typed(error, key) from None

    def _typed(self, error: Exception, key: str | None) -> Exception:
        return typed(error, self.name, self.scheme, self._s3, key)


def _s3fs_arguments(options: ObjectOptions, where: str) -> dict[str, Any]:
    given = options.options
    profile = str(given["profile"]) if "profile" in given else None
    look_up = None if profile else aws_keys(given, where)
    keys = look_up() if look_up else None
    return {
        "key": keys and keys["access_key_id"],
        "secret": keys and keys["secret_access_key"],
        "token": keys and keys["token"],
        "session": asyncio_session(where, profile),
        "anon": given.get("anonymous", False),
        "endpoint_url": given.get("endpoint_url"),
        "client_kwargs": {
            "region_name": given.get("region", "us-east-1"),
            **({"verify": False} if options.skips_tls_check else {}),
        },
        "config_kwargs": {
            "connect_timeout": min(_CONNECT_SECONDS, options.deadline_seconds),
            "read_timeout": options.deadline_seconds,
            "retries": {"total_max_attempts": 1},
            "request_checksum_calculation": "when_required",  # the Ceph gateway refuses trailing checksums
            "response_checksum_validation": "when_required",
            "s3": {"addressing_style": "virtual" if given.get("virtual_hosted_style") else "path"},
        },
        "use_listings_cache": False,
    }


def _filesystem_class(scheme: str, where: str) -> Any:
    try:
        return fsspec.get_filesystem_class(scheme)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"{where} has the scheme {scheme!r}, which fsspec cannot open: {error}",
            hint="Correct the scheme, or install the package that brings it",
        ) from None


def _valid(key: str) -> bool:
    try:
        validate(key)
    except UsageError:
        return False
    return True
