"""The command ``tiering``, whose demo takes a small part of the standard library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from loaders.demo import tour
from tiering.cli.main import main
from tiering.sources.text import TextSource


def small_source() -> TextSource:
    library = Path(sysconfig.get_path("stdlib"))
    return TextSource([library / "json", library / "asyncio"], row_tokens=2049, suffixes=(".py",))


if __name__ == "__main__":
    tour.library_source = small_source
    main()
