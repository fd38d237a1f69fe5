"""What a mixture of corpora is made of: their orders, weights and columns, checked, with one error for each.

Invariant: the orders of the corpora are functions of (corpus, its number, seed) and what `Order` takes, so
that corpora of one shape do not come in one order.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from policies import Mixture, Order
from policies.checks import whole
from policies.order.permute import derive
from tiering.corpus import Corpus
from tiering.errors import UsageError
from tiering.reader import BlockReader

Weights = Mapping[str, float]
Phase = tuple[int, Sequence[float]]

_SEEDS: Final = 7  # domain of `derive`


def orders_of(
    corpora: Mapping[str, Corpus],
    seed: int,
    mode: str,
    lanes: int,
    group_shards: int,
    window_blocks: int | None,
    affinity: str,
) -> list[Order]:
    """The order of each corpus.

    Raises:
        UsageError: a corpus has fewer rows than lanes, or `Order` does not take one of the others.
    """
    for name, corpus in corpora.items():
        if corpus.rows < lanes:
            raise UsageError(
                f"corpus {name!r} has {corpus.rows} rows, fewer than the {lanes} lanes",
                hint="Set lanes to a smaller multiple of the world size",
            )
    try:
        seed = whole("seed", seed, least=0, below=1 << 64, example=7)
        return [
            Order(
                corpus.shard_rows,
                block_rows=corpus.contents.block_rows,
                seed=derive(seed, _SEEDS, number),
                mode=mode,
                lanes=lanes,
                group_shards=group_shards,
                window_blocks=window_blocks,
                affinity=affinity,
            )
            for number, corpus in enumerate(corpora.values())
        ]
    except ValueError as error:
        raise UsageError(str(error)) from error


def mixed(orders: Sequence[Order], phases: Sequence[Phase]) -> Mixture:
    """The mixture with weights from positions on, of which the first is 0.

    Raises:
        UsageError: they cannot be mixed so.
    """
    (_, weights), *changes = phases
    try:
        return Mixture(orders, weights, dict(changes))
    except ValueError as error:
        raise UsageError(str(error)) from error


def phases_of(mixture: Mixture) -> list[tuple[int, list[int]]]:
    """Whole weights from positions on, as `mixed` takes them."""
    made = cast("dict[str, Any]", mixture.fingerprint())
    return [(0, made["weights"]), *((start, weights) for start, weights in made.get("changes", []))]


def listed(weights: Weights, names: Mapping[str, Any]) -> list[float]:
    """The weights in the order of the names.

    Raises:
        UsageError: a name has none, or there is one of another.
    """
    if weights.keys() != names.keys():
        raise UsageError(
            f"weights are of {', '.join(map(repr, weights))}; the corpora are {', '.join(map(repr, names))}",
            hint="Give each corpus a weight; with 0 it rests",
        )
    return [weights[name] for name in names]


def step_number(step: Any, *, least: int) -> int:
    """The number of a batch from which on weights may change.

    Raises:
        UsageError: it is none, or below `least`.
    """
    try:
        number = operator.index(step)
    except TypeError:
        number = -1
    if number < least or isinstance(step, bool):
        raise UsageError(f"weights cannot change at step {step!r}", hint="Example: schedule={10_000: {...}}")
    return number


def check_columns(readers: Mapping[str, BlockReader], reserved: str | None) -> None:
    """Refuse corpora whose columns differ, or have one of the reserved name.

    Raises:
        UsageError: names the first difference.
    """
    kinds = {
        name: {column.name: f"{column.dtype} of shape {column.shape}" for column in reader.columns}
        for name, reader in readers.items()
    }
    (first, wanted), *others = kinds.items()
    for name, found in others:
        for column in {**wanted, **found}:
            if wanted.get(column) != found.get(column):
                alike = [each for each in wanted if all(wanted[each] == kind.get(each) for _, kind in others)]
                raise UsageError(
                    f"column {column!r} is {wanted.get(column, 'missing')} in corpus {first!r}, but "
                    f"{found.get(column, 'missing')} in {name!r}",
                    hint=f"Choose columns that all have alike: {alike}",
                )
    if reserved in wanted:
        raise UsageError(
            f"the corpora have a column {reserved!r} themselves", hint="Leave it out by columns=[...]"
        )
