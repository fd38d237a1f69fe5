"""What of the engine can be used on this machine, found out by trying it.

Invariant: a check leaves nothing behind, never hangs, and says what to do when it fails. What a tier can
do is tried by `tiering.probe`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from dask.utils import format_bytes

from tiering.probe import Check, Verdict, probe
from tiering.stores.hurry import is_cached
from tiering.stores.pages import PAGE_BYTES
from tiering.tier import Tier

PACKAGES: Final = (
    "zarr",
    "pyarrow",
    "dask",
    "distributed",
    "obstore",
    "fsspec",
    "s3fs",
    "blake3",
    "numcodecs",
)


def examine(folder: Path, tiers: list[Tier]) -> list[Check]:
    """Try everything; `folder` is where files would be staged."""
    checks = [_package(name) for name in PACKAGES]
    checks += [_gpu_package("cupy"), _gpu_package("kvikio"), _libcuda(), _gds()]
    checks += [_direct_io(folder), _huge_pages(), _free_space(folder)]
    return checks + [check for tier in tiers for check in probe(tier)]


def _package(name: str) -> Check:
    try:
        return Check(name, "ok", version(name))
    except PackageNotFoundError:
        return Check(name, "bad", f"not installed: pip install {name}")


def _gpu_package(name: str) -> Check:
    # Importing it would load the driver: whether it is there is enough, and cannot hang.
    if importlib.util.find_spec(name) is None:
        return Check(name, "optional", "not installed: pip install 'corpus-tiering[gpu]' to feed GPU memory")
    return Check(name, "ok", "installed")


def _libcuda() -> Check:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Check("libcuda", "optional", "no NVIDIA driver: device='cpu' alone")
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return Check("libcuda", "optional", f"the driver is there and answers with error {status}")
    return Check("libcuda", "ok", f"{count.value} GPU(s)")


def _gds() -> Check:
    if Path("/proc/driver/nvidia-fs/stats").exists():
        return Check("GPUDirect Storage", "ok", "nvidia-fs is loaded")
    return Check("GPUDirect Storage", "optional", "nvidia-fs is not loaded: GPUs are fed through host memory")


def _direct_io(folder: Path) -> Check:
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file, mmap.mmap(-1, PAGE_BYTES) as page:
            fd = os.open(file.name, os.O_RDWR | os.O_DIRECT)
            try:
                os.pwrite(fd, page, 0)
                told = is_cached(fd, 0, PAGE_BYTES) is not None
            finally:
                os.close(fd)
    except OSError as error:
        return Check(
            "O_DIRECT", "optional", f"not in {folder}: {error.strerror}; reads go through the page cache"
        )
    if not told:
        words = f"works in {folder}, but this kernel does not say what is cached (Linux 6.5 does)"
        return Check("O_DIRECT", "optional", f"{words}: blocks that are waited for go through the page cache")
    return Check("O_DIRECT", "ok", f"works in {folder}")


def _huge_pages() -> Check:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    try:
        chosen = setting.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return Check("huge pages", "optional", "this kernel has none: direct reads cost more CPU")
    if chosen == "never":
        return Check("huge pages", "optional", f"switched off: echo madvise > {setting}")
    return Check("huge pages", "ok", chosen)


def _free_space(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    verdict: Verdict = "ok" if free > 1 << 30 else "bad"
    return Check("free space", verdict, f"{format_bytes(free)} in {folder}")
