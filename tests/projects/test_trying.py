"""What was advised is run for real, here: once, and by successive halving, into a landscape of one's own that wins as it grows."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspy_toolkit.advising.advice import advise_on
from dspy_toolkit.advising.trying import own_runs, probe, try_out
from tests.projects.built_in import ADVISORS

QUICK = {
    "federated": {"clients": "a hundred", "skew": "strong", "devices": "unreliable", "rounds": "few"},
    "clip": {"content": "new", "style": "same", "pairs": "dozens", "time": "short"},
}


@pytest.mark.parametrize("name", QUICK)
def test_the_advised_configuration_runs(name: str, tmp_path: Path) -> None:
    advisor = ADVISORS[name]
    advice = advise_on(advisor, advisor.situation(**QUICK[name]))
    trial = probe(advisor, advice, tmp_path)
    assert dict(trial.configuration) == dict(advice.measured)
    assert trial.cpu_seconds > 0
    low, high = advice.range or (0.0, 0.0)
    width = high - low
    assert low - width <= trial.loss <= high + width, "one run, far outside what was expected"


def test_the_best_few_are_halved_and_kept(tmp_path: Path) -> None:
    advisor = ADVISORS["federated"]
    situation = advisor.situation(**QUICK["federated"])
    trials = try_out(advisor, advise_on(advisor, situation, ranges=False), 2, tmp_path, seeds=2)
    assert len(trials) == 2
    assert len(trials[0].losses) == 2, "the winner was run to the end"
    own = own_runs(tmp_path, "federated")
    assert own is not None and set(own["seed"]) <= {100, 101}
    again = advise_on(advisor, situation, own=own, ranges=False)
    assert again.configuration.to_yaml()


def test_own_runs_win_as_they_grow() -> None:
    """The user's own runs say that what ours call worst is best."""
    advisor = ADVISORS["federated"]
    situation = advisor.situation(**QUICK["federated"])
    context = advisor.context_of(situation)
    here = advisor.runs
    for name, value in context.items():
        here = here[here[name] == value]
    slow = (here["algorithm"] == "fedavg") & (here["learning_rate"] == 0.01) & (here["local_epochs"] == 1)
    own = here.assign(family="mine", seed=100, accuracy=15.0)
    own.loc[slow, "accuracy"] = 99.0
    before = advise_on(advisor, situation, ranges=False)
    after = advise_on(advisor, situation, own=own, ranges=False)
    assert dict(before.measured) != dict(after.measured)
    assert dict(after.measured) == {"algorithm": "fedavg", "learning_rate": 0.01, "local_epochs": 1}
