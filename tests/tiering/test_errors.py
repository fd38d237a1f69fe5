from __future__ import annotations

import builtins
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiering import errors
from tiering.errors import TieringError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TieringError)]
BUILTINS = {
    "UsageError": ValueError,
    "ConfigError": ValueError,
    "OutOfRange": IndexError,
    "NotFound": FileNotFoundError,
    "Corrupt": OSError,
    "Conflict": FileExistsError,
    "Locked": BlockingIOError,
    "CapacityExceeded": OSError,
    "LastCopy": PermissionError,
    "Unavailable": ConnectionError,
    "DeadlineExceeded": TimeoutError,
    "FormatError": ValueError,
    "UnsupportedVersion": NotImplementedError,
}
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
texts = st.none() | st.text(max_size=20)


def test_errors_tree_is_whole() -> None:
    assert {kind.__name__ for kind in KINDS} == {"TieringError", *BUILTINS}


@pytest.mark.parametrize(("name", "builtin"), BUILTINS.items())
def test_errors_are_the_builtin_that_a_caller_expects(name: str, builtin: type[Exception]) -> None:
    kind = getattr(errors, name)
    assert vars(builtins)[builtin.__name__] is builtin
    with pytest.raises(builtin) as caught:
        raise kind("text")
    assert isinstance(caught.value, TieringError)


def test_errors_branches_are_where_handlers_look() -> None:
    assert issubclass(errors.ConfigError, errors.UsageError)
    assert issubclass(errors.OutOfRange, errors.UsageError)
    assert issubclass(errors.Locked, errors.Conflict)
    assert issubclass(errors.UnsupportedVersion, errors.FormatError)


@kinds
@given(message=st.text(max_size=20), tier=texts, key=texts, hint=texts)
def test_errors_survive_pickling(
    kind: type[TieringError], message: str, tier: str | None, key: str | None, hint: str | None
) -> None:
    error = kind(message, tier=tier, key=key, hint=hint)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.message, copy.tier, copy.key, copy.hint) == (message, tier, key, hint)
    assert str(copy) == str(error)


@kinds
def test_errors_text_names_tier_key_and_hint(kind: type[TieringError]) -> None:
    error = kind("it broke", tier="lake", key="web/c/0", hint="Mend it")
    assert str(error) == "it broke (tier 'lake', key 'web/c/0'). Mend it"
    assert str(kind("it broke", key="k")) == "it broke (key 'k')"
    assert str(kind("it broke", hint="Mend it")) == "it broke. Mend it"
    assert str(kind("it broke")) == "it broke"


@kinds
def test_errors_have_the_exit_code_of_their_kind(kind: type[TieringError]) -> None:
    expected = {"UsageError": 2, "ConfigError": 2, "OutOfRange": 2, "Locked": 11}
    assert kind.exit_code == expected.get(kind.__name__, 1)


@kinds
def test_errors_that_may_pass_are_retryable(kind: type[TieringError]) -> None:
    assert kind.retryable == (kind.__name__ in ("Unavailable", "DeadlineExceeded"))
