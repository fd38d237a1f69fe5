"""The demo's input: the source files of the running interpreter's standard library."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Final

from tiering.sources.text import TextSource

ROW_TOKENS: Final = 2049
_NOT_THE_LIBRARY: Final = frozenset({"site-packages", "dist-packages"})


def library_source() -> TextSource:
    """Byte-level tokens of all ``.py`` files of the standard library, in rows of 2,049."""
    library = Path(sysconfig.get_path("stdlib"))
    entries = [entry for entry in sorted(library.iterdir()) if entry.name not in _NOT_THE_LIBRARY]
    files = [entry for entry in entries if entry.is_dir() or entry.suffix == ".py"]
    return TextSource(files, row_tokens=ROW_TOKENS, suffixes=(".py",))
