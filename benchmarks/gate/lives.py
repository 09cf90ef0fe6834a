"""Lives of projects whose truth is known: every night a search, perhaps an opening of the sealed test, perhaps a promotion.

A life begins with a champion that gets half of all rows right. Every night a search makes ten candidates, scores them on the
validation rows that a light search reads, and puts forward the best of these scores. On a night in five one of the ten is a
find, whose true gain over the champion is 3 to 12 points, times what is left of the 30 points that can be gained at all;
every other one is worse than the champion (the half of a normal distribution with a standard deviation of 4 points). Scores
are 0/1, and candidate and champion differ on 20 % of the rows, or on as many as the gain needs.

Rows last. A champion that was lucky on the rows that a search reads, or on sealed ones, stays so, and later candidates find
it harder to beat: a candidate can only win rows that the champion gets wrong. So of each sample of rows the number that the
champion gets right is kept, and a candidate's wins and losses are drawn from it. That is as exact as rows one by one, and
runs all lives at once.

Of a project that grows, new rows are placed by the shares that its policy has for so many rows, and enter the samples as
they do in the pipeline, which orders rows by a hash. One row in a hundred is edited a night without a change of meaning.

The gate is the toolkit's: `worth_opening`, `alpha_of`, and the verdict that `decide` comes to. It is asked for each candidate
that might be shown to be better, not for those that cannot be. The spending of version 0.1.0 is written out here, since the toolkit no longer has it.

Not covered: rows that share groups, graded scores, cheaper candidates, and searches that go on from a refused find.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dspy_toolkit.datasets.fractions import default_fractions
from dspy_toolkit.datasets.spec import Fractions
from dspy_toolkit.gate import worth_opening
from dspy_toolkit.gate.evidence import compare
from dspy_toolkit.gate.ledger import SHARE, alpha_of
from dspy_toolkit.gate.verdict import weigh
from dspy_toolkit.optimizers.pool.policy import rungs
from dspy_toolkit.pipeline.compare import MOST_ROWS
from dspy_toolkit.pipeline.tuned_on import rows_read

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Flags = NDArray[np.bool_]

NIGHTS = 365
RATE = 0.05
START, LIMIT = 0.5, 0.8
"""True scores: of the first champion, and the highest that there can be."""
CANDIDATES = 10
"""Of one search: a light budget has room for so many."""
LIGHT, MEDIUM = 300, 1_200
"""LM calls of two budgets, which the number of validation rows that a search reads follows."""
FINDS = 0.2
"""The share of nights on which a candidate is truly better."""
FOUND = (0.03, 0.12)
"""How much better, while nothing has been gained yet."""
WORSE = 0.04
DISCORDANCE = 0.2
GROWTH, EDITED = 0.01, 0.01
"""Of the rows of a project that grows: what is added a night, and what is edited."""


class Project(NamedTuple):
    """What the nights are of."""

    rows: int
    grows: bool = False

    def on(self, night: int) -> int:
        """Its rows on that night, from 0."""
        return int(self.rows * (1 + GROWTH) ** night) if self.grows else self.rows


@dataclass
class Sample:
    """The rows that come first in the order of hashes, `most` at most, in every life."""

    random: np.random.Generator
    most: int
    lives: int
    drawn_from: Ints = field(init=False)
    size: Ints = field(init=False)
    right: Ints = field(init=False)
    """How many of them the champion gets right."""

    def __post_init__(self) -> None:
        self.drawn_from, self.size, self.right = (np.zeros(self.lives, dtype=np.int64) for _ in range(3))

    def add(self, rows: Ints, score: Floats) -> Ints:
        """Add rows to what it is drawn from, and return how many of them it left out.

        Args:
            rows: how many, in each life.
            score: the champion's true one, in each life.
        """
        size = np.minimum(self.drawn_from + rows, self.most)
        entering = self.random.hypergeometric(rows, self.drawn_from, size)
        leaving = self.size + entering - size
        gone = self.random.hypergeometric(self.right, self.size - self.right, leaving)
        self.right += self.random.binomial(entering, score) - gone
        self.drawn_from, self.size = self.drawn_from + rows, size
        return rows - entering

    def differences(self, score: Floats, gain: Floats) -> tuple[Ints, Ints]:
        """The rows that candidates of such true gains win and lose: of shape (lives,), or (lives, candidates).

        Args:
            score: the champion's true one, in each life.
            gain: the candidates', in the shape that is returned.
        """
        size, right, score = (part.reshape(-1, *[1] * (gain.ndim - 1)) for part in (self.size, self.right, score))
        differ = np.maximum(DISCORDANCE, np.abs(gain))
        wins = self.random.binomial(size - right, np.minimum((differ + gain) / 2 / (1 - score), 1))
        losses = self.random.binomial(right, np.minimum((differ - gain) / 2 / score, 1))
        return wins, losses


# ---- what the policies differ in ----


class Spending:
    """What each opening may spend, in every life: the ledger that ships, in memory. Edits and new rows bring nothing back."""

    def __init__(self, lives: int) -> None:
        self.looks = np.zeros(lives, dtype=np.int64)
        self.alphas = np.array([alpha_of(RATE, look) for look in range(1, NIGHTS + 1)])

    def night(self, kept: float) -> None:
        """A night passes; `kept` is the share of the sealed rows that were there before, as they were."""

    def grant(self, opened: Flags) -> Floats:
        """The alpha of each life, spent where it is opened."""
        alphas = self.alphas[self.looks]
        self.looks += opened
        return alphas


class OldSpending(Spending):
    """That of version 0.1.0: a quarter of what is left, and an earlier opening counts by the rows that it saw as they are."""

    def __init__(self, lives: int) -> None:
        super().__init__(lives)
        self.spent = np.zeros(lives)

    def night(self, kept: float) -> None:
        """See `Spending`."""
        self.spent *= kept

    def grant(self, opened: Flags) -> Floats:
        """See `Spending`."""
        alphas = (RATE - self.spent) * SHARE
        self.spent += alphas * opened
        self.looks += opened
        return alphas


@cache
def _worth(size: int) -> Flags:
    """Whether so many wins and losses on `size` validation rows are worth an opening; indexed by both."""
    found = np.zeros((size + 1, size + 1), dtype=bool)
    for wins in range(size + 1):
        for losses in range(size + 1 - wins):
            same = size - wins - losses
            ours, theirs = [1] * wins + [0] * (losses + same), [0] * wins + [1] * losses + [0] * same
            found[wins, losses] = worth_opening(ours, theirs, range(size)).worth
    return found


def speaks(wins: Ints, losses: Ints, size: int) -> Flags:
    """Whether validation speaks for a candidate, as the gate that ships has it."""
    return _worth(size)[wins, losses]


def not_worse(wins: Ints, losses: Ints, size: int) -> Flags:
    """The same of version 0.1.0."""
    return wins >= losses


def old_fractions(rows: int) -> Fractions:
    """The shares of version 0.1.0, for any number of rows."""
    return Fractions(train=0.4, val=0.27, sealed=0.33)


@dataclass(frozen=True)
class Policy:
    """How rows are divided, when the sealed test is opened, and what an opening may spend."""

    name: str
    fractions: Callable[[int], Fractions]
    opens: Callable[[Ints, Ints, int], Flags]
    spending: type[Spending]
    unread_join: bool
    """Whether validation rows that no search has read join the sealed test."""
    most_rows: int
    """Of the sealed test."""
    repeats: bool = False
    """Whether each night makes the candidates of the first one again, as long as the rows are the same."""


SHIPS = Policy("ships", default_fractions, speaks, Spending, True, MOST_ROWS)
OLD = Policy("0.1.0", old_fractions, not_worse, OldSpending, False, 10**9, repeats=True)
OLD_NEW_NIGHTS = Policy("0.1.0, new nights", old_fractions, not_worse, OldSpending, False, 10**9)
POLICIES = (SHIPS, OLD, OLD_NEW_NIGHTS)


# ---- lives ----

World = Callable[[np.random.Generator, "Floats"], "Floats"]
"""(random, the champions' true scores) → the true gains of a night's candidates, of shape (lives, candidates)."""


def finds(random: np.random.Generator, score: Floats) -> Floats:
    """A candidate is better on some nights, all others are worse."""
    gains = -np.abs(random.normal(0, WORSE, (len(score), CANDIDATES)))
    found = random.uniform(*FOUND, len(score)) * (LIMIT - score) / (LIMIT - START)
    gains[:, -1] = np.where(random.uniform(size=len(score)) < FINDS, found, gains[:, -1])
    return gains


def nothing(random: np.random.Generator, score: Floats) -> Floats:
    """Every candidate is as good as the champion: the most that can be promoted without being better."""
    return np.zeros((len(score), CANDIDATES))


def one(gain: float) -> World:
    """A search whose last candidate has that true gain, the others being worse."""

    def gains(random: np.random.Generator, score: Floats) -> Floats:
        found = -np.abs(random.normal(0, WORSE, (len(score), CANDIDATES)))
        found[:, -1] = gain
        return found

    return gains


class Night(NamedTuple):
    """What happened in one night, in each life."""

    opened: Flags
    gain: Floats
    """The true one of the candidate that was put forward."""
    promoted: Flags


class Lives:
    """Lives of one project under one policy, all at once."""

    def __init__(
        self, project: Project, policy: Policy, world: World, lives: int, seed: int = 0, calls: int = LIGHT
    ) -> None:
        """Args: seed: of all that is drawn; calls: LM calls of a search."""
        self.project, self.policy, self.world = project, policy, world
        self.random = np.random.default_rng(seed)
        self.score = np.full(lives, START)
        most_read = rows_read(rungs(project.on(NIGHTS), calls, 1)[-1])
        self.read = Sample(self.random, most_read, lives)
        self.sealed = Sample(self.random, policy.most_rows, lives)
        self.spending = policy.spending(lives)
        self.number, self.placed = 0, 0
        self.shares = {"val": 0.0, "sealed": 0.0}
        self._place()

    def night(self) -> Night:
        """A search, what the gate makes of it, and the rows of the next night."""
        lives = np.arange(len(self.score))
        gains = self.world(self.random, self.score)
        wins, losses = self.read.differences(self.score, gains)
        # Candidates stand in no order: of equal ones each is as likely to be put forward.
        best = (wins - losses + self.random.uniform(0, 0.5, gains.shape)).argmax(axis=1)
        wins, losses, gain = (part[lives, best] for part in (wins, losses, gains))
        opened = self.policy.opens(wins, losses, int(self.read.size[0]))
        if self.policy.repeats and self.number and not self.project.grows:
            opened = np.zeros_like(opened)
        alphas = self.spending.grant(opened)
        won, lost = self.sealed.differences(self.score, gain)
        promoted = opened & may_promote(won, lost, alphas)
        for life in np.flatnonzero(promoted):
            counts = int(won[life]), int(lost[life]), int(self.sealed.size[life])
            promoted[life] = promotes(*counts, float(alphas[life]), int(self.spending.looks[life]))
        self.score = self.score + gain * promoted
        self.read.right += (wins - losses) * promoted
        self.sealed.right += (won - lost) * promoted
        self.number += 1
        self._place()
        return Night(opened, gain, promoted)

    def _place(self) -> None:
        """Put the rows that are new into the splits, and from there into what a search reads and what is tested on."""
        rows = self.project.on(self.number)
        shares, before = self.policy.fractions(rows), dict(self.shares)
        self.shares["val"] += shares.val * (rows - self.placed)
        self.shares["sealed"] += shares.sealed * (rows - self.placed)
        self.placed = rows
        val, sealed = (
            np.full(len(self.score), round(self.shares[split]) - round(before[split])) for split in ("val", "sealed")
        )
        unread = self.read.add(val, self.score)
        self.sealed.add(sealed + unread if self.policy.unread_join else sealed, self.score)
        if self.number and self.project.grows:
            self.spending.night((1 - EDITED) * round(before["sealed"]) / round(self.shares["sealed"]))


def may_promote(wins: Ints, losses: Ints, alphas: Floats) -> Flags:
    """Whether it is worth while to ask the gate: McNemar's test, which is Tango's interval at 0, almost rejects."""
    from scipy.stats import norm

    return (wins > losses) & (wins - losses > (norm.isf(alphas) - 1e-6) * np.sqrt(wins + losses))


@cache
def promotes(wins: int, losses: int, rows: int, alpha: float, looks: int) -> bool:
    """What the gate says of a candidate with so many wins and losses on the sealed rows."""
    old, new = np.zeros(rows), np.zeros(rows)
    new[:wins], old[wins : wins + losses] = 1, 1
    return weigh(compare(new, old, range(rows), alpha=alpha, looks=looks, alpha_left=0.5)).outcome == "promoted"
