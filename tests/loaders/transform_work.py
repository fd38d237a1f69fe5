"""Transforms that processes can import, and quickly."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np


class Odd(Exception):
    """An error that does not pickle: it takes two arguments and tells one."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number = number


def with_pid(batch: dict[str, Any]) -> dict[str, Any]:
    """Writes into what it got, and returns parts of it."""
    batch["row"] += 1
    return {"row": batch["row"], "pid": os.getpid(), "pair": batch["pair"][::2], "big": ["x" * 100_000] * 3}


def fails_at(batch: dict[str, Any]) -> dict[str, Any]:
    """Fails for the batch that has row 300."""
    if (batch["row"] == 300).any():
        raise KeyError("row 300")
    return batch


def fails_oddly(batch: dict[str, Any]) -> None:
    raise Odd(1, f"{len(batch)} columns are odd")


def dies_at(batch: dict[str, Any]) -> dict[str, Any]:
    """Is killed at the batch that has row 300."""
    if (batch["row"] == 300).any():
        os.kill(os.getpid(), signal.SIGKILL)
    return batch


def grows(batch: dict[str, Any]) -> Any:
    """More and more bytes."""
    return np.full(int(batch["row"].max()) * 5000, batch["row"].min())


def interrupts(batch: dict[str, Any]) -> Any:
    """Presses Ctrl-C at the second batch: the parent is interrupted, this process is not."""
    calls.append(len(calls))
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)
    return batch


calls: list[int] = []
