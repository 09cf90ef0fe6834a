"""Prefixes: the beginning of a prompt that other prompts share, computed once.

Compiling a program sends thousands of prompts that begin alike (instructions, demonstrations). `PrefixTree` is a radix
tree over tokens. It remembers the prompts that were seen lately, so it can say how much of a prompt another one shares;
and it keeps what was computed for such beginnings within a budget of bytes, dropping the least recently used first.
What a kept value is, it does not know.

Not covered: threads (only the engine's uses it).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

MINIMUM = 24
"""Tokens below which sharing costs more (a pass and a cache of its own) than it saves."""
REMEMBERED = 1024
"""Prompts that a new one is compared with."""


def shared_length(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading tokens `a` and `b` have in common."""
    width = min(len(a), len(b))
    differ = np.flatnonzero(a[:width] != b[:width])
    return int(differ[0]) if len(differ) else width


class _Node:
    """The tokens between one branching of the tree and the next."""

    __slots__ = ("children", "depth", "edge", "keeping", "kept", "nbytes", "prompts", "up")

    def __init__(self, edge: np.ndarray, up: _Node | None) -> None:
        self.edge, self.up = edge, up
        self.depth: int = (up.depth if up else 0) + len(edge)
        """Tokens from the root to the end of this edge."""
        self.children: dict[int, _Node] = {}
        self.prompts = 0
        """Remembered prompts that go through this edge or end with it: with two or more, it is shared."""
        self.kept: Any = None
        self.nbytes = 0
        self.keeping = 0
        """Nodes that keep something, this one and those below: `longest` looks for something to cut only where it
        pays."""

    def keep(self, value: Any, nbytes: int) -> None:
        """Keep `value`, or nothing when it is None."""
        change = (value is not None) - (self.kept is not None)
        self.kept, self.nbytes = value, nbytes
        node: _Node | None = self
        while node is not None:
            node.keeping += change
            node = node.up

    def find_kept(self) -> _Node:
        """This node or one below it that keeps something; there must be one."""
        node = self
        while node.kept is None:
            node = next(child for child in node.children.values() if child.keeping)
        return node


class PrefixTree:
    """Values by the tokens that they were computed from, and the prompts that were seen lately."""

    def __init__(
        self, budget_bytes: int, cut: Callable[[Any, int], tuple[Any, int]] | None = None, remember: int = REMEMBERED
    ) -> None:
        """
        Args:
            budget_bytes: what the kept values may take together.
            cut: (value, length) → (the value of its first `length` tokens, bytes); None where values cannot be cut,
                and serve prompts that begin with all of their tokens only.
            remember: prompts that a new one is compared with.
        """
        self.budget_bytes = budget_bytes
        self.nbytes = 0
        self._cut, self._remember = cut, remember
        self._root = _Node(np.empty(0, dtype=np.int64), None)
        self._recent: deque[np.ndarray] = deque()
        self._used: OrderedDict[_Node, None] = OrderedDict()

    def __len__(self) -> int:
        """Values kept."""
        return len(self._used)

    def note(self, prompt: np.ndarray) -> None:
        """Remember that `prompt` was seen."""
        for node in self._path(prompt):
            node.prompts += 1
        self._recent.append(prompt)
        if len(self._recent) > self._remember:
            self._forget(self._recent.popleft())

    def shared(self, prompt: np.ndarray) -> int:
        """Tokens of the longest beginning that `prompt`, noted before, shares with another remembered prompt.

        At least one token is always left over; below MINIMUM the answer is 0.
        """
        best = 0
        for node, matched in self._walk(prompt):
            if node.prompts < 2:
                break
            best = node.depth - len(node.edge) + matched
        best = min(best, len(prompt) - 1)
        return best if best >= MINIMUM else 0

    def longest(self, prompt: np.ndarray) -> tuple[int, Any]:
        """(length, value) of the longest kept beginning of `prompt` that leaves a token over; (0, None) without one."""
        found: _Node | None = None
        above, reached = self._root, 0
        for node, matched in self._walk(prompt[:-1]):
            if node.keeping:
                above, reached = node, node.depth - len(node.edge) + matched
            if node.kept is not None and matched == len(node.edge):
                found = node
        length = found.depth if found else 0
        # Something longer is kept that agrees further than what is kept whole: its beginning serves. For a little more
        # than there is already, another copy would not be worth its memory.
        if self._cut is not None and reached >= MINIMUM and reached > length + length // 8:
            longer = above.find_kept()
            self._used.move_to_end(longer)
            value, nbytes = self._cut(longer.kept, reached)
            self.keep(prompt[:reached], value, nbytes)
            return reached, value
        if found is None:
            return 0, None
        self._used.move_to_end(found)
        return length, found.kept

    def keep(self, tokens: np.ndarray, value: Any, nbytes: int) -> None:
        """Keep what was computed for `tokens`; older values make room. One larger than the whole budget is not kept."""
        if nbytes > self.budget_bytes:
            return
        node = [self._root, *self._path(tokens)][-1]
        self.nbytes += nbytes - node.nbytes
        node.keep(value, nbytes)
        self._used[node] = None
        self._used.move_to_end(node)
        self.shed(self.budget_bytes)

    def shed(self, nbytes: int) -> None:
        """Drop values, the least recently used first, until at most `nbytes` are kept."""
        while self.nbytes > nbytes:
            node, _ = self._used.popitem(last=False)
            self.nbytes -= node.nbytes
            node.keep(None, 0)
            self._prune(node)

    def clear(self) -> None:
        """Forget everything."""
        self._root.children.clear()
        self._recent.clear()
        self._used.clear()
        self.nbytes = 0

    def _walk(self, tokens: np.ndarray) -> Iterator[tuple[_Node, int]]:
        """The nodes along `tokens`, each with how many tokens of its edge match; the last may match in part."""
        node, at = self._root, 0
        while at < len(tokens) and (child := node.children.get(int(tokens[at]))) is not None:
            matched = shared_length(child.edge, tokens[at:])
            whole = matched == len(child.edge)  # before the yield: the caller may split the edge
            yield child, matched
            if not whole:
                return
            node, at = child, at + matched

    def _path(self, tokens: np.ndarray) -> list[_Node]:
        """The nodes that spell `tokens` exactly, made where they are missing."""
        path: list[_Node] = []
        for node, matched in self._walk(tokens):
            path.append(node if matched == len(node.edge) else self._split(node, matched))
        end = path[-1] if path else self._root
        if end.depth < len(tokens):
            leaf = _Node(tokens[end.depth :], end)
            end.children[int(leaf.edge[0])] = leaf
            path.append(leaf)
        return path

    def _split(self, node: _Node, at: int) -> _Node:
        """Put a node into the edge of `node`, `at` tokens from its start."""
        up = node.up
        assert up is not None
        upper = _Node(node.edge[:at], up)
        upper.prompts, upper.keeping = node.prompts, node.keeping
        up.children[int(upper.edge[0])] = upper
        node.edge, node.up = node.edge[at:], upper
        upper.children[int(node.edge[0])] = node
        return upper

    def _forget(self, prompt: np.ndarray) -> None:
        path = self._path(prompt)
        for node in path:
            node.prompts -= 1
        self._prune(path[-1])

    def _prune(self, node: _Node) -> None:
        """Remove what no prompt and no value goes through any more, from `node` upwards.

        An edge that was split stays split: joining it again would cost more than a node does.
        """
        while node.up is not None and not (node.prompts or node.children or node.kept is not None):
            del node.up.children[int(node.edge[0])]
            node = node.up
