"""What tests on a real GPU need, or the reason that they are skipped for."""

from typing import Any

import pytest

from loaders.gpu_device import open_device
from tiering.errors import UsageError


@pytest.fixture(scope="module")
def cupy() -> Any:
    """Cupy, where there is a GPU with all that the loader needs."""
    try:
        open_device("cuda:0")
    except UsageError as error:
        pytest.skip(error.message)
    return pytest.importorskip("cupy")
