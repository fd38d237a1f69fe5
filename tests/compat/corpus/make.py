"""Makes the golden corpora beside this file, once: ``python tests/compat/corpus/make.py``.

What lies there must be readable for ever, so this refuses to write over it. A new format version gets a new
folder; the old one stays.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tiering import ingest, open_tier
from tiering.digest import digest
from tiering.keys import INTERNAL

HERE = Path(__file__).parent
ROWS = 11


COLUMNS = {"raw": ("tokens", "flag", "wave", "cube"), "zstd": ("tokens", "wave")}


def arrays(name: str) -> dict[str, np.ndarray[Any, Any]]:
    """Columns of fixed shape, of the golden corpus of that name."""
    numbers = np.arange(ROWS * 6, dtype=np.int64).reshape(ROWS, 3, 2)
    made = {
        "tokens": (np.arange(ROWS * 8) * 7919 % 65521).astype("<u2").reshape(ROWS, 8),
        "flag": np.arange(ROWS) % 3 == 0,
        "wave": (numbers[:, 0] - 1j * numbers[:, 1]).astype("<c8"),
        "cube": (numbers - 30).astype("i1"),
    }
    return {column: made[column] for column in COLUMNS[name]}


def table() -> pa.Table:
    """Ragged columns, with nulls."""
    texts = [None if i % 4 == 3 else "grüße " * (i % 3) + str(i) for i in range(ROWS)]
    lists = [None if i % 5 == 4 else list(range(i)) for i in range(ROWS)]
    points = [{"x": i / 2, "name": f"p{i}"} for i in range(ROWS)]
    return pa.table(
        {
            "id": pa.array(range(ROWS), pa.int64()),
            "text": pa.array(texts, pa.string()),
            "list": pa.array(lists, pa.list_(pa.int16())),
            "point": pa.array(points, pa.struct([("x", pa.float64()), ("name", pa.large_string())])),
            "pair": pa.array([[i, -i] for i in range(ROWS)], pa.list_(pa.int32(), 2)),
        }
    )


def main(folder: Path) -> int:
    """Write all golden corpora below `folder`."""
    if folder.exists():
        print(f"{folder} exists: golden corpora are never written over", file=sys.stderr)  # noqa: T201
        return 1
    tier = open_tier(folder, "golden")
    ingest(arrays("raw"), tier, "raw", shard_size=8192, block_rows=4)
    ingest(arrays("zstd"), tier, "zstd", shard_size=8192, block_rows=4, codec="zstd:3")
    ingest(table(), tier, "arrow", shard_size=512, block_rows=4)
    for claims in folder.glob(f"*/{INTERNAL}/claims"):  # they name the process that wrote
        shutil.rmtree(claims)
    future(folder / "future" / INTERNAL)
    return 0


def future(folder: Path) -> None:
    """A corpus as a later engine might write it: format version 2, with columns that nobody knows yet."""
    sink = pa.BufferOutputStream()
    metadata = {"tiering": json.dumps({"format_version": 2, "news": "everything"})}
    pq.write_table(pa.table({"object": ["a"], "proof": [7]}).replace_schema_metadata(metadata), sink)
    manifest = bytes(sink.getvalue())
    record = json.dumps({"format_version": 2, "version": 1, "manifest": digest(manifest), "signed": True})
    for name, data in {
        f"manifests/{digest(manifest)}.parquet": manifest,
        "versions/00000001.json": record.encode(),
        "HEAD": record.encode(),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    raise SystemExit(main(HERE / "v1"))
