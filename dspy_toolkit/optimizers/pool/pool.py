"""Spending a budget on candidates: make them, score them on ever more rows, keep the best.

Three phases. *Filling*: candidates are made in waves and scored on the first rung, as long as the budget has room for
their way up. *Climbing*: the better half of each rung is scored on the next one, together with the baseline. *Challenging*:
what is left (predictions are means) goes into further candidates, one wave at a time; one that is not behind the leader on
a rung goes on to the next. A leader that has every point ends the search. In the end the highest mean wins, of those that were
scored on the most rows; the baseline where none is above it.

Nothing here knows programs, models or the clock: candidates come from iterators, scores from a function, and the calls spent
from another. So a search that was killed and starts again, with the cache of replies in place of the model, takes the same
decisions; and thousands of searches whose true scores are known can be simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from random import Random
from typing import NamedTuple

from dspy_toolkit.errors import BudgetExhausted
from dspy_toolkit.optimizers.pool.entry import BASELINE, Entry, Family
from dspy_toolkit.optimizers.pool.policy import climbing, improvement, ranked, shrunk

WAVE = 4
"""Candidates that are scored together: an engine's batch, or several workers, have enough to do."""

LAST_SHARE = 1 / 4
"""Of the budget, that is kept at most for candidates that are made of others."""
MOST_REPEATS = 10
"""Candidates in a row that were there already, from which a generator counts as having no more."""


class Job(NamedTuple):
    """A candidate to score on rows `first` to `last` of the sample (the last one not included)."""

    entry: Entry
    first: int
    last: int


class Over(Enum):
    """The end of an iterator, beside its values."""

    OVER = 0


OVER = Over.OVER

Score = Callable[[Sequence[Job]], Sequence[bool]]
"""Scores candidates: adds to `Entry.values`, and says for each whether it could be run. Raises BudgetExhausted."""


