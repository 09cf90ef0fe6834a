"""Which texts are near-duplicates: exactly those whose sets of character 5-grams have a Jaccard similarity ≥ threshold.

The search is exact, since a pair that is missed may stand on both sides of a split. It is a set-similarity join with
prefix filtering (Bayardo, Ma and Srikant, "Scaling up all pairs similarity search", WWW 2007): with the 5-grams of
every text sorted from rare to common, two texts with J ≥ t share at least one among the first n - ceil(t n) + 1 of
each, n being the number of its own 5-grams. Only those are indexed, and they are rare.

MinHash LSH was not taken: tuned for 0.8 with the usual 128 permutations, it misses several pairs in a hundred there.

Time and memory grow with the number of characters: about two seconds a million on a 2-core machine.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

GRAM = 5
PAD = "\0"


def comparable(values: Iterable[str]) -> str:
    """The text under which a row's inputs are compared: case and runs of white space do not count."""
    return "\x1f".join(" ".join(value.casefold().split()) for value in values)


class Neighbors:
    """An index of texts. Every text is known from the start; `candidates` finds those that were added."""

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        """Args: texts: from `comparable`. threshold: Jaccard similarity, in (0, 1]."""
        self._threshold = threshold
        self._grams, self._starts = _grams_of(texts)
        self._sizes = np.diff(self._starts)
        self._postings: defaultdict[int, list[int]] = defaultdict(list)
        self._marked = np.zeros(int(self._grams.max(initial=0)) + 1, dtype=bool)

    def add(self, text: int) -> None:
        """Let later `candidates` find the text with this position."""
        for gram in self._prefix(text):
            self._postings[gram].append(text)

    def candidates(self, text: int) -> np.ndarray[Any, Any]:
        """Ascending positions of the added texts that may be near `text`; no near one is left out."""
        found: set[int] = set()
        for gram in self._prefix(text):
            if gram in self._postings:
                found.update(self._postings[gram])
        found.discard(text)
        positions = np.fromiter(found, dtype=np.int64, count=len(found))
        positions.sort()
        size, sizes = self._sizes[text], self._sizes[positions]
        return positions[np.minimum(size, sizes) >= self._threshold * np.maximum(size, sizes) - 1e-9]

    def near(self, text: int, positions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Those of `positions` whose Jaccard similarity with `text` reaches the threshold."""
        if not len(positions):
            return positions
        own = self._of(text)
        self._marked[own] = True
        others = np.concatenate([self._of(position) for position in positions])
        sizes = self._sizes[positions]
        shared = np.add.reduceat(self._marked[others], np.cumsum(sizes) - sizes, dtype=np.int64)
        self._marked[own] = False
        return positions[shared >= self._threshold * (len(own) + sizes - shared) - 1e-9]

    def _of(self, text: int) -> np.ndarray[Any, Any]:
        return self._grams[self._starts[text] : self._starts[text + 1]]

    def _prefix(self, text: int) -> list[int]:
        size = int(self._sizes[text])
        length = size - math.ceil(self._threshold * size - 1e-9) + 1
        return self._of(text)[:length].tolist()


def _grams_of(texts: Sequence[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The distinct 5-grams of each text as numbers, rarest first, one text after another; and where each text starts.

    A text that is shorter than a gram is padded at its end: it is one gram, equal only to itself.
    """
    padded = [text.ljust(GRAM, PAD) for text in texts]
    lengths = np.array([len(text) for text in padded], dtype=np.int64)
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    if not len(codes):
        return np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64)
    letters, letter = np.unique(codes, return_inverse=True)
    gram = letter.astype(np.int64)
    for step in range(1, GRAM):
        # Numbered afresh at each step, so that the numbers stay small and exact for any alphabet.
        gram = np.unique(gram[:-1] * len(letters) + letter[step:], return_inverse=True)[1].astype(np.int64)
    owner = np.repeat(np.arange(len(texts)), lengths)
    whole = owner[: len(gram)] == owner[GRAM - 1 :]  # a gram that runs from one text into the next is none
    gram, owner = gram[whole], owner[: len(gram)][whole]

    kinds = int(gram.max()) + 1
    pairs = np.unique(owner * kinds + gram)
    owner, gram = pairs // kinds, pairs % kinds
    rarity = np.empty(kinds, dtype=np.int64)
    rarity[np.argsort(np.bincount(gram, minlength=kinds), kind="stable")] = np.arange(kinds)
    pairs = np.sort(owner * kinds + rarity[gram])
    starts = np.searchsorted(pairs // kinds, np.arange(len(texts) + 1))
    return pairs % kinds, starts
