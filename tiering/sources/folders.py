"""Walks folders of source files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def walk(
    path: Path, on_error: Callable[[OSError], None], *, skip: tuple[str, ...] = ()
) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder at and below `path` with the names of its files, through links to folders too.

    A folder that is reached twice, and so one that a link leads back to, is walked once.

    Args:
        path: where to begin.
        on_error: is told of a folder that cannot be listed, which is then left out.
        skip: how names of folders begin that are not walked.
    """
    seen = set()
    for folder, folders, names in os.walk(path, onerror=on_error, followlinks=True):
        try:
            found = Path(folder).stat()
        except OSError as error:
            on_error(error)
            folders.clear()
            continue
        if (found.st_dev, found.st_ino) in seen:
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        folders[:] = sorted(name for name in folders if not (skip and name.startswith(skip)))
        yield folder, names
