"""What a network does to object stores, and the stores that tests lead through a relay that does it."""

from __future__ import annotations

import pytest

from tests import proxy as faults
from tests.proxy import Fault, Proxy
from tests.servers import BUCKET, Endpoint
from tiering.stores.fsspec import FsspecStore
from tiering.stores.object import ObjectStore

StoreMaker = type[ObjectStore] | type[FsspecStore]

PATIENCE_SECONDS = 20.0
DEADLINE_SECONDS = 1.5
"""Of stores that meet silence."""
LONG = 9 << 20  # takes two requests

_ELSEWHERE = "http://127.0.0.1:9/elsewhere"
READ_FAULTS: dict[str, Fault] = {
    "truncated": faults.truncated(1000),
    "reset": faults.truncated(1000, reset=True),
    "silent": faults.silent(),
    "silent-in-mid-body": faults.silent(1000),
    "storm": faults.status(503, Retry_After="1"),
    "redirect": faults.status(307, Location=_ELSEWHERE),
    "redirect-nowhere": faults.status(301),
    "longer-than-said": faults.wrong_length(-100),
    "shorter-than-said": faults.wrong_length(100),
    "no-etag": faults.without("etag"),
    "ranges-unheard": faults.unheard("range"),
    "answer-lost": faults.lost_answer,
}
WRITE_FAULTS: dict[str, Fault] = {
    "silent": faults.silent(),
    "storm": faults.status(503, Retry_After="1"),
    "redirect": faults.status(307, Location=_ELSEWHERE),
    "answer-lost": faults.lost_answer,
    "answer-cut": faults.truncated(0),
    "flipped": faults.flipped_request(100),
    "no-etag": faults.without("etag"),
}


def some(table: dict[str, Fault]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("fault", table.values(), ids=table.keys())


def opened(
    make: StoreMaker, relay: Proxy, prefix: str, deadline_seconds: float = PATIENCE_SECONDS
) -> ObjectStore | FsspecStore:
    options = relay.endpoint.options(deadline_seconds=deadline_seconds)
    return make("lake", f"s3://{BUCKET}/{prefix}", options)


def direct(relay: Proxy, prefix: str) -> ObjectStore:
    """The same objects, without the relay."""
    return ObjectStore("direct", f"s3://{BUCKET}/{prefix}", relay.target.options())


def uploads(endpoint: Endpoint, prefix: str) -> list[str]:
    """Keys of the unfinished multipart uploads below `prefix`."""
    client = endpoint.client()
    found = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    client.close()
    return [upload["Key"] for upload in found if upload["Key"].startswith(prefix)]