@dataclass(eq=False)
class Pool:
    """One search."""

    baseline: Entry
    families: list[Family]
    """The generators at work."""
    score: Score
    spent: Callable[[], int]
    """Logical LM calls so far."""
    budget: int
    """Logical LM calls in all."""
    calls_per_run: float
    """LM calls to plan for one run of a candidate, at least 1."""
    steps: tuple[int, ...]
    """The rungs; see `policy.rungs`."""
    random: Random
    say: Callable[[str], None] = lambda what: None
    known: set[str] = field(default_factory=set)
    """Prompts (`prompt`) that were candidates already: of earlier searches too, where they are not tried again."""
    prompt: Callable[[Entry], str] = lambda entry: str(id(entry))
    """A name of what of a candidate reaches the model."""
    entries: list[Entry] = field(default_factory=list)
    """All candidates that could be scored, the baseline first."""
    exhausted: bool = False
    """Whether the budget ran out before its phases were over."""

    def run(self) -> Entry:
        """The best candidate; the baseline where none is better.

        Raises:
            BudgetExhausted: the budget ended before the baseline was scored on the first rung.
            Exception: what scoring the baseline raises.
        """
        self.say(BASELINE)
        try:
            self._rise([self.baseline], self.steps[0])
            try:
                self._fill()
                self._climb()
                self._combine()
                self._challenge()
            except BudgetExhausted:
                self.exhausted = True
        finally:
            for family in self.families:
                # Else the garbage collector ends them, in any thread and in the middle of anything.
                family.candidates.close()
        return self.best

    @property
    def best(self) -> Entry:
        """The highest mean of those that were scored on the most rows, the baseline among them; of equal ones the cheaper
        prompt, then the earlier. The baseline while all scores of all rows are the same: they say nothing.
        """
        if len({value for entry in self.entries for value in entry.values}) < 2:
            return self.baseline
        rows = max((entry.rows for entry in self.entries if entry is not self.baseline), default=0)
        return ranked([entry for entry in self.entries if entry.rows >= rows], rows)[0]

    @property
    def perfect(self) -> bool:
        """Whether nothing is left to gain: the best has the highest score on every row that a search reads."""
        return self.best.rows == self.steps[-1] and self.best.mean() == 1

    @property
    def left(self) -> float:
        """Calls that are not spent."""
        return self.budget - self.spent()

    def _fill(self) -> None:
        """Make candidates while there is room for their way up; each family's gains say who is asked next."""
        way = climbing(self.steps) * self.calls_per_run
        reserve = (self.steps[-1] - self.steps[0]) * self.calls_per_run  # the baseline's own way up
        for_last = sum(family.cost.step for family in self.families if family.last)
        reserve += for_last if for_last <= LAST_SHARE * self.budget else 0
        while wave := self._wave(lambda made: self.left - reserve - (len(self.entries) - 1 + made) * way):
            self._rise(wave, self.steps[0])

    def _climb(self) -> None:
        """The better half of each rung goes on to the next, together with the baseline; at least one as long as there are calls."""
        alive = [entry for entry in self.entries if entry is not self.baseline]
        for before, after in pairwise(self.steps):
            alive = ranked([entry for entry in alive if entry.rows >= before], before)
            room = int(self.left / ((after - before) * self.calls_per_run))
            going = alive[: max(min(-(-len(alive) // 2), room - 1), 0)]
            if room < 1:
                return
            self.say(f"{len(going)} of {len(alive)} candidates on {after} rows")
            self._rise([self.baseline, *going], after)
            alive = going

    def _combine(self) -> None:
        """Candidates that are made of those that climbed, on more and more rows as long as they are not behind the best."""
        for family in (family for family in self.families if family.last):
            while not (family.ended or self.perfect) and (family.waits is None or family.waits is not self.best):
                best = self.best
                if family.cost.step * self.steps[0] / self.steps[-1] > self.left:
                    break
                if (entry := self._make(family)) is None:
                    continue
                for step in (step for step in self.steps if step <= best.rows):
                    if self._calls(entry, step) > self.left:
                        break
                    self._rise([entry], step)
                    if entry not in self.entries or entry.mean(step) < best.mean(step):
                        break

    def _challenge(self) -> None:
        """Candidates one wave at a time, as long as anything is left to make one and score it."""
        while not self.perfect and (wave := self._wave(lambda made: self.left)):
            self._rise(wave, self.steps[0])
            for before, after in pairwise(self.steps):
                best = self.best
                if after > best.rows:
                    break
                wave = [entry for entry in wave if entry.rows >= before and entry.mean(before) >= best.mean(before)]
                wave = ranked(wave, before)[: int(self.left / ((after - before) * self.calls_per_run))]
                if not wave:
                    break
                self._rise(wave, after)
        self._spend_the_rest()

    def _spend_the_rest(self) -> None:
        """Calls that make no further candidate go into more rows for the best that were not scored on all."""
        while not self.perfect:
            behind = [(entry, self._next(entry)) for entry in self.entries if entry.rows < self.steps[-1]]
            fitting = [(entry, rows) for entry, rows in behind if self._calls(entry, rows) <= self.left]
            if not fitting:
                return
            entry, rows = max(fitting, key=lambda pair: (self.expected(pair[0]), -pair[0].number))
            self._rise([entry], rows)

    def _calls(self, entry: Entry, rows: int) -> float:
        """LM calls that scoring it on rows up to `rows` is expected to take."""
        return (rows - entry.rows) * self.calls_per_run * entry.runs

    def _next(self, entry: Entry) -> int:
        return next(step for step in self.steps if step > entry.rows)

    def _wave(self, room: Callable[[int], float]) -> list[Entry]:
        """Up to WAVE candidates, of the families that are worth most. `room` gives the calls left when so many were made."""
        wave: list[Entry] = []
        first = self.steps[0] * self.calls_per_run
        way = climbing(self.steps) * self.calls_per_run
        while len(wave) < WAVE:
            left = room(len(wave) + 1) - (len(wave) + 1) * first
            able = [
                family
                for family in self.families
                if not (family.ended or family.last)
                and family.cost.step <= left
                and (family.waits is None or family.waits is not self.best)
            ]
            if not able or left < 0:
                break
            able = [family for family in able if family.made < family.urgent] or able
            common = self._common()
            best = max(0.0, *(shrunk(self._gain(entry), entry.rows, common) for entry in self.entries))
            family = max(
                able,
                key=lambda family: (
                    improvement(family, self.families, best, self.steps[0], self.random) / (family.each + first + way)
                ),
            )
            if (entry := self._make(family)) is not None:
                wave.append(entry)
        return wave

    def _make(self, family: Family) -> Entry | None:
        """The family's next candidate; None where it has no more, failed, or gave one that was tried before."""
        self.say(family.name)
        before = self.spent()
        made = next(family.candidates, OVER)
        family.spent += self.spent() - before
        if isinstance(made, Over):
            family.ended = family.ended or "It has no more candidates."
            return None
        if made is None:  # WAIT
            family.waits = self.best
            return None
        number = sum(each.made for each in self.families) + 1
        family.made += 1
        entry = Entry(
            family.name, made.label, made.program, list(made.values), made.tokens, runs=made.runs, number=number
        )
        name = self.prompt(entry)
        if name in self.known:
            family.repeats += 1
            if family.repeats == MOST_REPEATS:
                family.ended = f"Its last {MOST_REPEATS} candidates were there already."
            return None
        family.repeats = 0
        self.known.add(name)
        return entry

    def _rise(self, entries: Sequence[Entry], rows: int) -> None:
        """Score those on rows up to `rows`. A candidate that cannot be run leaves the pool; the baseline must run."""
        jobs = [Job(entry, entry.rows, rows) for entry in entries if entry.rows < rows]
        before = self.spent()
        able = dict(zip((job.entry for job in jobs), self.score(jobs), strict=True)) if jobs else {}
        calls, share = self.spent() - before, sum(job.last - job.first for job in jobs)
        for job in jobs:
            if family := self._family(job.entry):
                family.scoring += round(calls * (job.last - job.first) / share)
        for entry in entries:
            if not able.get(entry, True):
                if entry in self.entries:
                    self.entries.remove(entry)
                continue
            if entry not in self.entries:
                entry.lm_calls = self.spent()
                self.entries.append(entry)
                if family := self._family(entry):
                    family.gains.append(self._gain(entry, self.steps[0]))
            self.say(f"{entry.label}: {entry.mean():.0%} of {entry.rows}")

    def _family(self, entry: Entry) -> Family | None:
        """Who made it; None for the baseline."""
        return next((family for family in self.families if family.name == entry.family), None)

    def _gain(self, entry: Entry, rows: int | None = None) -> float:
        """Its mean less the baseline's, on the rows that both have seen."""
        shared = min(entry.rows, self.baseline.rows, rows or entry.rows)
        return entry.mean(shared) - self.baseline.mean(shared)

    def _common(self) -> float:
        gains = [gain for family in self.families for gain in family.gains]
        return sum(gains) / len(gains) if gains else 0.0

    def expected(self, entry: Entry) -> float:
        """Its expected true gain over the baseline, in [-1, 1]; 0 for the baseline."""
        if entry is self.baseline:
            return 0.0
        return shrunk(self._gain(entry), min(entry.rows, self.baseline.rows), self._common())
