"""Unfinished multipart uploads of an S3 tier: found, and aborted when their writer is surely gone.

Invariant: an upload is aborted only when the server's own clock says that it was begun longer ago than
`ABANDONED_SECONDS`, or than the caller names: nothing tells whose an upload is, and running jobs own theirs.
Uploads cost money and are shown by no listing of objects. obstore cannot list them, so botocore does.

Google Cloud and Azure have rules of their own for them (a lifecycle rule; 7 days), so nothing is done there
but to say so.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from botocore import UNSIGNED  # type: ignore[import-untyped,unused-ignore]
from botocore.config import Config  # type: ignore[import-untyped,unused-ignore]
from botocore.exceptions import (  # type: ignore[import-untyped,unused-ignore]
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    ReadTimeoutError,
)

from tiering.credentials import aws_keys
from tiering.errors import DeadlineExceeded, NotFound, TieringError, Unavailable
from tiering.stores.aws_sessions import blocking_session
from tiering.stores.object_options import ObjectOptions

ABANDONED_SECONDS = 86_400.0

log = logging.getLogger("tiering.stores")

_UNLISTED = {
    "gs": "unfinished uploads of killed writers cannot be listed on gs://: let a lifecycle rule of bucket"
    " {bucket} end them (AbortIncompleteMultipartUpload, age 1; docs/objects.md shows it)",
    "az": "unfinished uploads of killed writers cannot be listed on az://: Azure ends those in container"
    " {bucket} by itself after 7 days, and needs no lifecycle rule",
}
_REFUSED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that was begun and neither completed nor aborted."""

    key: str
    """Relative to the tier, like every key."""
    upload_id: str
    age_seconds: float
    """By the server's clock."""


class S3Admin:
    """What botocore is asked about an S3 tier; a context manager that closes its connections.

    Raises:
        ConfigError: a credential that refers to nothing.
    """

    def __init__(self, options: ObjectOptions) -> None:
        self._options = options
        self._root = f"{options.prefix}/" if options.prefix else ""
        self._client = _client(options)

    def __enter__(self) -> S3Admin:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def uploads(self, prefix: str = "") -> list[Upload]:
        """Unfinished uploads below the folder `prefix`."""
        below = f"{self._root}{prefix}/" if prefix else self._root
        found = []
        with self._typed():
            for page in self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._options.bucket, Prefix=below
            ):
                now = _date(page)
                for entry in page.get("Uploads", []):
                    # Some servers do not heed the prefix.
                    if now is not None and entry["Key"].startswith(below):
                        # The clock in a header is cut to seconds, so this second's uploads come after it.
                        age = max(0.0, (now - entry["Initiated"]).total_seconds())
                        found.append(Upload(entry["Key"].removeprefix(self._root), entry["UploadId"], age))
        return found

    def abort(self, upload: Upload) -> None:
        """End an upload and give back its room; one that is gone is not an error."""
        with self._typed(), contextlib.suppress(self._client.exceptions.NoSuchUpload):
            self._client.abort_multipart_upload(
                Bucket=self._options.bucket, Key=f"{self._root}{upload.key}", UploadId=upload.upload_id
            )

    @contextlib.contextmanager
    def _typed(self) -> Iterator[None]:
        """Errors of botocore in the engine's words; never its own text, which shows requests."""
        tier, host = self._options.tier, self._options.host
        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))[:64]
            if code == "NoSuchBucket":
                raise self._options.no_bucket() from None
            if code in _REFUSED:
                raise self._options.refused(code) from None
            if code == "NoSuchUpload":
                raise NotFound("no such upload", tier=tier) from None
            raise Unavailable(f"no service from {host}: {code}", tier=tier) from None
        except (ConnectTimeoutError, ReadTimeoutError):
            hint = "Look at the network, or give the tier a larger deadline_seconds"
            raise DeadlineExceeded(f"no answer in time from {host}", tier=tier, hint=hint) from None
        except BotoCoreError as error:
            raise Unavailable(f"no service from {host}: {type(error).__name__}", tier=tier) from None


def abort_abandoned(
    options: ObjectOptions, prefix: str = "", older_than_seconds: float = ABANDONED_SECONDS
) -> int:
    """Abort the uploads below the folder `prefix` that were begun longer ago; returns how many.

    A multipart upload makes no object before it completes, so aborting one never takes bytes that are listed.
    """
    if options.scheme != "s3" or options.options.get("anonymous"):
        return 0
    aborted = 0
    with S3Admin(options) as admin:
        for upload in admin.uploads(prefix):
            if upload.age_seconds >= older_than_seconds:
                admin.abort(upload)
                aborted += 1
    return aborted


def unlisted_uploads(options: ObjectOptions) -> str:
    """What to do about unfinished uploads that nothing here can list; empty where `abort_abandoned` can."""
    return _UNLISTED.get(options.scheme, "").format(bucket=options.bucket)


def sweep_uploads(options: ObjectOptions, prefix: str) -> int:
    """`abort_abandoned` as upkeep: rights or a server that do not allow it are logged, and stop nobody."""
    try:
        return abort_abandoned(options, prefix)
    except TieringError as error:
        log.warning("unfinished uploads were not looked for: %s", error)
        return 0


def _client(options: ObjectOptions) -> Any:
    given = options.options
    where = f"tier {options.tier!r}"
    look_up = aws_keys(given, where)
    keys = look_up() if look_up else None
    return blocking_session(where).create_client(
        "s3",
        endpoint_url=given.get("endpoint_url"),
        region_name=str(given.get("region", "us-east-1")),
        aws_access_key_id=keys and keys["access_key_id"],
        aws_secret_access_key=keys and keys["secret_access_key"],
        aws_session_token=keys and keys["token"],
        verify=False if options.skips_tls_check else None,
        config=Config(
            connect_timeout=min(5.0, options.deadline_seconds),
            read_timeout=options.deadline_seconds,
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            signature_version=UNSIGNED if given.get("anonymous") else None,
            s3={"addressing_style": "virtual" if given.get("virtual_hosted_style") else "path"},
        ),
    )


def _date(answer: dict[str, Any]) -> datetime | None:
    text = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    try:
        return parsedate_to_datetime(text) if text else None
    except ValueError:
        return None
