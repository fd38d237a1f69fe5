"""Training over a network that cuts, stalls, lies and flips: every row once, or an error and then the row."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from loaders import Loader
from tests import proxy as faults
from tests.corpora import columns, make_corpus, promised
from tests.proxy import Fault, Proxy, first
from tests.servers import BUCKET, Endpoint
from tiering import NodeCache, Tier, open_corpus, open_tier
from tiering.errors import TieringError

FAULTS: dict[str, Fault] = {
    "truncated": faults.truncated(100),
    "reset": faults.truncated(100, reset=True),
    "silent-in-mid-body": faults.silent(100),
    "storm": faults.status(503, Retry_After="0"),
    "shorter-than-said": faults.wrong_length(100),
    "flipped": faults.flipped_answer(20),
}
ATTEMPTS = 6

pytestmark = pytest.mark.usefixtures("s3_environment")


@contextlib.contextmanager
def lake(endpoint: Endpoint, prefix: str, deadline_seconds: float) -> Iterator[Tier]:
    options = endpoint.options(deadline_seconds=deadline_seconds)
    with contextlib.closing(open_tier(f"s3://{BUCKET}/{prefix}", "lake", options=options)) as tier:
        yield tier


@pytest.mark.parametrize("cached", [True, pytest.param(False, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_an_epoch_over_a_bad_network_has_every_row_once(
    fault: Fault, cached: bool, relay: Proxy, tmp_path: Path
) -> None:
    prefix = uuid.uuid4().hex
    with lake(relay.target, prefix, 20.0) as good, lake(relay.endpoint, prefix, 1.0) as tier:
        make_corpus(good, 96, 8, 3)
        cache = NodeCache(tmp_path, "1MB") if cached else None
        loader = Loader(open_corpus(tier, "c"), 16, cache=cache, lanes=2)
        relay.rule = first("GET", fault, 3)
        found: list[list[int]] = []
        for _ in range(ATTEMPTS):
            state = loader.state_dict()
            loader.load_state_dict(state)
            try:
                for batch in loader:
                    found.append(batch["row"].tolist())
                    assert (batch["pair"] == columns(found[-1])["pair"]).all()
            except TieringError:
                continue
            break
        assert found == promised(loader.order, 16)
        if cache is not None:
            cache.close()
