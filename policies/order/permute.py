"""Keyed permutations that are the same on every platform, numpy version and sort algorithm.

Everything random in a sample order comes from here: splitmix64 (Steele, Lea, Flood: Fast splittable
pseudorandom number generators, OOPSLA 2014) in wrapping uint64 arithmetic. Item i of a permutation gets the
(i+1)-th output of the generator seeded with the permutation's key; its low bits are replaced by i, so that
all sort keys differ and any correct sort gives one result. Frozen for ever: recorded epochs and golden
digests depend on each constant.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["derive", "derive_array", "permutation", "permutations"]

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

_WORD = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLY_1 = 0xBF58476D1CE4E5B9
_MULTIPLY_2 = 0x94D049BB133111EB


def derive(seed: int, *parts: int) -> int:
    """Return a key for the purpose named by `parts`, independent of the key of any other sequence of parts.

    seed and parts: ints in [0, 2**64). Returns an int in [0, 2**64). Each step is a bijection of its part, so
    two sequences that differ in one place never collide there.
    """
    key = _mix(seed + _GAMMA)
    for part in parts:
        key = _mix(key + _GAMMA * (part + 1))
    return key


def derive_array(key: int | UInt64s, parts: UInt64s) -> UInt64s:
    """Return, for each part, what one more step of `derive` makes of its key: uint64, the shape of `parts`.

    key: that of all parts, or one for each.
    """
    return _mix_array((parts + np.uint64(1)) * np.uint64(_GAMMA) + np.asarray(key, np.uint64))


def permutation(key: int, n: int) -> Int64s:
    """Return the permutation of range(n) that belongs to `key`: int64, shape (n,); time O(n log n)."""
    index = np.arange(n, dtype=np.uint64)
    mask = np.uint64((1 << max(n - 1, 0).bit_length()) - 1)
    order = derive_array(key, index)
    order &= ~mask
    order |= index
    order.sort()
    order &= mask
    return order.view(np.int64)


def permutations(keys: UInt64s, sizes: Int64s) -> Int64s:
    """Return permutation(keys[k], sizes[k]) for every k, one after the other: int64, shape (sizes.sum(),).

    keys, sizes: shape (k,), sizes >= 1. Memory O(k * sizes.max()): the caller bounds that product.
    """
    index = np.arange(sizes.max(), dtype=np.uint64)
    last = (sizes - 1).astype(np.uint64)
    mask = last.copy()
    for shift in (1, 2, 4, 8, 16, 32):  # smear the highest bit down: 2 ** bit_length(last) - 1
        mask |= mask >> np.uint64(shift)
    order = (index + np.uint64(1)) * np.uint64(_GAMMA) + keys[:, None]
    _mix_array(order)
    order &= ~mask[:, None]
    order |= index
    real = index <= last[:, None]
    order[~real] = _WORD  # sorts behind every real item; equal to one only if that one is last anyway
    order.sort(axis=1)
    order &= mask[:, None]
    return order[real].view(np.int64)


def _mix(word: int) -> int:
    """Return the splitmix64 finaliser of `word` modulo 2**64."""
    word &= _WORD
    word = ((word ^ (word >> 30)) * _MULTIPLY_1) & _WORD
    word = ((word ^ (word >> 27)) * _MULTIPLY_2) & _WORD
    return word ^ (word >> 31)


def _mix_array(words: UInt64s) -> UInt64s:
    """Apply `_mix` to each of `words` in place and return them."""
    shifted = np.empty_like(words)
    for shift, factor in ((30, _MULTIPLY_1), (27, _MULTIPLY_2)):
        np.right_shift(words, np.uint64(shift), out=shifted)
        words ^= shifted
        words *= np.uint64(factor)
    np.right_shift(words, np.uint64(31), out=shifted)
    words ^= shifted
    return words
