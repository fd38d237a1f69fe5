"""What the fault tests share: a zygote, and folders on media of their own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.faults.zygote import Zygote
from tests.proxy import Proxy, proxy
from tests.servers import Endpoint


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """A process that forks a child for each job."""
    with Zygote() as running:
        yield running


@pytest.fixture
def prefix() -> str:
    """Of keys that no other test has."""
    return uuid.uuid4().hex


@pytest.fixture
def relay(moto_endpoint: Endpoint) -> Iterator[Proxy]:
    """A relay before moto."""
    with proxy(moto_endpoint) as relay:
        yield relay


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def server(request: pytest.FixtureRequest) -> Endpoint:
    endpoint: Endpoint = request.getfixturevalue(f"{request.param}_endpoint")
    return endpoint


@pytest.fixture
def relay_of_any(server: Endpoint) -> Iterator[Proxy]:
    with proxy(server) as relay:
        yield relay
