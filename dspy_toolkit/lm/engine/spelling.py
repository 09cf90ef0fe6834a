"""Labels in tokens: what of each is counted, which places in the text that takes, and the sums. Pure, of no model.

`spell` reads the labels of one request (`protocol.LabelScores` says what counts) into a `Spelling`: a tree of tokens, of
which every node is a place after which the model's next token matters. Labels that begin alike share nodes.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, takewhile
from typing import Any, TypeAlias

import numpy as np

from dspy_toolkit.errors import RequestRefused
from dspy_toolkit.lm.protocol import LabelScores

END = -1
"""Stands for any of the model's stop tokens."""

Path: TypeAlias = tuple[int, ...]
"""Tokens from the place where counting begins."""


@dataclass(frozen=True)
class Spelling:
    """The labels of one request in tokens."""

    asked: LabelScores
    begin: Path
    """What every reply begins with, not counted: tokens of the prefix."""
    counted: tuple[Path, ...]
    """Of each label; none begins with another. END can be the last."""
    whole: tuple[Path, ...]
    """Of each label: all tokens of the reply, END apart."""

    @cached_property
    def following(self) -> dict[Path, tuple[int, ...]]:
        """The tree: (node, the tokens after it whose log-probability matters). The root is the empty path."""
        tree: dict[Path, dict[int, None]] = {}
        for path in self.counted:
            for depth, token in enumerate(path):
                tree.setdefault(path[:depth], {})[token] = None
        return {node: tuple(tokens) for node, tokens in tree.items()}

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """Fed to the model, these visit every node: sorted, and none is the beginning of another."""
        return tuple(longest(path[:-1] for path in self.counted))

    @property
    def depth(self) -> int:
        """Tokens of the longest path."""
        return max(len(path) for path in self.paths)

    @property
    def size(self) -> int:
        """Tokens of the longest reply."""
        return max(len(tokens) for tokens in self.whole)

    def sums(self, values: Mapping[Path, float]) -> list[float]:
        """The labels' log-probabilities.

        Args:
            values: log-probabilities of tokens, by the path that ends in the token; of every token after every node.
        """
        paths = ([path[:depth] for depth in range(1, len(path) + 1)] for path in self.counted)
        return [min(sum(values[path] for path in each), 0.0) for each in paths]


def spell(asked: LabelScores, spans: Callable[[str], abc.Sequence[tuple[int, int]]], *, ends: bool) -> Spelling:
    """The labels in tokens.

    Args:
        spans: a text's tokens, each with the place where it ends in the text.
        ends: whether the model has a stop token.

    Raises:
        RequestRefused: two labels are the same tokens, or nothing in the suffix ends a label.
    """
    start = len(asked.prefix)
    read = [spans(f"{asked.prefix}{label}{asked.suffix}") for label in asked.labels]
    whole = tuple(tuple(token for token, _ in spanned) for spanned in read)
    shared = min(_reach(spanned, start) for spanned in read)
    while len({tokens[:shared] for tokens in whole}) > 1:
        shared -= 1
    within = [_reach(spanned, start + len(label)) for label, spanned in zip(asked.labels, read, strict=True)]
    rest = max(len(tokens) - size for tokens, size in zip(whole, within, strict=True))
    begun = any(one.startswith(shorter) for shorter, one in pairwise(sorted(asked.labels)))
    cut = all(
        shared < size and spanned[size - 1][1] == start + len(label)
        for label, spanned, size in zip(asked.labels, read, within, strict=True)
    )
    # What ends a label says nothing about the others where none of them goes on, and would take a place of its own.
    tries = (_counted(whole, shared, within, beyond) for beyond in range(0 if cut and not begun else 1, rest + 2))
    counted = next((paths for paths in tries if len(longest(paths)) == len(paths)), None)
    if counted is None:
        alike = [label for label, tokens in zip(asked.labels, whole, strict=True) if whole.count(tokens) > 1]
        raise RequestRefused(f"The labels {alike} are the same tokens to this model. Leave out all but one of them.")
    if not ends and any(path[-1] == END for path in counted):
        raise RequestRefused(
            "This model has no token that ends its turn. Give label_scores a suffix that ends a label."
        )
    return Spelling(asked, whole[0][:shared], counted, whole)


def _reach(spanned: abc.Sequence[tuple[int, int]], place: int) -> int:
    """How many tokens come before the first that goes beyond `place`."""
    return sum(1 for _ in takewhile(lambda span: span[1] <= place, spanned))


def _counted(whole: abc.Sequence[Path], begin: int, within: abc.Sequence[int], beyond: int) -> tuple[Path, ...]:
    """Of each reply the tokens from `begin` to the label's last, `within`, and `beyond` more; END stands for one too many.

    With nothing beyond, the labels' own tokens alone.
    """
    return tuple(
        (*tokens[begin : size + beyond], *((END,) if size + beyond > len(tokens) else ()))
        for tokens, size in zip(whole, within, strict=True)
    )


def log_sum_exp(values: np.ndarray) -> Any:
    """Of a row of logits, or of log-probabilities. NumPy takes a fifteenth of MLX's time on a CPU."""
    top = values.max()
    return top + np.log(np.exp(values - top).sum())


def longest(paths: Iterable[Path]) -> list[Path]:
    """Those of some paths that no other one begins with, each once, sorted."""
    ordered = sorted(set(paths))
    return [
        path for path, after in zip(ordered, [*ordered[1:], ()], strict=True) if after[: len(path)] != path or not after
    ]
