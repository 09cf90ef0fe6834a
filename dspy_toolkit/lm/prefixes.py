"""Remembered prefixes: the part of a prompt that other prompts share, computed once.

Compiling a program sends thousands of prompts that begin alike (instructions, demonstrations). `PrefixStore` keeps the KV
caches of such beginnings, by their tokens, under a byte budget, the least recently used going first. Nothing here knows
how a cache is computed or what it is; the engine hands caches in and takes them out.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

MINIMUM = 24
"""Tokens below which sharing costs more than it saves."""


def shared_length(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading tokens `a` and `b` have in common."""
    width = min(len(a), len(b))
    differ = np.flatnonzero(a[:width] != b[:width])
    return int(differ[0]) if len(differ) else width


class PrefixStore:
    """KV caches by the tokens that they were computed from."""

    def __init__(self, budget_bytes: int, remember: int = 64) -> None:
        """Args: budget_bytes: what the kept caches may take together; remember: recent prompts to compare a new one with."""
        self.budget_bytes = budget_bytes
        self.nbytes = 0
        self._entries: OrderedDict[bytes, tuple[np.ndarray, Any, int]] = OrderedDict()
        self._recent: deque[np.ndarray] = deque(maxlen=remember)

    def __len__(self) -> int:
        return len(self._entries)

    def worth_sharing(self, prompt: np.ndarray, others: Iterable[np.ndarray]) -> int:
        """The longest beginning (in tokens) that `prompt` shares with one of `others` or with a recent prompt.

        At least one token is always left over for the row itself; below MINIMUM the answer is 0.
        """
        best = 0
        for other in (*others, *self._recent):
            if other is not prompt:
                best = max(best, shared_length(prompt, other))
        best = min(best, len(prompt) - 1)
        return best if best >= MINIMUM else 0

    def remember(self, prompts: Sequence[np.ndarray]) -> None:
        """Note prompts, so that a later one that begins like them is recognised."""
        self._recent.extend(prompts)

    def longest(self, prompt: np.ndarray) -> tuple[int, Any]:
        """(length, cache) of the longest kept beginning of `prompt` that leaves a token over; (0, None) without one."""
        found: tuple[int, Any] = (0, None)
        key_found = None
        for key, (tokens, cache, _) in self._entries.items():
            size = len(tokens)
            if found[0] < size < len(prompt) and np.array_equal(prompt[:size], tokens):
                found, key_found = (size, cache), key
        if key_found is not None:
            self._entries.move_to_end(key_found)
        return found

    def keep(self, tokens: np.ndarray, cache: Any, nbytes: int) -> None:
        """Keep a computed cache; older ones make room. One larger than the whole budget is not kept."""
        if nbytes > self.budget_bytes:
            return
        key = tokens.tobytes()
        if key in self._entries:
            self.nbytes -= self._entries.pop(key)[2]
        self._entries[key] = (tokens, cache, nbytes)
        self.nbytes += nbytes
        while self.nbytes > self.budget_bytes:
            self.nbytes -= self._entries.popitem(last=False)[1][2]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._recent.clear()
        self.nbytes = 0
