"""Character 5-grams of texts, as whole numbers: two grams have one number exactly when they are equal.

Nothing is kept for a text: its grams are found when they are asked for, so memory does not grow with the characters.

Not covered: which grams two texts share, and what that means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

GRAM = 5
PAD = "\0"
BLOCK_CHARACTERS = 2**20
BLOCK_TEXTS = 2**14
DIRECT_BITS = 44

Array = np.ndarray[Any, Any]


class Grams:
    """The distinct 5-grams of texts. One that is shorter is padded at its end: it is one gram, equal only to itself."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [text.ljust(GRAM, PAD) for text in texts]
        self.lengths = np.fromiter(map(len, self._texts), dtype=np.int64, count=len(self._texts))
        """Characters of each text, padding counted."""
        seen = np.zeros(0x110000, dtype=bool)
        for block in self._blocks(BLOCK_TEXTS):
            seen[self._codes(block)] = True
        letters = np.flatnonzero(seen)
        self._letter = np.zeros(len(seen), dtype=np.uint64)
        self._letter[letters] = np.arange(len(letters), dtype=np.uint64)
        self._letters = max(len(letters), 2)
        self._trigrams: Array | None = None
        self.bits = (self._letters**GRAM - 1).bit_length()
        """A gram's number has at most as many."""
        if self.bits > DIRECT_BITS:  # Chinese, say: 3,000 letters would leave no bits for anything else
            found = [np.unique(self._trigram_codes(self._codes(block))) for block in self._blocks(BLOCK_TEXTS)]
            self._trigrams = np.unique(np.concatenate(found))
            self.bits = (len(self._trigrams) ** 2 - 1).bit_length()

    def blocks(self) -> Iterator[Array]:
        """Positions of the texts, in order, as many at a time as `distinct` and `all` take at once."""
        return self._blocks(min(BLOCK_TEXTS, 2 ** (64 - self.bits)))

    def all(self, texts: Array) -> Array:
        """The grams of the texts at these positions, each as often as it occurs, in any order."""
        return self._numbers(texts)[0]

    def distinct(self, texts: Array) -> tuple[Array, Array]:
        """The distinct grams of the texts at these positions.

        Args:
            texts: at most 2 ** (64 - bits) positions.

        Returns:
            The grams (uint64), one text after another, ascending in each; and the number of grams of each text.
        """
        numbers, owner = self._numbers(texts)
        owner <<= np.uint64(self.bits)
        numbers |= owner
        numbers.sort()
        numbers = numbers[distinct_in(numbers)]
        sizes = np.bincount((numbers >> np.uint64(self.bits)).astype(np.int64), minlength=len(texts))
        numbers &= np.uint64(2**self.bits - 1)
        return numbers, sizes

    def _blocks(self, most: int) -> Iterator[Array]:
        for part in slices(self.lengths, BLOCK_CHARACTERS, most):
            yield np.arange(part.start, part.stop)

    def _codes(self, texts: Array) -> Array:
        joined = "".join([self._texts[text] for text in texts.tolist()])
        return np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)

    def _numbers(self, texts: Array) -> tuple[Array, Array]:
        """The number of the gram at every place that has one, and the position in `texts` of the text it is in."""
        codes = self._codes(texts)
        if self._trigrams is None:
            letter = self._letter[codes]
            number = letter[: 1 - GRAM].copy()
            for step in range(1, GRAM):
                number *= np.uint64(self._letters)
                number += letter[step : len(letter) - GRAM + 1 + step]
        else:
            trigram = np.searchsorted(self._trigrams, self._trigram_codes(codes)).astype(np.uint64)
            number = trigram[:-2] * np.uint64(len(self._trigrams)) + trigram[2:]
        lengths = self.lengths[texts]
        whole = np.ones(len(number), dtype=bool)
        for step in range(1, GRAM):  # a gram that runs from one text into the next is none
            whole[np.cumsum(lengths)[:-1] - step] = False
        owner = np.repeat(np.arange(len(texts), dtype=np.uint64), lengths - GRAM + 1)
        return number[whole], owner

    def _trigram_codes(self, codes: Array) -> Array:
        letter = self._letter[codes]
        size = np.uint64(self._letters)  # below 2^21, so three fit
        return (letter[:-2] * size + letter[1:-1]) * size + letter[2:]


def slices(weights: Array, limit: int, most: int) -> Iterator[slice]:
    """Slices one after another, each of at most `most` items that weigh at most `limit` together, or of one item."""
    ends = np.cumsum(weights)
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + limit, side="right"))
        yield slice(start, start := max(min(stop, start + most), start + 1))


def distinct_in(ordered: Array) -> Array:
    """Where a sorted array has a value for the first time, as a mask."""
    first = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return first
