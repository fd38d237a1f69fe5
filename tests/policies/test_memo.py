from concurrent.futures import ThreadPoolExecutor

import pytest

from policies.order.memo import Memo


def test_memo_forgets_the_key_used_longest_ago() -> None:
    made: list[str] = []
    memo: Memo[str, str] = Memo(2)

    def get(key: str) -> str:
        return memo.get(key, lambda: made.append(key) or key.upper())  # type: ignore[func-returns-value]

    assert [get(key) for key in ["a", "b", "a", "c", "a", "b"]] == ["A", "B", "A", "C", "A", "B"]
    assert made == ["a", "b", "c", "b"]


def test_threads_get_the_value_of_their_key_and_what_fails_is_told() -> None:
    memo: Memo[int, int] = Memo(3)

    def look(thread: int) -> bool:
        keys = [(thread + 7 * step) % 5 for step in range(3_000)]
        return all(memo.get(key, lambda key=key: key * key) == key * key for key in keys)  # type: ignore[misc]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(look, range(8)))
    assert sum(key in memo for key in range(5)) == 3
    with pytest.raises(KeyError, match="made"):
        memo.get(99, lambda: {}["made"])
