from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.state import STATE_VERSION, LoaderState
from tiering.errors import FormatError, TieringError, UnsupportedVersion

STATE = LoaderState(
    epoch=3, position=4096, seed=7, lanes=64, mode="window", group=8, window=1, corpus="0123456789abcdef",
    affinity="lane",
)  # fmt: skip
BIGGEST = replace(
    STATE, affinity="global", epoch=10**6, position=10**12, seed=2**64 - 1, group=10**4, window=10**4
)
V2 = {name: value for name, value in asdict(STATE).items() if name != "rows"}
V1 = {name: value for name, value in V2.items() if name != "affinity"}


@pytest.mark.parametrize("state", [STATE, BIGGEST])
def test_state_survives_json_in_less_than_200_bytes(state: LoaderState) -> None:
    text = json.dumps(state.to_dict())
    assert len(text) < 200
    assert LoaderState.from_dict(json.loads(text)) == state


def test_state_of_version_1_is_of_global_affinity() -> None:
    assert LoaderState.from_dict({"v": 1, **V1}) == replace(STATE, affinity="global")


def test_state_of_a_newer_version_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedVersion, match=f"version {STATE_VERSION + 1}.*Upgrade"):
        LoaderState.from_dict({"v": STATE_VERSION + 1, "anything": "else"})


@pytest.mark.parametrize(
    "garbage",
    [
        {},
        {"v": 1},
        {"v": 0, **asdict(STATE)},
        {"v": "1", **asdict(STATE)},
        {"v": True, **asdict(STATE)},
        {"v": True, **V1},
        {"v": 1, **V2},
        {"v": 2, **V1},
        {"v": 2, **asdict(STATE)},
        {"v": 3, **V2},
        {"v": 2, **V2, "extra": 1},
        {"v": 2, **V2, "position": -1},
        {"v": 2, **V2, "position": 1.5},
        {"v": 2, **V2, "position": None},
        {"v": 2, **V2, "epoch": True},
        {"v": 2, **V2, "corpus": 5},
        {"v": 2, **V2, "affinity": 5},
    ],
)
def test_state_that_is_none_is_refused(garbage: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="loader state"):
        LoaderState.from_dict(garbage)


@pytest.mark.parametrize("garbage", [None, [], "state", 5])
def test_state_that_is_no_mapping_is_refused(garbage: Any) -> None:
    with pytest.raises(FormatError, match="not a loader state"):
        LoaderState.from_dict(garbage)


JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)


@given(st.dictionaries(st.sampled_from(["v", *asdict(STATE)]) | st.text(max_size=5), JSON))
def test_state_of_any_json_is_read_or_refused_with_a_typed_error(garbage: dict[str, Any]) -> None:
    try:
        state = LoaderState.from_dict(garbage)
    except TieringError:
        return
    assert state.to_dict() == garbage
