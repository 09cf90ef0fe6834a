"""Searches whose candidates' true scores are known: the pool that ships, against other ways of spending the same budget.

    python -m benchmarks.optimizers.races [--races 200]

Four generators: one whose candidates cost nothing to make, three whose candidates cost 8 to 14 LM calls. One of the four,
drawn anew each time, makes better candidates, by 2, 5 or 10 points on average; within a generator true scores differ by 6
points (standard deviation). Rows are easy or hard for all candidates alike. What is printed is the true gain of what each
policy chose over the baseline, in points, with its standard error.

    pool        the pool that ships (`dspy_toolkit.optimizers.pool`)
    halving     sequential halving over one flat pool, generators in turn, as many candidates as fit
    thompson    top-two Thompson sampling over candidates, ten rows at a time
    cheapest    halving over the candidates of the first generator alone, which cost nothing
    one         halving over the candidates of one generator, drawn by chance
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import NormalDist, mean, stdev

from dspy_toolkit.optimizers.pool.entry import BASELINE, Cost, Entry, Family, Made
from dspy_toolkit.optimizers.pool.policy import climbing, rungs
from dspy_toolkit.optimizers.pool.pool import Job, Pool

BUDGETS = {"light": (300, 60), "medium": (1_200, 120), "heavy": (5_000, 300)}
"""Budget → LM calls, validation rows."""
GAPS = (0.02, 0.05, 0.10)
"""How much better the best generator's candidates are."""
COSTS = (0, 8, 12, 14)
"""LM calls for making one candidate of each generator."""
SPREAD = 0.06
BASE = 0.45
LEAD = 0.02
"""What a candidate gains on average."""
LIKENESS = 0.5
"""Correlation of two candidates' latent answers to one row."""
NORMAL = NormalDist()


@dataclass
class World:
    """One search's truth."""

    seed: int
    gap: float
    rows: int
    calls: int = 0
    truth: dict[int, float] = field(default_factory=dict)
    """Candidate → its true gain."""

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.best = self.random.randrange(len(COSTS))
        self.hard = [self.random.gauss(0, 1) for _ in range(self.rows)]
        self.answers: dict[int, list[float]] = {0: self._answers(BASE)}
        self.truth[0] = 0.0

    def _answers(self, share: float) -> list[float]:
        limit = NORMAL.inv_cdf(share)
        own, common = (1 - LIKENESS) ** 0.5, LIKENESS**0.5
        return [float(common * hard + own * self.random.gauss(0, 1) < limit) for hard in self.hard]

    def make(self, generator: int) -> int:
        """A new candidate."""
        self.calls += COSTS[generator]
        share = BASE + LEAD + self.gap * (generator == self.best) + self.random.gauss(0, SPREAD)
        share = min(max(share, 0.01), 0.99)
        number = len(self.truth)
        self.truth[number], self.answers[number] = share - BASE, self._answers(share)
        return number

    def score(self, candidate: int, first: int, last: int) -> list[float]:
        """Its scores on some rows."""
        self.calls += last - first
        return self.answers[candidate][first:last]


Policy = Callable[[World, int], int]
"""(world, LM calls) → the candidate that it chose."""


def pool(world: World, budget: int) -> int:
    """The pool that ships."""

    def candidates(generator: int) -> Generator[Made, None, None]:
        while True:
            yield Made(world.make(generator), "")

    def score(jobs: Sequence[Job]) -> list[bool]:
        for job in jobs:
            job.entry.values += world.score(job.entry.program, job.first, job.last)
        return [True] * len(jobs)

    families = [Family(str(number), candidates(number), Cost(cost, cost)) for number, cost in enumerate(COSTS)]
    steps = rungs(world.rows, budget, 1)
    made = Pool(
        Entry(BASELINE, BASELINE, 0), families, score, lambda: world.calls, budget, 1, steps, Random(world.seed)
    )
    best: int = made.run().program
    return best


def halving(world: World, budget: int, generators: Sequence[int] = range(len(COSTS))) -> int:
    """As many candidates as fit, the generators in turn; half of each rung goes on."""
    steps = rungs(world.rows, budget, 1)
    baseline = world.score(0, 0, steps[-1])
    each = climbing(steps) + steps[0]
    cost = mean(COSTS[number] for number in generators)
    count = max(int((budget - world.calls) / (each + cost)), 1)
    alive = [world.make(generators[number % len(generators)]) for number in range(count)]
    values: dict[int, list[float]] = {candidate: [] for candidate in alive}
    before = 0
    for step in steps:
        for candidate in alive:
            values[candidate] += world.score(candidate, before, step)
        before = step
        alive = sorted(alive, key=lambda candidate: -mean(values[candidate]))
        if step < steps[-1]:
            alive = alive[: -(-len(alive) // 2)]
    return alive[0] if mean(values[alive[0]]) > mean(baseline) else 0


def cheapest(world: World, budget: int) -> int:
    """The generator whose candidates cost nothing to make."""
    return halving(world, budget, (0,))


def one(world: World, budget: int) -> int:
    """A generator drawn by chance."""
    return halving(world, budget, (Random(f"{world.seed} one").randrange(len(COSTS)),))


def thompson(world: World, budget: int) -> int:
    """Top-two Thompson sampling (Russo 2020) over a fixed number of candidates, ten rows at a time."""
    draw, step = Random(world.seed), 10
    ids = [0, *(world.make(number % len(COSTS)) for number in range(max(4, budget // 40)))]
    values = {candidate: world.score(candidate, 0, step) for candidate in ids if world.calls + step <= budget}

    def posterior(candidate: int) -> tuple[float, float]:
        common = mean(mean(each) for each in values.values())
        noise = 0.2 / len(values[candidate])
        precision = 1 / noise + 1 / 0.07**2
        return (mean(values[candidate]) / noise + common / 0.07**2) / precision, precision**-0.5

    while world.calls + step <= budget:
        beliefs = {candidate: posterior(candidate) for candidate in values if len(values[candidate]) < world.rows}
        if not beliefs:
            break
        drawn = {candidate: draw.gauss(*belief) for candidate, belief in beliefs.items()}
        order = sorted(drawn, key=lambda candidate: -drawn[candidate])
        chosen = order[1] if len(order) > 1 and draw.random() < 0.5 else order[0]
        seen = len(values[chosen])
        values[chosen] += world.score(chosen, seen, min(seen + step, world.rows))
    return max(values, key=lambda candidate: posterior(candidate)[0])


POLICIES: dict[str, Policy] = {
    "pool": pool, "halving": halving, "thompson": thompson, "cheapest": cheapest, "one": one,
}  # fmt: skip


def gains(policy: Policy, budget: str, gap: float, races: int) -> list[float]:
    """The true gain, in points, of each race."""
    calls, rows = BUDGETS[budget]
    found = []
    for seed in range(races):
        world = World(seed, gap, rows)
        found.append(100 * world.truth[policy(world, calls)])
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.optimizers.races",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--races", type=int, default=200, help="of each cell")
    races = parser.parse_args().races
    print("| budget | lead of the best | " + " | ".join(POLICIES) + " |")
    print("|---" * (len(POLICIES) + 2) + "|")
    for budget in BUDGETS:
        for gap in GAPS:
            cells = []
            for policy in POLICIES.values():
                found = gains(policy, budget, gap, races)
                cells.append(f"{mean(found):.1f} ± {stdev(found) / races**0.5:.1f}")
            print(f"| {budget} | {100 * gap:.0f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
