"""Fitting label weights: what is learnt from log-probabilities that lean, and what is not from noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dspy_toolkit.optimizers.generators.label_weights import fit, without_prior

LABELS = ("a", "b", "c")


def leaning(rows: int, lean: tuple[float, ...], signal: float, seed: int = 0) -> tuple[Any, Any]:
    """(log-probabilities, right labels) of a model that knows `signal` about the label and leans whatever it is asked."""
    draw = np.random.default_rng(seed)
    right = draw.integers(0, len(lean), rows)
    logits = np.asarray(lean) + signal * np.eye(len(lean))[right] + draw.normal(0, 1, (rows, len(lean)))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True)), right


def accuracy(rule: Any, logprobs: Any, right: Any) -> float:
    return float(
        np.mean([int(np.argmax(rule.probabilities(row))) == label for row, label in zip(logprobs, right, strict=True)])
    )


def test_a_lean_is_taken_out() -> None:
    rule = fit(LABELS, *leaning(80, (4.0, 0.0, -4.0), 2.0))
    assert rule is not None and rule.rows == 80
    logprobs, right = leaning(2_000, (4.0, 0.0, -4.0), 2.0, seed=1)
    before = float((logprobs.argmax(1) == right).mean())
    assert accuracy(rule, logprobs, right) > before + 0.3
    assert rule.accuracy == pytest.approx(accuracy(rule, logprobs, right), abs=0.12)


def test_labels_that_the_model_confuses_are_told_apart_by_a_map() -> None:
    logprobs, right = leaning(300, (0.0, 0.0, 0.0), 3.0)
    rule = fit(LABELS, logprobs[:, [1, 2, 0]], right)
    assert rule is not None and rule.method == "linear map"
    fresh, truth = leaning(2_000, (0.0, 0.0, 0.0), 3.0, seed=1)
    assert accuracy(rule, fresh[:, [1, 2, 0]], truth) > 0.8


def test_noise_teaches_next_to_nothing() -> None:
    logprobs, right = leaning(60, (0.0, 0.0, 0.0), 0.0)
    rule = fit(LABELS, logprobs, right)
    assert rule is not None
    fresh, truth = leaning(500, (0.0, 0.0, 0.0), 0.0, seed=1)
    chances = np.asarray([rule.probabilities(row) for row in fresh])
    assert -np.log(chances[np.arange(500), truth]).mean() < np.log(3) + 0.15, "no confidence comes of nothing"


@pytest.mark.parametrize("right", [np.zeros(40, dtype=int), np.asarray([0, 1, 2])])
def test_one_label_or_few_rows_are_not_fitted(right: Any) -> None:
    assert fit(LABELS, np.zeros((len(right), 3)), right) is None


def test_a_lean_is_taken_out_without_looking_at_a_label() -> None:
    lean = (4.0, 0.0, -4.0)
    logprobs, _ = leaning(90, lean, 2.0)
    rule = without_prior(LABELS, logprobs)
    assert (rule.method, rule.rows, rule.accuracy) == ("prior correction", 90, None)
    assert np.mean([rule.probabilities(row) for row in logprobs], axis=0) == pytest.approx([1 / 3] * 3, abs=1e-3)
    fresh, truth = leaning(2_000, lean, 2.0, seed=1)
    assert accuracy(rule, fresh, truth) > float((fresh.argmax(1) == truth).mean()) + 0.25
    even, right = leaning(2_000, (0.0, 0.0, 0.0), 2.0)
    assert accuracy(without_prior(LABELS, even), even, right) == pytest.approx(
        float((even.argmax(1) == right).mean()), abs=0.02
    )
