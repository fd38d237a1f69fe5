"""Object tier: a bucket of S3, Google Cloud Storage or Azure Blob, through obstore.

Invariant: one read returns bytes of one version of an object. A read that takes several requests pins the
ETag of the first one (If-Match) and starts over when the object was overwritten in between. Bodies come by
connections of `object_sockets` where those can be had, and by obstore otherwise.

A write is one PUT, or above `SINGLE_PUT_BYTES` a multipart upload that obstore aborts when it fails. A write
with ``if_absent`` is one PUT with ``If-None-Match: *`` of at most `MAX_PUT_BYTES`: the Ceph gateway ignores
the condition when a multipart upload completes. Uploads are signed over their bytes, which the server checks.

Conditional writes, ranges and If-Match are what a server may lack. Without the first, writes with
``if_absent`` are refused (see `tiering.stores.object_conditional`). A server that answers a range as if it
were the whole object is read whole for each range: right, and slow. The ETag of every answer is compared, in
case If-Match is ignored.

Deadlines: a server that is silent for ``deadline_seconds`` is given up. No client sees the progress of an
upload, so the answer to one may take a second more per MiB sent.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, ClassVar, NoReturn, TypeVar

import obstore
from obstore.exceptions import BaseError

from tiering.credentials import Options
from tiering.digest import Buffer
from tiering.errors import Corrupt, Unavailable, UsageError
from tiering.keys import validate, validate_prefix
from tiering.stores.base import ObjectInfo, Store, Strays, check_range, total_bytes
from tiering.stores.object_conditional import ConditionalCreate
from tiering.stores.object_errors import (
    OverwrittenError,
    ignores_ranges,
    is_missing_bucket,
    is_past_the_end,
    typed,
)
from tiering.stores.object_options import ObjectOptions
from tiering.stores.object_sockets import Answer, MissingError, Sockets
from tiering.stores.object_uploads import (
    ABANDONED_SECONDS,
    abort_abandoned,
    sweep_uploads,
    unlisted_uploads,
)
from tiering.stores.pages import new_buffer

PIECE_BYTES = 8 << 20
"""A longer read is cut into ranges of this size that are fetched side by side."""

SINGLE_PUT_BYTES = 64 << 20
MAX_PUT_BYTES = 5 << 30  # the limit of S3 for one PUT

_THREADS = 8
_READ_ATTEMPTS = 3
_RETRIES = 1  # of a request; whole calls are repeated by a wrapper
_MAX_PARTS = 9_000  # S3 allows 10,000
_SINGLE_PUT_SECONDS = 64

_T = TypeVar("_T")

_runtime_pid: int | None = None
"""The process whose threads run obstore: they do not survive a fork, and calls in the child hang."""


class ObjectStore(Store):
    """Objects below `url`, such as ``s3://bucket/prefix``; the options are those of `ObjectOptions`.

    Raises:
        ConfigError: unknown scheme or option, wrong value, or a credential that is no reference.
    """

    kind: ClassVar[str] = "object"

    def __init__(self, name: str, url: str, options: Options | None = None) -> None:
        self.name = name
        self._options = ObjectOptions.parse(name, url, options or {})
        self._lock = threading.Lock()
        self._clients: dict[tuple[float, int], Any] = {}
        self._sockets = Sockets(self._options)
        self._pool: ThreadPoolExecutor | None = None
        self._reached = False  # whether the bucket is known to exist
        self._ranges = True  # whether the server answers ranges, as far as is known
        self._conditional = ConditionalCreate(
            name, self._create_probe, self.delete, known=self._options.is_cloud
        )

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        validate(key)
        if offset < 0 or buffer.nbytes == 0:  # a missing object is that first, as on every store
            check_range(self.name, key, offset, buffer.nbytes, self.stat(key).nbytes)
            return

        def place(object_bytes: int) -> memoryview:
            check_range(self.name, key, offset, buffer.nbytes, object_bytes)
            return buffer

        self._consistent(key, lambda: self._fetch(key, offset, min(buffer.nbytes, PIECE_BYTES), place))

    def read(self, key: str) -> Buffer:
        validate(key)

        def fetch() -> Buffer:
            data: bytearray | memoryview = bytearray()

            def place(object_bytes: int) -> memoryview:
                nonlocal data
                data = new_buffer(object_bytes)
                return memoryview(data)

            try:
                self._fetch(key, 0, PIECE_BYTES, place)
            except Corrupt:
                if data:
                    raise  # else there was no first byte: the object is empty
            return data

        return self._consistent(key, fetch)

    def write(
        self, key: str, buffers: Sequence[Buffer], *, if_absent: bool = False, digest: str | None = None
    ) -> ObjectInfo:
        validate(key)
        nbytes = total_bytes(buffers)
        if if_absent and nbytes > MAX_PUT_BYTES:
            problem = f"{nbytes} bytes are too many for a conditional write, over {MAX_PUT_BYTES}"
            raise UsageError(problem, tier=self.name, key=key, hint="Choose a smaller shard size")
        if if_absent:
            self._conditional.require(key)
        return self._put(key, buffers, nbytes, if_absent=if_absent)

    def _create_probe(self, key: str) -> None:
        self._put(key, [b"probe"], 5, if_absent=True)

    def _put(self, key: str, buffers: Sequence[Buffer], nbytes: int, *, if_absent: bool) -> ObjectInfo:
        multipart = nbytes > SINGLE_PUT_BYTES and not if_absent
        views = [memoryview(buffer).cast("B") for buffer in buffers if memoryview(buffer).nbytes]
        # An answer that got lost makes a repeated conditional write meet itself, so that one is not repeated.
        client = self._client(SINGLE_PUT_BYTES if multipart else nbytes, 0 if if_absent else _RETRIES)
        try:
            result = obstore.put(
                client,
                key,
                views[0] if len(views) == 1 else views or b"",
                mode="create" if if_absent else "overwrite",
                use_multipart=multipart,
                chunk_size=max(PIECE_BYTES, math.ceil(nbytes / _MAX_PARTS)),
                max_concurrency=_THREADS,
            )
        except (BaseError, OSError) as error:
            self._fail(error, key)
        if result["e_tag"]:
            return ObjectInfo(key, nbytes, result["e_tag"])
        info = self.stat(key)  # the Ceph gateway names no ETag when a multipart upload completes
        if info.nbytes != nbytes:
            hint = "Another writer was at work, or the server is at fault: write it again"
            problem = f"{info.nbytes} bytes are there after {nbytes} were written"
            raise Corrupt(problem, tier=self.name, key=key, hint=hint)
        return info

    def delete(self, key: str) -> None:
        validate(key)
        try:
            obstore.delete(self._client(), key)
        except FileNotFoundError as error:
            if is_missing_bucket(error):
                self._fail(error, key)
        except (BaseError, OSError) as error:
            self._fail(error, key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Store.list`.

        Objects whose names are no keys are passed over, save those with an empty or a ``..`` segment: they
        are a `UsageError`, because obstore then shows nothing of their page.
        """
        validate_prefix(prefix)
        found = []
        try:
            for batch in obstore.list(self._client(), prefix or None, chunk_size=1000):
                found += [_info(meta) for meta in batch if _is_key(meta["path"]) and meta["path"] != prefix]
        except (BaseError, OSError) as error:
            self._fail(error, prefix or None)
        for info in sorted(found, key=lambda info: info.key.encode()):
            # obstore shows the marker "folder/" that some tools leave as an empty object "folder".
            if info.nbytes or self.exists(info.key):
                yield info

    def children(self, prefix: str = "") -> Sequence[str]:
        validate_prefix(prefix)
        try:
            found = obstore.list_with_delimiter(self._client(), prefix or None)
        except (BaseError, OSError) as error:
            self._fail(error, prefix or None)
        paths = {*found["common_prefixes"], *(meta["path"] for meta in found["objects"])} - {prefix}
        return sorted(path.rpartition("/")[2] for path in paths if _is_key(path))

    def stat(self, key: str) -> ObjectInfo:
        validate(key)
        try:
            return _info(obstore.head(self._client(), key))
        except (BaseError, OSError) as error:
            self._fail(error, key)

    def sweep(self, prefix: str = "") -> int:
        return sweep_uploads(self._options, validate_prefix(prefix))

    def strays(self) -> Strays:
        return Strays(unlisted=unlisted_uploads(self._options))

    def abort_uploads(self, prefix: str = "", older_than_seconds: float = ABANDONED_SECONDS) -> int:
        """Abort multipart uploads below `prefix` that were begun longer ago; returns how many."""
        return abort_abandoned(self._options, validate_prefix(prefix), older_than_seconds)

    def supports_conditional_create(self) -> bool:
        """Whether the server refuses to overwrite when asked to; without it nothing can be published."""
        return self._conditional.supported()

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
            self._clients.clear()
        self._sockets.close()
        if pool:
            pool.shutdown()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"store {self.name!r} is not pickled: each process opens its own from the Tier")

    def _client(self, upload_bytes: int = 0, retries: int = _RETRIES) -> Any:
        """The obstore client of this process whose requests may carry `upload_bytes`."""
        global _runtime_pid
        if _runtime_pid not in (None, os.getpid()):
            hint = 'Start processes by multiprocessing.get_context("forkserver") or "spawn"'
            raise UsageError("object clients do not work in a forked process", tier=self.name, hint=hint)
        # In steps of a minute, so that a few clients serve all sizes.
        minutes = math.ceil(upload_bytes / SINGLE_PUT_BYTES) if upload_bytes > PIECE_BYTES else 0
        silence_seconds = self._options.deadline_seconds + minutes * _SINGLE_PUT_SECONDS
        with self._lock:
            client = self._clients.get((silence_seconds, retries))
            if client is None:
                _runtime_pid = os.getpid()
                client = self._options.open(silence_seconds, retries)
                self._clients[silence_seconds, retries] = client
            return client

    def _get(self, key: str, offset: int, nbytes: int, etag: str | None = None) -> obstore.GetResult:
        """Ask for ``[offset, offset + nbytes)`` of the version `etag`; the answer may be shorter."""
        options: obstore.GetOptions = {"range": (offset, offset + nbytes)} if self._ranges else {}
        if etag:
            options["if_match"] = etag
        try:
            result = obstore.get(self._client(), key, options=options)
        except (BaseError, OSError) as error:
            if ignores_ranges(error) and self._ranges:
                self._ranges = False
                return self._get(key, offset, nbytes, etag)
            if is_past_the_end(error):  # the object was seen to end at or before `offset`
                check_range(self.name, key, offset, max(nbytes, 1), min(offset, self.stat(key).nbytes))
            self._fail(error, key)
        if etag and result.meta["e_tag"] != etag:  # a server that does not heed If-Match
            raise OverwrittenError
        return result

    def _fetch(self, key: str, offset: int, nbytes: int, place: Callable[[int], memoryview]) -> None:
        """Fill the memory that `place` gives for an object of so many bytes, from `offset` on.

        The first request is for `nbytes`, which the memory is no shorter than, unless the object is.
        """
        with self._sockets.get(self._client(), key, offset, nbytes) as answer:
            if answer:
                tag, buffer = answer.etag, place(answer.object_bytes)
                self._receive(
                    key, offset, buffer, tag, lambda first: self._finish(answer, key, offset, first, tag)
                )
                return
        result = self._get(key, offset, nbytes)
        etag, buffer = result.meta["e_tag"], place(result.meta["size"])
        self._receive(key, offset, buffer, etag, lambda first: self._drain(result, key, offset, first))

    def _receive(
        self,
        key: str,
        offset: int,
        buffer: memoryview,
        etag: str | None,
        receive_first: Callable[[memoryview], None],
    ) -> None:
        """Fill `buffer` from `offset` on: with the first answer, and with what follows in that version."""
        first, rest = buffer[:PIECE_BYTES], buffer[PIECE_BYTES:]
        if not self._ranges or not rest.nbytes:
            receive_first(buffer)
            return
        if not etag:
            raise Unavailable("the server names no ETag to pin a long read to", tier=self.name, key=key)
        at = offset + first.nbytes
        pieces: list[Future[None]] = []
        try:
            for start in range(0, rest.nbytes, PIECE_BYTES):
                piece = rest[start : start + PIECE_BYTES]
                pieces.append(self._threads().submit(self._fetch_piece, key, at + start, piece, etag))
            receive_first(first)
            for done in pieces:
                done.result()
        finally:
            for pending in pieces:
                pending.cancel()
            wait(pieces)  # nobody may write into the caller's buffer after the return

    def _fetch_piece(self, key: str, offset: int, buffer: memoryview, etag: str) -> None:
        with self._sockets.get(self._client(), key, offset, buffer.nbytes, etag) as answer:
            self._finish(answer, key, offset, buffer, etag)

    def _finish(self, answer: Answer | None, key: str, offset: int, buffer: memoryview, etag: str) -> None:
        """Fill `buffer` with the body of an answer, or else, of the same version, by obstore."""
        if not (answer and answer.receive(buffer)):
            self._drain(self._get(key, offset, buffer.nbytes, etag), key, offset, buffer)

    def _drain(self, result: obstore.GetResult, key: str, offset: int, buffer: memoryview) -> None:
        at = result.range[0] - offset  # below 0 where the server sent more than the range
        try:
            # Chunks as they arrive: obstore copies smaller ones together to reach a larger minimum.
            for chunk in result.stream(min_chunk_size=1):
                end = at + len(chunk)
                if at >= 0 and end <= buffer.nbytes:
                    buffer[at:end] = chunk
                elif end > 0 and at < buffer.nbytes:
                    wanted = memoryview(chunk)[max(0, -at) : buffer.nbytes - at]
                    buffer[max(0, at) : end] = wanted
                at = end
        except (BaseError, OSError) as error:
            self._fail(error, key)
        if at < buffer.nbytes:
            problem = f"the server sent {max(at, 0)} bytes for a range of {buffer.nbytes}"
            hint = "The same call may succeed later; if not, 'tiering verify' tells which copies are whole"
            raise Unavailable(problem, tier=self.name, key=key, hint=hint)

    def _consistent(self, key: str, fetch: Callable[[], _T]) -> _T:
        """The result of `fetch`, tried anew while other writers overwrite the object under it."""
        for _ in range(_READ_ATTEMPTS):
            try:
                return fetch()
            except OverwrittenError:
                continue
            except MissingError:
                self._fail(FileNotFoundError(), key)
        raise Unavailable(f"overwritten during each of {_READ_ATTEMPTS} reads", tier=self.name, key=key)

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"tier-{self.name}")
            return self._pool

    def _fail(self, error: Exception, key: str | None) -> NoReturn:
        if isinstance(error, FileNotFoundError):
            self._check_bucket()
        raise typed(error, self._options, key) from None  # its own text may show a token

    def _check_bucket(self) -> None:
        """Raise `NotFound` when the bucket is missing, which a HEAD does not tell; asked once."""
        if self._reached:
            return
        self._reached = True
        try:
            obstore.list_with_delimiter(self._client(), ".tiering-probe")
        except (BaseError, OSError) as error:
            if is_missing_bucket(error):
                self._reached = False
                raise self._options.no_bucket() from None


def _info(meta: obstore.ObjectMeta) -> ObjectInfo:
    etag = meta["e_tag"]
    if etag and not etag.endswith('"'):  # some servers leave the quotes away in listings
        etag = f'"{etag}"'
    return ObjectInfo(meta["path"], meta["size"], etag, meta["last_modified"].timestamp())


def _is_key(path: str) -> bool:
    try:
        validate(path)
    except UsageError:
        return False
    return True
