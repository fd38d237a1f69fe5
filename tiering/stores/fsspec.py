"""fsspec tier: every other scheme, and S3 by s3fs, through an fsspec filesystem.

Invariant: a read is one request for exactly the bytes asked for, never `open()`, and never a short answer.

What a scheme gives beyond that:

- ``s3`` (s3fs): a write is one PUT, or above 100 MB a multipart upload that is aborted when it fails; atomic and
  conditional, with ``if_absent`` always as one PUT. Options are those of an object tier.
- ``memory``: atomic; ``if_absent`` under a lock of this process. Durable as long as the process.
- schemes in `ATOMIC` (other object stores): a write is one upload that shows when it is complete. No ``if_absent``.
- ``http``, ``https``: read-only. Listing is what the server's index pages say.
- all others (hdfs, webhdfs, sftp, smb, ...): a write goes to a temporary name and is renamed over the old object.
  As atomic as the server's rename, and where that refuses to replace, the old object is removed first: a reader
  may find none for that instant. No ``if_absent``.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn
from urllib.parse import urlsplit

from tiering.credentials import Options, check_references, check_url, resolve
from tiering.digest import Buffer
from tiering.errors import (
    ConfigError,
    Conflict,
    Corrupt,
    DeadlineExceeded,
    NotFound,
    TieringError,
    Unavailable,
    UsageError,
)
from tiering.keys import TEMP_PREFIX, validate, validate_prefix
from tiering.stores.base import ObjectInfo, Store, check_range, total_bytes
from tiering.stores.object_options import ObjectOptions

ATOMIC = frozenset({"abfs", "abfss", "adl", "az", "gcs", "gs", "memory", "oci", "oss", "s3", "s3a"})
READ_ONLY = frozenset({"http", "https"})
_CONDITIONAL = frozenset({"memory", "s3"})
_ONE_PUT_BYTES = 5 << 30
_CONNECT_SECONDS = 5

_memory_lock = threading.Lock()
"""fsspec's memory filesystem is one for the whole process, so its check and write share one lock."""


class FsspecStore(Store):
    """Objects below `url`; options go to the filesystem's constructor, credentials among them as references.

    Raises:
        ConfigError: a scheme that fsspec does not know or whose package is missing, or a credential that is no
            reference.
    """

    kind: ClassVar[str] = "object"

    def __init__(self, name: str, url: str, options: Options | None = None) -> None:
        self.name = name
        self.scheme = urlsplit(url).scheme
        where = f"tier {name!r}"
        check_url(url, where)
        check_references(options or {}, where)
        self._options: Options = MappingProxyType(dict(options or {}))
        self._s3 = ObjectOptions.parse(name, url, self._options) if self.scheme == "s3" else None
        self._make = _filesystem_class(self.scheme, where)
        self._url = url.rstrip("/")
        self._lock = threading.Lock()
        self._opened: tuple[int, Any] | None = None

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        validate(key)
        check_range(self.name, key, offset, 0, offset)
        if buffer.nbytes == 0:
            check_range(self.name, key, offset, 0, self.stat(key).nbytes)
            return
        data = self._cat(key, offset, offset + buffer.nbytes)
        if len(data) > buffer.nbytes:
            hint = "Copy the corpus to a server that answers ranges with status 206"
            raise UsageError("the server ignores ranges", tier=self.name, key=key, hint=hint)
        check_range(self.name, key, offset, buffer.nbytes, offset + len(data))
        buffer[:] = data

    def read(self, key: str) -> bytearray:
        validate(key)
        return bytearray(self._cat(key, 0, None))

    def write(self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False) -> ObjectInfo:
        path = self._path(key)
        self._check_writable(key, if_absent=if_absent)
        nbytes = total_bytes(buffers)
        data = buffers[0] if len(buffers) == 1 and isinstance(buffers[0], bytes) else b"".join(buffers)
        fs = self._filesystem()
        try:
            if if_absent:
                self._create(fs, path, key, data)
            elif self.scheme in ATOMIC:
                fs.pipe_file(path, data)
            else:
                self._replace(fs, path, data)
        except Exception as error:  # noqa: BLE001 - a filesystem raises what it likes
            self._fail(error, key)
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
        except FileNotFoundError:
            return
        except Exception as error:  # noqa: BLE001
            self._fail(error, key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        validate_prefix(prefix)
        fs = self._filesystem()
        try:
            found = fs.find(self._path(prefix) if prefix else self._root(fs), detail=True)
        except FileNotFoundError:
            found = {}
        except Exception as error:  # noqa: BLE001
            self._fail(error, prefix or None)
        start = f"{self._root(fs)}/"
        keys = {path.removeprefix(start): entry for path, entry in found.items() if path.startswith(start)}
        folder = f"{prefix}/" if prefix else ""
        for key in sorted(keys, key=str.encode):
            if _is_key(key) and key.startswith(folder) and keys[key]["type"] == "file":
                yield self._info(key, keys[key])

    def children(self, prefix: str = "") -> builtins.list[str]:
        validate_prefix(prefix)
        fs = self._filesystem()
        path = self._path(prefix) if prefix else self._root(fs)
        try:
            entries = fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        except Exception as error:  # noqa: BLE001
            self._fail(error, prefix or None)
        paths = {entry["name"].rstrip("/") for entry in entries} - {path.strip("/"), path}
        return sorted(name for name in (p.rpartition("/")[2] for p in paths) if _is_key(name))

    def stat(self, key: str) -> ObjectInfo:
        path = self._path(key)
        try:
            entry = self._filesystem().info(path)
        except Exception as error:  # noqa: BLE001
            self._fail(error, key)
        if entry["type"] != "file":
            raise NotFound("no such object", tier=self.name, key=key)
        return self._info(key, entry)

    def close(self) -> None:
        with self._lock:
            self._opened = None

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"store {self.name!r} is not pickled: each process opens its own from the Tier")
