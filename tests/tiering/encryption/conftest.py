"""Encrypted tiers of one test, closed when it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiering.encryption.tools import key_file
from tiering import Tier


@pytest.fixture
def make_encrypted(make_tier: Callable[..., Tier], tmp_path: Path) -> Callable[..., Tier]:
    """Makes file tiers by name, encrypted under the key of a number; the second is the previous one."""

    def make(name: str, *numbers: int, **options: Any) -> Tier:
        names = ("encryption_key", "encryption_previous_key")
        keys = dict(zip(names, (key_file(tmp_path, number) for number in numbers or (1,)), strict=False))
        return make_tier(name, options=keys, **options)

    return make
