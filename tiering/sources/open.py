"""From what a user gives to a source."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.dataset as pads
from dask.base import is_dask_collection

from tiering.arguments import need
from tiering.errors import UsageError
from tiering.sources.arrays import ArraySource
from tiering.sources.base import Source
from tiering.sources.tables import ENDINGS, DatasetSource, TableSource, parquet_source
from tiering.sources.text import TextSource

READERS: Final = ("text", "parquet")
TEXT_OPTIONS: Final = frozenset(["row_tokens", "column", "suffixes"])
_NO_TEXT: Final = (".npy", ".npz", ".arrow", ".feather", ".gz", ".zst", ".bz2", ".xz", ".zip", ".tar")


def open_source(source: Any, reader: str | None = None, options: Mapping[str, Any] | None = None) -> Source:
    """The source for arrays by column, an Arrow table or dataset, or paths with a reader.

    Args:
        source: ``{column: array}``, a pyarrow Table or Dataset, a `Source`, a path or several.
        reader: for paths: ``text`` or ``parquet``; by default from the endings of the files.
        options: of the reader, such as ``row_tokens`` of ``text``.

    Raises:
        UsageError: nothing here reads it.
    """
    need(options or {}, Mapping, "reader_options", "reader_options={'row_tokens': 2049}")
    options = dict(options or {})
    if isinstance(source, str | os.PathLike):
        source = [source]
    if (
        isinstance(source, Sequence)
        and source
        and all(isinstance(path, str | os.PathLike) for path in source)
    ):
        return _open_paths(source, reader, options)
    if reader is not None or options:
        raise UsageError(
            f"a reader and its options are for paths, not for {type(source).__name__}",
            hint="Leave reader and reader_options out",
        )
    if isinstance(source, Source):
        return source
    if isinstance(source, Mapping):
        if any(map(is_dask_collection, source.values())):
            from tiering.sources.dask_arrays import DaskArraySource

            return DaskArraySource(source)
        return ArraySource(source)
    if isinstance(source, pa.RecordBatch):
        source = pa.Table.from_batches([source])
    if isinstance(source, pads.InMemoryDataset):
        source = source.to_table()
    if isinstance(source, pa.Table):
        return TableSource(source)
    if isinstance(source, pads.Dataset):
        return DatasetSource(source)
    raise UsageError(
        f"cannot ingest {type(source).__name__}",
        hint="Give {column: array}, a pyarrow Table or Dataset, or paths with reader='text' or 'parquet'",
    )


def _open_paths(
    paths: Sequence[str | os.PathLike[str]], reader: str | None, options: dict[str, Any]
) -> Source:
    paths = [Path(path).expanduser() if os.fspath(path).startswith("~/") else path for path in paths]
    if reader is None:
        reader = _reader_of(paths)
    if reader == "parquet" and not options:
        return parquet_source(paths)
    if reader == "text":
        unknown = sorted(options.keys() - TEXT_OPTIONS)
        if not unknown:
            return TextSource(paths, **options)
        known = f"Options of 'text': {', '.join(sorted(TEXT_OPTIONS))}"
        raise UsageError(f"the reader 'text' has no option {unknown[0]!r}", hint=known)
    if reader == "parquet":
        raise UsageError(f"the reader 'parquet' has no options, not {sorted(options)}")
    raise UsageError(f"no reader {reader!r}", hint=f"Readers: {', '.join(READERS)}")


def _reader_of(paths: Sequence[str | os.PathLike[str]]) -> str:
    """The reader for files with these endings; what is no text must not become tokens unasked.

    Raises:
        UsageError: the endings do not say.
    """
    names = [name.lower() for path in paths for name in _names(Path(path))]
    parquet = sum(name.endswith(ENDINGS) for name in names)
    if parquet and parquet == len(names):
        return "parquet"
    strange = next((name for name in map(str, paths) if name.lower().endswith(_NO_TEXT)), None)
    if parquet or strange:
        what = (
            f"{parquet} of {len(names)} files are Parquet"
            if parquet
            else f"{strange!r} does not look like text"
        )
        hint = (
            "Say --reader (in Python reader=) parquet for the Parquet files alone, text for the bytes of all"
        )
        raise UsageError(what, hint=hint)
    return "text"


def _names(path: Path) -> list[str]:
    if not path.is_dir():
        return [path.name]
    found = (name for _folder, _folders, names in os.walk(path) for name in names)
    return [name for name in found if name[:1] not in ("_", ".")]  # such as Spark's _SUCCESS
