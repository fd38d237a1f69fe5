"""First mistakes of whoever uses the Python API: one typed error that names the argument and a right one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import Loader, Mixture
from tiering import Corpus, Tier, ingest, open_corpus, open_tier, plan_move, release, verify
from tiering.errors import UsageError
from tiering.forget import forget
from tiering.gc import gc

ROWS = {"x": np.arange(100)}


@pytest.fixture
def tier(tmp_path: Path) -> Tier:
    return open_tier(tmp_path / "lake")


@pytest.fixture
def corpus(tier: Tier) -> Corpus:
    return ingest(ROWS, tier, "n")


MISTAKES: dict[str, Callable[[Any, Any], object]] = {
    "tier = '/x' is no Tier": lambda _tier, _corpus: ingest(ROWS, "/x", "n"),  # type: ignore[arg-type]
    "tier = '/y' is no Tier": lambda _tier, _corpus: open_corpus("/y", "n"),  # type: ignore[arg-type]
    "version = '1' is no whole number": lambda tier, _corpus: open_corpus(tier, "n", "1"),  # type: ignore[arg-type]
    "url of a tier = 3 is no str": lambda _tier, _corpus: open_tier(3),  # type: ignore[arg-type]
    "target = '/x' is no Tier": lambda _tier, corpus: plan_move(corpus, "/x"),  # type: ignore[arg-type]
    "corpus = 'c5' is no Corpus": lambda tier, _corpus: verify("c5", tier),  # type: ignore[arg-type]
    "tier = 'x' is no Tier": lambda _tier, corpus: release(corpus, "x"),  # type: ignore[arg-type]
    "one of copies = 'z' is no Tier": lambda tier, corpus: release(corpus, tier, copies=["z"]),  # type: ignore[list-item]
    "name = 3 is no str": lambda tier, _corpus: ingest(ROWS, tier, 3),  # type: ignore[arg-type]
    "copies = a Tier is no Sequence": lambda tier, corpus: release(corpus, tier, copies=tier),
    "min_copies = '1' is no whole number": lambda tier, corpus: release(corpus, tier, min_copies="1"),  # type: ignore[arg-type]
    "min_copies = True is no whole number": lambda tier, corpus: release(corpus, tier, min_copies=True),
    "others = a Tier is no Sequence": lambda tier, corpus: verify(corpus, others=tier),
    "others = 3 is no Sequence": lambda tier, _corpus: open_corpus(tier, "n", others=3),  # type: ignore[arg-type]
    "tier = 'a' is no Tier": lambda _tier, _corpus: forget("a", "n"),  # type: ignore[arg-type]
    "tier = 'b' is no Tier": lambda _tier, _corpus: gc("b"),  # type: ignore[arg-type]
    "names = 'web' is no list of names": lambda tier, _corpus: gc(tier, "web"),
    "subset (1.5, 2) is no part": lambda _tier, corpus: verify(corpus, subset=(1.5, 2)),  # type: ignore[arg-type]
    "subset 5 is no part": lambda _tier, corpus: verify(corpus, subset=5),  # type: ignore[arg-type]
    "codec 3 is not known": lambda tier, _corpus: ingest(ROWS, tier, "m", codec=3),  # type: ignore[arg-type]
    "client = 'x' is no Client": lambda tier, _corpus: ingest(ROWS, tier, "m", client="x"),  # type: ignore[arg-type]
    "suffixes = 3 are no endings": lambda tier, _corpus: ingest(
        __file__, tier, "m", reader_options={"suffixes": 3}
    ),
    "gives no rows: slice step cannot be zero": lambda _tier, corpus: corpus[0:10:0],
    "corpus = 'c' is no Corpus": lambda _tier, _corpus: Loader("c"),  # type: ignore[arg-type]
    "batch_size = 1.5 is no whole number": lambda _tier, corpus: Loader(corpus, 1.5),  # type: ignore[arg-type]
    "batch_size = True is no whole number": lambda _tier, corpus: Loader(corpus, True),
    "cache = '/x' is no NodeCache": lambda _tier, corpus: Loader(corpus, cache="/x"),  # type: ignore[arg-type]
    "transform = 3 cannot be called": lambda _tier, corpus: Loader(corpus, transform=3),  # type: ignore[arg-type]
    "workers = '3' is no whole number": lambda _tier, corpus: Loader(
        corpus,
        transform=len,
        workers="3",  # type: ignore[arg-type]
    ),
    "columns = 'x' is no list of names": lambda _tier, corpus: Loader(corpus, columns="x"),
    "rank = '0' is no whole number": lambda _tier, corpus: Loader(corpus, rank="0", world_size=1),  # type: ignore[arg-type]
    "lanes = 'x' is no whole number": lambda _tier, corpus: Loader(corpus, lanes="x"),  # type: ignore[arg-type]
    "prefetch = None is no whole number": lambda _tier, corpus: Loader(corpus, prefetch=None),  # type: ignore[arg-type]
    "corpora = ['x'] is no Mapping": lambda _tier, _corpus: Mixture(["x"], {"a": 1}),  # type: ignore[arg-type]
    "corpus = 3 is no Corpus": lambda _tier, _corpus: Mixture({"a": 3}, {"a": 1}),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("told", MISTAKES)
def test_argument_of_another_type_is_told(tier: Tier, corpus: Corpus, told: str) -> None:
    before = sorted(Path(tier.url).rglob("*"))
    with pytest.raises(UsageError) as caught:
        MISTAKES[told](tier, corpus)
    assert told in caught.value.message
    assert caught.value.hint
    assert sorted(Path(tier.url).rglob("*")) == before


def test_numbers_of_numpy_are_whole_numbers(corpus: Corpus) -> None:
    loader = Loader(corpus, np.int64(8), rank=np.int32(0), world_size=np.uint8(1), lanes=np.int16(4))  # type: ignore[arg-type]
    batches = list(loader)
    assert [len(batch["x"]) for batch in batches] == [8] * 12
    assert loader.state_dict()
    assert open_corpus(corpus.tier, "n", np.int64(1)).rows == 100  # type: ignore[arg-type]
