"""A year of nights on projects whose truth is known: the policy that ships, and that of version 0.1.0.

    python -m benchmarks.gate.nights [--lives 200]

What is simulated is in `benchmarks.gate.lives`. Three tables are printed: what a year brings, how often anything is promoted
in a year in which every candidate is exactly as good as the champion, and how often a first night shows a true gain.

    ships                the split that follows the number of rows, openings on evidence, the ledger, unread rows that join
    0.1.0                40 : 27 : 33, openings where validation is not worse, a quarter of what is left for each, and nights
                         that repeat the first one as long as the rows are the same
    0.1.0, new nights    the same, with other candidates every night
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.gate.lives import (
    LIGHT,
    MEDIUM,
    NIGHTS,
    OLD,
    OLD_NEW_NIGHTS,
    POLICIES,
    RATE,
    SHIPS,
    Lives,
    Policy,
    Project,
    finds,
    nothing,
    one,
    promotes,
)
from dspy_toolkit.gate.ledger import first_alpha

PROJECTS = (Project(200), Project(500), Project(200, grows=True), Project(500, grows=True))
EARLY = 40
FIRST_GAINS = {200: 0.12, 500: 0.08}
"""Rows → the true gain that a first night is to show four times in five."""
NULL_LIVES = 10
"""Times as many lives where a share near 5 % is counted."""
FIRST_NIGHTS = 20
"""Times as many first nights, which are short."""


class Year(NamedTuple):
    """What a year brought, on average over lives; gains in points."""

    early: float
    gain: float
    error: float
    """Standard error of `gain`."""
    openings: float
    promotions: float
    losses: float
    """Promotions of candidates that are truly worse than the champion."""


def year(project: Project, policy: Policy, lives: int, nights: int = NIGHTS, seed: int = 0) -> Year:
    """Nights on which a search finds something now and then."""
    all_lives = Lives(project, policy, finds, lives, seed)
    start = early = all_lives.score
    openings = promotions = losses = 0
    for number in range(nights):
        night = all_lives.night()
        openings += int(night.opened.sum())
        promotions += int(night.promoted.sum())
        losses += int((night.promoted & (night.gain < 0)).sum())
        early = all_lives.score if number + 1 == min(EARLY, nights) else early
    gains = 100 * (all_lives.score - start)
    return Year(
        early=100 * float((early - start).mean()),
        gain=float(gains.mean()),
        error=float(gains.std() / lives**0.5),
        openings=openings / lives,
        promotions=promotions / lives,
        losses=losses / lives,
    )


def false_promotions(project: Project, policy: Policy, lives: int, nights: int = NIGHTS, seed: int = 0) -> float:
    """The share of lives in which anything was promoted, where nothing is better than the champion."""
    all_lives, fooled = Lives(project, policy, nothing, lives, seed), np.zeros(lives, dtype=bool)
    for _ in range(nights):
        fooled |= all_lives.night().promoted
    return float(fooled.mean())


class FirstNight(NamedTuple):
    """How often a true gain was shown, and on how many sealed rows."""

    read: int
    """Validation rows that the search read."""
    rows: int
    tested: float
    """The share of tests that show it, were each such candidate tested."""
    put_forward: float
    """The share of nights on which the search put the better candidate forward."""
    opened: float
    """The share of nights on which it did, and the test was opened for it."""
    night: float
    """The share of nights that promoted it."""


def first_night(
    project: Project, policy: Policy, gain: float, lives: int, seed: int = 0, calls: int = LIGHT
) -> FirstNight:
    """A first night on which one of the candidates has that true gain."""
    tested = Lives(project, policy, nothing, lives, seed, calls)
    rows = int(tested.sealed.size[0])
    won, lost = tested.sealed.differences(tested.score, np.full(lives, gain))
    alpha = first_alpha(RATE)[0]
    shown = [promotes(wins, losses, rows, alpha, 1) for wins, losses in zip(won.tolist(), lost.tolist(), strict=True)]
    night = Lives(project, policy, one(gain), lives, seed, calls).night()
    ours = night.gain == gain
    shares = (np.mean(flags) for flags in (shown, ours, night.opened & ours, night.promoted & ours))
    return FirstNight(int(tested.read.size[0]), rows, *map(float, shares))


def tables(lives: int, nights: int = NIGHTS) -> Iterator[str]:
    """The lines that are printed, as they come."""
    yield from _header(
        "rows", "policy", f"gain, {EARLY} nights", f"gain, {nights}", "promotions", "losses promoted", "openings"
    )
    for project, policy in _pairs():
        found = year(project, policy, lives, nights)
        yield _line(
            _rows(project), policy.name, f"{found.early:+.1f}", f"{found.gain:+.1f} ± {found.error:.1f}",
            f"{found.promotions:.2f}", f"{found.losses:.3f}", f"{found.openings:.1f}",
        )  # fmt: skip
    yield ""
    yield from _header("rows", "policy", "false promotions in a year")
    for project, policy in _pairs():
        count = lives * NULL_LIVES
        share = false_promotions(project, policy, count, nights)
        yield _line(
            _rows(project), policy.name, f"{100 * share:.1f} ± {100 * (share * (1 - share) / count) ** 0.5:.1f} %"
        )
    yield ""
    yield from _header(
        "rows",
        "gain",
        "policy",
        "read",
        "sealed",
        "shown by the test",
        "put forward",
        "opened for it",
        "shown by the night",
    )
    for rows, gain in FIRST_GAINS.items():
        for policy, calls in ((SHIPS, LIGHT), (SHIPS, MEDIUM), (OLD, LIGHT)):
            seen = first_night(Project(rows), policy, gain, lives * FIRST_NIGHTS, calls=calls)
            shares = (f"{100 * share:.0f} %" for share in seen[2:])
            yield _line(str(rows), f"{100 * gain:.0f}", policy.name, str(seen.read), str(seen.rows), *shares)


def _pairs() -> Iterator[tuple[Project, Policy]]:
    """What is compared. Nights of a project that grows were new in version 0.1.0 too: its searches went by the rows."""
    for project in PROJECTS:
        for policy in POLICIES:
            if not (project.grows and policy is OLD_NEW_NIGHTS):
                yield project, policy


def _rows(project: Project) -> str:
    return f"{project.rows}, growing" if project.grows else str(project.rows)


def _header(*names: str) -> Iterator[str]:
    yield _line(*names)
    yield "|---" * len(names) + "|"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gate.nights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--lives", type=int, default=200, help="of each line; ten and twenty times as many in the later tables"
    )
    for line in tables(parser.parse_args(arguments).lives):
        print(line, flush=True)


if __name__ == "__main__":
    main()
