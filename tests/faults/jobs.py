"""Where the zygote finds a job by its name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

MODULES = ("tests.faults.work", "tests.faults.steps", "tests.faults.surroundings")


def load() -> None:
    """Import all jobs now: a child may not be able to."""
    for name in MODULES:
        import_module(name)


def find(job: str) -> Callable[..., Any]:
    """The job of that name."""
    found = (getattr(import_module(name), job, None) for name in MODULES)
    return next(filter(None, found))
