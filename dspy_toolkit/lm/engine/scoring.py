"""Scoring labels: the sequences whose prompts are in the caches, and whose next tokens are given rather than chosen.

The last token of a prompt and the tokens of the labels after it make a tree (`spelling`). A pass of the model goes down
some levels of it, for all sequences that are scored together: rows of the caches are copied where paths part. One pass
over everything computes again what paths share, and pads short ones; a pass a level computes each token once. `plan`
finds what costs least, mostly one pass or two.

Not covered: scoring a text against a tree without copies of rows (tree attention), which needs positions that the
models of mlx_lm do not take.
"""

from __future__ import annotations

import time
from collections import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dspy_toolkit.lm.engine.sequence import Outcome, Sequence
from dspy_toolkit.lm.engine.spelling import END, Path, log_sum_exp, longest

PASS_COST = {"cpu": 24, "metal": 96, "cuda": 256}
"""What a pass costs beyond its tokens, by device, in tokens: it reads the weights. Measured on a CPU (SmolLM2, one core: 0.13 s
and 5 ms a row); on GPUs, which compute some hundred tokens in the time that reading the weights takes, a guess.
"""


@dataclass
class ScoringCounts:
    """What the passes took together."""

    tokens: int = 0
    """Input positions of the model, padding included."""
    seconds: float = 0.0


def plan(paths: abc.Sequence[Path], pass_cost: int) -> list[tuple[int, int]]:
    """The passes that visit every node of `paths` at the least cost, as (first depth, depth after the last).

    A pass from `a` to `b` has a row for each different stretch of a path there, all `b - a` tokens wide.

    Args:
        paths: none empty.
        pass_cost: what a pass costs beyond its positions, in positions.
    """
    deepest = max(len(path) for path in paths)
    best: list[tuple[int, list[tuple[int, int]]]] = [(0, [])]
    for end in range(1, deepest + 1):
        best.append(
            min(
                (
                    cost + pass_cost + (end - begin) * len(heads(paths, begin, end)),
                    [*passes, (begin, end)],
                )
                for begin, (cost, passes) in enumerate(best)
            )
        )
    return best[deepest][1]


def heads(paths: abc.Sequence[Path], begin: int, end: int) -> list[Path]:
    """The rows of a pass: what of the paths lies before depth `end`, of those that go beyond `begin`."""
    return longest(path[:end] for path in paths if len(path) > begin)


