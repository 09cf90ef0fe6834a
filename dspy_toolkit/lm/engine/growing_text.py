"""The text of a reply while it grows: a token more costs decoding some tokens, not all of them.

What is settled is not decoded again. It ends between two characters, behind which the tokenizer reads on as it would have
from the beginning, which is looked for and not assumed: some tokenizers leave a space out where a text begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

WINDOW = 32
"""Tokens behind what is settled, from which on half of them are tried to be."""
HALF_A_CHARACTER = "\ufffd"


class GrowingText:
    """The text of tokens to which others are added."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        """Args: decode: gives the text of tokens, whole."""
        self._decode = decode
        self._settled, self._begin = "", 0
        self._rest, self._end = "", 0
        self._try_at = WINDOW

    def of(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, which begin with those of the last call."""
        if len(tokens) != self._end:
            self._rest, self._end = self._decode(tokens[self._begin :]), len(tokens)
            if self._end - self._begin >= self._try_at:
                self._settle(tokens)
        return self._settled + self._rest

    def _settle(self, tokens: Sequence[int]) -> None:
        middle = (self._begin + self._end) // 2
        rest = self._decode(tokens[middle:])
        more = self._rest[: len(self._rest) - len(rest)]
        parted = self._rest.endswith(rest) and not more.endswith(HALF_A_CHARACTER)
        if parted and not rest.startswith(HALF_A_CHARACTER):
            self._settled, self._begin, self._rest, self._try_at = self._settled + more, middle, rest, WINDOW
        else:  # in the middle of a character
            self._try_at = self._end - self._begin + 1
