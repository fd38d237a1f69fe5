"""The golden corpora are what was written once, and every later version reads them, to the last byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
import zarr

from tests.compat.corpus.make import HERE, ROWS, arrays, main, table
from tiering import Corpus, Tier, catalog, open_corpus, open_tier, plan_move, verify
from tiering.digest import digest
from tiering.errors import UnsupportedVersion
from tiering.keys import INTERNAL
from tiering.layout import arrow
from tiering.manifest import decode

MANIFESTS = {
    "raw": "94ef642c2cca09d083a5b28d6076305fe4afe72086464c9570f00ae28ff77d21",
    "zstd": "c112a10a1b29ea70ccedec621cc8bd410f9e0ddc94a526c742183ce6288262d4",
    "arrow": "01606affbc303bf9c238975c6784793839c4298975d1daee03fedd1ad885074a",
}
ALL = pytest.mark.parametrize("name", MANIFESTS)
ZARR = pytest.mark.parametrize("name", ["raw", "zstd"])


@pytest.fixture
def golden() -> Tier:
    return open_tier(HERE / "v1", "golden", read_only=True)


@pytest.fixture
def corpus(golden: Tier, name: str) -> Corpus:
    return open_corpus(golden, name)


@pytest.fixture
def memory() -> Iterator[Tier]:
    tier = open_tier("memory://golden")
    yield tier
    for info in tier.store.list():
        tier.store.delete(info.key)


@ALL
def test_golden_corpus_is_whole(corpus: Corpus, name: str) -> None:
    assert corpus.record == catalog.Record(1, MANIFESTS[name])
    assert (corpus.rows, corpus.version) == (ROWS, 1)
    report = verify(corpus)
    assert report.ok
    assert report.extra == ()
    assert corpus.contents.shards == 2 if name != "arrow" else corpus.contents.shards > 1


@ZARR
def test_golden_zarr_has_its_values(corpus: Corpus, name: str) -> None:
    found = {column: rows.compute(scheduler="synchronous") for column, rows in corpus.to_dask().items()}
    same(found, arrays(name))


@ZARR
def test_golden_zarr_is_read_by_plain_zarr(name: str) -> None:
    group: Any = zarr.open_group(HERE / "v1" / name, mode="r")
    same({column: group[column][...] for column in group}, arrays(name))


def same(found: dict[str, Any], expected: dict[str, np.ndarray[Any, Any]]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_golden_arrow_is_read_by_plain_arrow() -> None:
    found = pads.dataset(HERE / "v1" / "arrow", format="arrow").to_table()
    assert found.equals(table())


def test_golden_arrow_has_its_values_block_by_block(golden: Tier) -> None:
    corpus = open_corpus(golden, "arrow")
    batches = []
    for entry in corpus.manifest.to_pylist():
        data = golden.store.read(corpus.key(entry["key"]))
        offsets = entry["block_offsets"]
        for start, stop, crc in zip(offsets, offsets[1:], entry["block_crcs"], strict=False):
            batches.append(arrow.decode_block(data[start:stop], crc, corpus.schema))
    assert pa.Table.from_batches(batches).equals(table())


@ALL
def test_golden_corpus_moves_unchanged(corpus: Corpus, memory: Tier) -> None:
    plan_move(corpus, memory).run()
    assert verify(corpus, memory).ok
    for info in memory.store.list(corpus.name):
        if "/claims/" not in info.key:
            assert memory.store.read(info.key) == corpus.tier.store.read(info.key)


def test_golden_corpus_of_the_future_is_refused_by_name(golden: Tier) -> None:
    with pytest.raises(
        UnsupportedVersion, match="corpus 'future' is of format version 2, this engine reads up to 1"
    ):
        open_corpus(golden, "future")
    with pytest.raises(UnsupportedVersion, match="format version 2"):
        open_corpus(golden, "future", 1)
    (manifest,) = (HERE / "v1" / "future" / INTERNAL / "manifests").iterdir()
    data = manifest.read_bytes()
    with pytest.raises(UnsupportedVersion, match="the manifest is of format version 2"):
        decode(data, digest(data))
    assert manifest.stem == digest(data)


def test_golden_corpora_are_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in (HERE / "v1").rglob("*") if path.is_file()}
    assert main(HERE / "v1") == 1
    assert "never written over" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (HERE / "v1").rglob("*") if path.is_file()} == before
    assert sum(map(len, before.values())) < 100_000
    assert main(tmp_path / "new") == 0