class Scoring:
    """Sequences whose labels are scored together, row by row of the caches. For the engine's thread only."""

    def __init__(self, model: Any, stop_tokens: frozenset[int], device: str) -> None:
        """Args: device: `metal`, `cuda` or `cpu`."""
        self.sequences: list[Sequence] = []
        self.caches: list[Any] = []
        self.counts = ScoringCounts()
        self._model, self._stop_tokens = model, sorted(stop_tokens)
        self._on_cpu, self._pass_cost = device == "cpu", PASS_COST[device]
        self._left: dict[Sequence, list[Path]] = {}
        """Paths still to be computed."""
        self._values: dict[Sequence, dict[Path, float]] = {}

    def join(self, sequences: abc.Sequence[Sequence], caches: list[Any]) -> None:
        """Add sequences whose prompts are in `caches`, but for the pending last token."""
        from dspy_toolkit.lm.engine.caches import extend

        for sequence in sequences:
            assert sequence.spelling is not None
            self._left[sequence] = list(sequence.spelling.paths)
            self._values[sequence] = {}
        self.sequences.extend(sequences)
        self.caches = extend(self.caches, caches)

    def keep(self, rows: abc.Sequence[int]) -> None:
        """Drop all sequences but those in some rows."""
        from dspy_toolkit.lm.engine.caches import keep_rows

        kept = [self.sequences[row] for row in rows]
        for sequence in set(self.sequences).difference(kept):
            del self._left[sequence], self._values[sequence]
        self.sequences = kept
        self.caches = keep_rows(self.caches, rows)

    def step(self, positions: int, room: float, own: Callable[[Sequence], int]) -> list[tuple[Sequence, Outcome]]:
        """Score what fits into a step, the oldest first; the sequences that are done.

        Args:
            positions: about how many tokens to compute; one path at least is.
            room: tokens of KV cache that there is memory for.
            own: tokens that a row of a sequence holds.
        """
        began = time.perf_counter()
        taken = self._take(positions, room, own)
        tree = [(row, *path) for row, paths in taken.items() for path in paths]
        caches, rows = self.caches, {(row,): row for row in taken}
        for begin, end in plan(tree, self._pass_cost):
            caches, rows = self._pass(caches, rows, heads(tree, begin, end), begin)
        over: list[tuple[Sequence, Outcome]] = []
        for row in taken:
            sequence = self.sequences[row]
            if not self._left[sequence]:
                assert sequence.spelling is not None
                over.append((sequence, sequence.take_scores(sequence.spelling.sums(self._values[sequence]))))
        if over:
            gone = {sequence for sequence, _ in over}
            self.keep([row for row, sequence in enumerate(self.sequences) if sequence not in gone])
        self.counts.seconds += time.perf_counter() - began
        return over

    def _take(self, positions: int, room: float, own: Callable[[Sequence], int]) -> dict[int, list[Path]]:
        """(row, paths of its sequence) for one step; they are no longer left."""
        taken: dict[int, list[Path]] = {}
        for row, sequence in enumerate(self.sequences):
            left = self._left[sequence]
            held = own(sequence)
            while left and (not taken or (positions > 0 and room > 0)):
                if sequence.first_token is None:
                    sequence.first_token = time.monotonic()
                path = left.pop(0)
                taken.setdefault(row, []).append(path)
                positions -= len(path) + 1
                room -= held + len(path) + 1
        return taken

    def _pass(
        self, caches: list[Any], rows: dict[Path, int], wanted: list[Path], begin: int
    ) -> tuple[list[Any], dict[Path, int]]:
        """Feed what lies beyond depth `begin` of the paths `wanted`, whose first element is a row of `self.caches`.

        Args:
            caches: after the first `begin` elements of each path, in the row that `rows` names; they are not changed.

        Returns:
            The caches after all of it, and the row of each path.
        """
        import mlx.core as mx

        from dspy_toolkit.lm.engine.caches import branch

        pieces = [[self._token(path, depth) for depth in range(begin, len(path))] for path in wanted]
        lengths = [len(piece) for piece in pieces]
        width = max(lengths)
        caches = branch(caches, [rows[path[: begin or 1]] for path in wanted], width)
        padding = [width - length for length in lengths]
        if any(padding):
            for cache in caches:
                cache.prepare(lengths=lengths, right_padding=padding)
        fed = mx.array([piece + [0] * pad for piece, pad in zip(pieces, padding, strict=True)])
        logits = self._model(fed, cache=caches)
        if any(padding):
            for cache in caches:
                cache.finalize()
        self._read(logits, wanted, begin)
        self.counts.tokens += len(wanted) * width
        return caches, {path: row for row, path in enumerate(wanted)}

    def _token(self, path: Path, depth: int) -> int:
        return path[depth] if depth else self.sequences[path[0]].pending[0]

    def _read(self, logits: Any, wanted: list[Path], begin: int) -> None:
        """Note the log-probabilities that matter, from logits of shape (rows, width, vocabulary)."""
        places: dict[tuple[int, Path], tuple[int, int]] = {}
        for row, path in enumerate(wanted):
            for depth in range(begin, len(path)):
                places.setdefault((path[0], path[1 : depth + 1]), (row, depth - begin))
        tokens = []
        for owner, node in places:
            spelling = self.sequences[owner].spelling
            assert spelling is not None
            tokens.append(spelling.following[node])
        asked = [[each for token in after for each in self._stands_for(token)] for after in tokens]
        found = (_numpy_logprobs if self._on_cpu else _mlx_logprobs)(logits, list(places.values()), asked)
        for (owner, node), after, logprobs in zip(places, tokens, found, strict=True):
            values, given = self._values[self.sequences[owner]], iter(logprobs)
            for token in after:
                alternatives = [next(given) for _ in self._stands_for(token)]
                values[*node, token] = float(log_sum_exp(np.array(alternatives)))

    def _stands_for(self, token: int) -> abc.Sequence[int]:
        return self._stop_tokens if token == END else (token,)


def _numpy_logprobs(logits: Any, places: list[tuple[int, int]], asked: list[list[int]]) -> list[list[float]]:
    """The log-probabilities of some tokens at some places."""
    values = np.array(logits, copy=False)
    found = []
    for (row, position), tokens in zip(places, asked, strict=True):
        scores = values[row, position]
        found.append((scores[tokens] - log_sum_exp(scores)).tolist())
    return found


def _mlx_logprobs(logits: Any, places: list[tuple[int, int]], asked: list[list[int]]) -> list[list[float]]:
    """The same, computed where the logits are: only what is asked for leaves the device."""
    import mlx.core as mx

    rows, positions = (mx.array(list(each)) for each in zip(*places, strict=True))
    scores = logits[rows, positions].astype(mx.float32)
    total = mx.logsumexp(scores, axis=-1)
    index = np.repeat(np.arange(len(asked)), [len(tokens) for tokens in asked])
    flat = mx.array(index), mx.array([token for tokens in asked for token in tokens])
    values = iter((scores[flat[0], flat[1]] - total[flat[0]]).tolist())
    return [[next(values) for _ in tokens] for tokens in asked]
