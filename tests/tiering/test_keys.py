from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiering.errors import UsageError
from tiering.keys import path_of, validate, validate_name, validate_prefix

BAD = {
    "": "is empty",
    "/a": "is absolute",
    "a\\b": "backslash",
    "a\0b": "NUL",
    "a//b": "empty segment",
    "a/": "empty segment",
    "..": "'..' segment",
    "a/../b": "'..' segment",
    "./a": "'.' segment",
    "a\nb": "control character",
    "a\x7f": "control character",
    "e\u0301": "not in Unicode NFC",
    "\ud800": "not valid Unicode",
    "x" * 256: "256 bytes, over 255",
    "é" * 128: "256 bytes, over 255",
    "a/" * 512 + "aa": "1026 bytes long, over 1024",
    "a/.tmp-1/b": "kept for unfinished writes",
}
ROOT = Path("/root-of-tier")


@pytest.mark.parametrize(("key", "why"), BAD.items(), ids=[f"rule{i}" for i in range(len(BAD))])
def test_keys_that_break_a_rule_are_refused_with_the_rule(key: str, why: str) -> None:
    with pytest.raises(UsageError, match="relative key such as") as caught:
        validate(key)
    assert why in str(caught.value)
    with pytest.raises(UsageError):
        path_of(ROOT, key)


@pytest.mark.parametrize("key", [7, None, b"a", Path("a")])
def test_keys_that_are_no_text_are_refused(key: object) -> None:
    with pytest.raises(UsageError, match="is not a string"):
        validate(key)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "key", ["a", "web-text/tokens/c/0/0", ".tiering/HEAD", "é" * 127, "x" * 255, "a b", "..."]
)
def test_keys_that_keep_the_rules_are_unchanged(key: str) -> None:
    assert validate(key) == key
    assert path_of(ROOT, key) == ROOT / key


@given(st.text(max_size=40) | st.text(alphabet="./\\a\0é\u0301~", max_size=12))
def test_path_of_never_leaves_the_root(key: str) -> None:
    try:
        path = path_of(ROOT, key)
    except UsageError:
        return
    assert os.path.normpath(path) == str(path)
    assert path.is_relative_to(ROOT)
    assert path != ROOT
    assert str(path) == f"{ROOT}/{key}"


@given(st.lists(st.text(max_size=20), min_size=2, max_size=3))
def test_path_of_different_keys_is_different(keys: list[str]) -> None:
    paths = {}
    for key in keys:
        try:
            paths[path_of(ROOT, key)] = paths.get(path_of(ROOT, key), key)
        except UsageError:
            continue
        assert paths[path_of(ROOT, key)] == key


def test_prefix_empty_means_everything() -> None:
    assert validate_prefix("") == ""
    assert validate_prefix("web/tokens") == "web/tokens"
    with pytest.raises(UsageError):
        validate_prefix("../web")


@pytest.mark.parametrize("name", ["a/b", ".hidden", "_private", "..", "", "a\\b", "x" * 256])
def test_names_that_are_not_one_visible_segment_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="corpus name"):
        validate_name(name)


def test_names_of_one_segment_are_unchanged() -> None:
    assert validate_name("web-text.v2") == "web-text.v2"
