"""The noise of a privacy budget: what it is where dp-accounting is there, what is said where it is not."""

from __future__ import annotations

import importlib.util
import tomllib

import pytest

from dspy_toolkit.advising import advise
from dspy_toolkit.errors import ProjectError
from dspy_toolkit.projects.federated.privacy import INSTALL, noise_multiplier

THERE = importlib.util.find_spec("dp_accounting") is not None
needs_it = pytest.mark.skipif(not THERE, reason=f"dp-accounting is missing: {INSTALL}")


@needs_it
def test_more_privacy_and_more_rounds_ask_for_more_noise() -> None:
    usual = noise_multiplier(8.0, 1e-5, 5 / 12, 40)
    stricter, longer = noise_multiplier(2.0, 1e-5, 5 / 12, 40), noise_multiplier(8.0, 1e-5, 5 / 12, 400)
    assert usual is not None and stricter is not None and longer is not None
    assert usual < longer < stricter
    rarer = noise_multiplier(8.0, 1e-5, 5 / 1000, 40)
    assert rarer is not None and rarer < usual


@needs_it
def test_one_round_of_all_is_the_gaussian_mechanism() -> None:
    """Its Rényi bound: epsilon = a / (2 s²) + log(1/delta) / (a - 1) or better, over orders a."""
    noise = noise_multiplier(1.0, 1e-5, 1.0, 1)
    assert noise is not None
    assert 3.5 < noise < 5.5  # the classic bound gives 4.84, the exact mechanism 3.73


@needs_it
def test_the_advice_has_it_and_writes_it() -> None:
    advice = advise("federated", clients="12", epsilon="8")
    assert advice.configuration.model_dump()["noise_multiplier"] == pytest.approx(1.92, abs=0.02)
    assert tomllib.loads(advice.configuration.to_yaml())["num-sampled-clients"] == 5


@pytest.mark.skipif(THERE, reason="dp-accounting is installed")
def test_without_it_the_advice_says_how_to_have_it() -> None:
    advice = advise("federated", clients="12", epsilon="8")
    assert advice.configuration.model_dump()["noise_multiplier"] is None
    assert INSTALL in advice.text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epsilon": "x"}, "epsilon is 'x'"),
        ({"epsilon": "-1"}, "epsilon is -1"),
        ({"epsilon": "8", "delta": "2"}, "delta is 2"),
    ],
)
def test_wrong_budgets_are_one_clear_line(given: dict[str, str], said: str) -> None:
    with pytest.raises(ProjectError, match=said):
        advise("federated", "", settings=None, own=None, **given)
