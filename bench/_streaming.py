"""MosaicML Streaming's planners alone: its shuffle modules need numpy and nothing else of the package."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

VERSION: Final = "0.13.0"
Planner = Callable[..., np.ndarray[Any, Any]]


def install(folder: str) -> None:
    """Unpack the wheel into `folder`, without what it depends on."""
    wanted = f"mosaicml-streaming=={VERSION}"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, wanted]
    subprocess.run(command, check=True)


def planner(folder: str, name: str) -> Planner:
    """Return the planner `name` (py1e, py1br) of the package in `folder`; its __init__ files are not run."""
    for package in ("streaming", "streaming.base", "streaming.base.shuffle"):
        module = types.ModuleType(package)
        module.__path__ = [str(Path(folder, *package.split(".")))]
        sys.modules[package] = module
    found: Planner = getattr(importlib.import_module(f"streaming.base.shuffle.{name}"), f"get_shuffle_{name}")
    return found
