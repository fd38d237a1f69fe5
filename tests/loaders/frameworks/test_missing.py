from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest

from loaders.arrow import to_polars
from tests.corpora import run_python
from tiering.errors import UsageError


@pytest.mark.parametrize("name", ["jax", "tensorflow", "torch"])
def test_framework_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"loaders.{name}", raising=False)
    with pytest.raises(UsageError, match=rf"needs {name}. pip install 'corpus-tiering\[{name}\]'"):
        importlib.import_module(f"loaders.{name}")


def test_polars_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(UsageError, match=r"needs polars. pip install 'corpus-tiering\[polars\]'"):
        to_polars({"row": np.arange(3)})


def test_no_framework_is_imported_by_the_loader() -> None:
    out = run_python(
        "import sys; import loaders, loaders.arrow, loaders.ranks\n"
        "loaders.ranks.find_rank(None, None)\n"
        "print([name for name in ('jax', 'polars', 'tensorflow', 'torch') if name in sys.modules])"
    )
    assert out == "[]\n"
