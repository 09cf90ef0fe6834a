"""Nights on end: the chance that the gate promotes what is not better, over the life of a test set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from dspy_toolkit.gate.bounded_mean import Groups, lower_end
from dspy_toolkit.gate.intervals import tango
from dspy_toolkit.gate.ledger import Ledger, alpha_of
from dspy_toolkit.gate.validation import ENOUGH
from dspy_toolkit.gate.verdict import TOLERANCE
from tests.samples import sample


@pytest.fixture(scope="module")
def nightly_alphas(tmp_path_factory) -> np.ndarray:
    ledger = Ledger(Path(tmp_path_factory.mktemp("ledger")) / "ledger.jsonl")
    rows = [f"row{i}" for i in range(20)]
    return np.array([ledger.grant(rows, project="p", candidate=str(night), champion="c").alpha for night in range(90)])


LIVES = 2000
MONTE_CARLO = 3 * (0.05 * 0.95 / LIVES) ** 0.5


@pytest.mark.parametrize("discordance", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("n", [60, 240])
def test_ninety_nights_of_equal_programs_seldom_promote_one(nightly_alphas, n, discordance):
    """Independent candidates, each exactly as good as the champion: the worst case, as nothing is learnt from a look."""
    shares = [discordance / 2, discordance / 2, 1 - discordance]
    counts = np.random.default_rng(n).multinomial(n, shares, (LIVES, 90))
    low, _ = tango(counts[..., 0], counts[..., 1], n, nightly_alphas)
    assert (low > 0).any(axis=1).mean() <= 0.05 + MONTE_CARLO


def test_ninety_nights_of_cheaper_programs_seldom_promote_one_that_is_a_point_worse(nightly_alphas):
    n, discordance = 1000, 0.1
    shares = [(discordance - 0.01) / 2, (discordance + 0.01) / 2, 1 - discordance]
    counts = np.random.default_rng(7).multinomial(n, shares, (LIVES, 90))
    low, _ = tango(counts[..., 0], counts[..., 1], n, nightly_alphas)
    assert (low > -0.01).any(axis=1).mean() <= 0.05 + MONTE_CARLO


def skewed(random: np.random.Generator, n: int) -> np.ndarray:
    """A little better on most rows, a lost answer on a few: mean 0."""
    return np.where(random.uniform(size=n) < 0.02, -0.98, 0.02)


def rounded(random: np.random.Generator, n: int) -> np.ndarray:
    return random.choice([-0.5, -0.25, 0, 0.25, 0.5], n)


@pytest.mark.parametrize("draw", [skewed, rounded])
@pytest.mark.parametrize("n", sample([15, 120], 15))
def test_graded_scores_keep_the_rate_too(nightly_alphas, draw, n):
    """Of the first eight nights, which spend half of the rate."""
    random, lives = np.random.default_rng(n), 150
    promoted = [
        any(lower_end(Groups(draw(random, n), np.ones(n)), alpha, -1.0) > 0 for alpha in nightly_alphas[:8])
        for _ in range(lives)
    ]
    assert np.mean(promoted) <= 0.05 + 3 * (0.05 * 0.95 / lives) ** 0.5


# ---- a year ----

NIGHTS = 365


def alphas_of_a_year(folder: Path, *, growth: float, nights: int) -> tuple[np.ndarray, np.ndarray]:
    """What the ledger grants to one opening a night, and the rows of each: they grow, and a tenth of them is edited."""
    ledger, alphas, rows = Ledger(folder / "ledger.jsonl"), [], 100.0
    for night in range(nights):
        # An edit gives a row another content hash; its text's hash stays.
        names = [f"text{row}" for row in range(int(rows))]
        names += [f"contents{row}{f' of night {night}' if row % 10 == night % 10 else ''}" for row in range(int(rows))]
        alphas.append(ledger.grant(names, project="p", candidate=str(night), champion="c").alpha)
        rows *= 1 + growth
    return np.array(alphas), np.floor(100 * (1 + growth) ** np.arange(nights))


def promoted_in_a_life(alphas, sizes, *, lives: int, discordance: float, evidence: bool) -> float:
    """The share of lives in which a candidate as good as the champion was promoted.

    With `evidence` a night's candidate is shown the sealed rows only where validation speaks for it, so the grants go to
    one night in six.
    """
    random, opened, fooled, z = np.random.default_rng(5), np.zeros(lives, int), np.zeros(lives, bool), norm.isf(alphas)
    for size in sizes.astype(int):
        tested = random.normal(size=lives) >= ENOUGH if evidence else np.ones(lives, bool)
        counts = random.multinomial(size, [discordance / 2, discordance / 2, 1 - discordance], lives)
        wins, losses = counts[:, 0], counts[:, 1]
        # Tango's lower end is above 0 exactly when McNemar rejects (tests/gate/test_intervals.py).
        fooled |= tested & (wins - losses > z[np.minimum(opened, len(z) - 1)] * np.sqrt(wins + losses))
        opened += tested
    return float(fooled.mean())


def check_a_year(tmp_path, *, growth: float, nights: int, lives: int) -> None:
    alphas, sizes = alphas_of_a_year(tmp_path, growth=growth, nights=nights)
    assert alphas[0] == pytest.approx(0.0125), "the first night keeps its power"
    assert alphas.sum() <= 0.05
    limit = (0.06 if growth else 0.05) + 3 * (0.05 * 0.95 / lives) ** 0.5
    for evidence in (False, True):
        assert promoted_in_a_life(alphas, sizes, lives=lives, discordance=0.2, evidence=evidence) <= limit


@pytest.mark.parametrize("growth", [0.0, 0.01])
def test_sixty_nights_promote_nothing_that_is_not_better(tmp_path, growth):
    check_a_year(tmp_path, growth=growth, nights=60, lives=1000)


@pytest.mark.soak
@pytest.mark.parametrize("growth", [0.0, 0.01])
def test_a_year_of_nights_promotes_nothing_that_is_not_better(tmp_path, growth):
    check_a_year(tmp_path, growth=growth, nights=NIGHTS, lives=20_000)


def lost_in_a_year(alphas, *, lives: int, n: int, anchored: bool) -> np.ndarray:
    """Points that the champion lost over a year of candidates that are cheaper and a fifth of a point worse than it."""
    random, discordance = np.random.default_rng(3), 0.05
    level, step = np.zeros(lives), 0.002  # of the champion, from the anchor
    for alpha in alphas:
        truth = level - step
        delta = truth if anchored else np.full(lives, -step)
        shares = np.stack([(discordance + delta) / 2, (discordance - delta) / 2, np.full(lives, 1 - discordance)], 1)
        counts = np.array([random.multinomial(n, share) for share in np.clip(shares, 0, 1)])
        low, _ = tango(counts[:, 0], counts[:, 1], n, alpha / 2 if anchored else alpha)
        level = np.where(low > -TOLERANCE, truth, level)
    return -100 * level


def test_a_year_of_cheaper_and_slightly_worse_candidates_costs_a_point_at_most():
    """In 95 lives of a hundred; measured from the champion of the day it would be several points."""
    alphas = np.array([alpha_of(0.05, night) for night in range(1, NIGHTS + 1)])
    lost = lost_in_a_year(alphas, lives=100, n=10_000, anchored=True)
    assert np.mean(lost > 1) <= 0.05 + 3 * (0.05 * 0.95 / 100) ** 0.5
    assert np.median(lost_in_a_year(alphas, lives=20, n=10_000, anchored=False)) > 2, "what the anchor is for"
