"""What the fault tests share: a zygote, and folders on media of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.zygote import Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """A process that forks a child for each job."""
    with Zygote() as running:
        yield running
