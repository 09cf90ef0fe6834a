"""Label weights: for an output that is a choice, the labels' log-probabilities fitted to the right ones of training rows.

The candidates are the baseline in its best format, and whatever leads after it: first with all labels scored in place of one decoded,
then with what the model gives each label on average taken out, for which no row's label is looked at, then with the best of three
maps, by the logarithmic loss of five folds: a bias for each label (as ReAnchor of DSPy fits one), the same with one scale for all,
and a full linear map. A row that is a demonstration of the prompt is left out: it would be known by heart.

For programs of one predictor whose last output is a choice, on an engine of this process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import dspy
import numpy as np

from dspy_toolkit.lm.choices import choices_of
from dspy_toolkit.lm.label_rules import LabelRule, label_rules_of, plain_rule
from dspy_toolkit.lm.levers import adapter_of, pull
from dspy_toolkit.optimizers.choice import Infeasible, run_cost
from dspy_toolkit.optimizers.generators.workshop import Workshop
from dspy_toolkit.optimizers.pool.entry import WAIT, Cost, Made
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.sampling import balanced
from dspy_toolkit.optimizers.settings import PoolSettings
from dspy_toolkit.optimizers.states import prompt_of, signature_of
from dspy_toolkit.store import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

ROWS = 96
"""Training rows that are scored for one fit, at most; no more than validation rows that the search reads, so that a small budget has
room for a fit."""
LEAST_ROWS = 12
FOLDS = 5
STEPS = 200
"""Of a prior correction, at most."""
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Of the regularization, scikit-learn's C: the larger, the freer."""


def cost(profile: Profile, settings: PoolSettings) -> Cost | Infeasible:
    """Scoring the rows of one fit, which are three candidates."""
    if not profile.labels:
        return Infeasible(
            reason="label weights need a program of one step whose last output is a choice, on an engine of this machine"
        )
    if profile.train < LEAST_ROWS:
        return Infeasible(
            reason=f"{profile.train} training rows are too few to fit label weights; {LEAST_ROWS} are needed"
        )
    calls = most_rows(profile.train, settings) * run_cost(profile)
    return Cost(calls / 3, calls)


def most_rows(train: int, settings: PoolSettings) -> int:
    """Training rows that are scored for one fit, of `train`."""
    return min(train, ROWS, max(settings.val_rows, LEAST_ROWS))


def candidates(shop: Workshop) -> Iterator[Made | None]:
    """Scored, then fitted: of the baseline, and of each program that leads later."""
    fitted: set[str] = set()
    program, whose = shop.ground, "the program"
    while True:
        bare = without_rules(program)
        if (prompt := digest(prompt_of(bare))) not in fitted:
            fitted.add(prompt)
            name, texts = choice_of(bare)
            scored = with_rule(bare, name, plain_rule(list(texts)))
            yield Made(scored, f"{whose}, labels scored")
            # An adapter knows the training rows by heart: what is fitted to them holds for no others.
            if not any(adapter_of(predictor) for predictor in bare.predictors()):
                yield from _fits(shop, bare, scored, whose)
        yield WAIT
        if shop.pool is not None:
            program, whose = (
                shop.leader,
                shop.pool.best.label.partition(", labels scored")[0].partition(", the labels'")[0],
            )


def _fits(shop: Workshop, bare: dspy.Module, scored: dspy.Module, whose: str) -> Iterator[Made]:
    """The rules that follow from scoring training rows."""
    name, texts = choice_of(bare)
    shop.say("scoring labels of training rows")
    logprobs, right = score(shop, scored, name, texts)
    if len(right) >= LEAST_ROWS:
        made = with_rule(bare, name, without_prior(list(texts), logprobs))
        yield Made(made, f"{whose}, the labels' prior over {len(right)} rows taken out")
    if (rule := fit(list(texts), logprobs, right)) is not None:
        yield Made(with_rule(bare, name, rule), f"{whose}, {rule.method} fitted to {rule.rows} rows")


def choice_of(program: dspy.Module) -> tuple[str, dict[str, Any]]:
    """The last output of a program of one predictor, and its labels: text → value."""
    (predictor,) = program.predictors()
    name, field = list(signature_of(predictor).output_fields.items())[-1]
    return name, dict(choices_of(field.annotation) or ())


def labels_of(program: dspy.Module) -> int:
    """How many labels the last output of a program of one predictor has; 0 where it is no choice of two or more."""
    if len(program.predictors()) != 1:
        return 0
    texts = choice_of(program)[1]
    return len(texts) if len(texts) > 1 else 0


def without_rules(program: dspy.Module) -> dspy.Module:
    """A copy whose replies are decoded."""
    bare = program.deepcopy()
    for predictor in bare.predictors():
        pull(predictor, labels=None)
    return bare


def with_rule(program: dspy.Module, name: str, rule: LabelRule) -> dspy.Module:
    """A copy of a program of one predictor whose output `name` is chosen by `rule`."""
    made = program.deepcopy()
    (predictor,) = made.predictors()
    rules = {**label_rules_of(predictor), name: rule}
    pull(predictor, labels={key: each.model_dump(mode="json") for key, each in rules.items()})
    return made


def score(
    shop: Workshop, program: dspy.Module, name: str, texts: Mapping[str, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(rows × labels natural log-probabilities, the right label's index) of training rows, a balanced sample."""
    (predictor,) = program.predictors()
    inputs = list(signature_of(predictor).input_fields)
    shown = {_inputs_of(demo, inputs) for demo in predictor.demos}
    fresh = [case for case in shop.train if _inputs_of(case, inputs) not in shown]
    cases = balanced(fresh, most_rows(len(fresh), shop.settings), seed=shop.seed)
    lm, indices = shop.lm.part(), {_key(value): index for index, value in enumerate(texts.values())}

    def one(case: dspy.Example) -> list[float]:
        with dspy.context(lm=lm, adapter=shop.adapter):
            found = program(**case.inputs())
        return [float(np.log(max(found.probabilities[text], 1e-30))) for text in texts]

    known = [case for case in cases if _key(case[name]) in indices]
    with ThreadPoolExecutor(shop.problem.threads, thread_name_prefix="labels") as pool:
        rows = list(pool.map(one, known))
    return np.asarray(rows).reshape(len(rows), len(texts)), np.asarray([indices[_key(case[name])] for case in known])


def without_prior(labels: Sequence[str], logprobs: np.ndarray[Any, Any]) -> LabelRule:
    """The bias under which every label has the same mean probability over the rows, for which no row's label is looked at.

    What a model gives a label on average over inputs is its lean, where the labels are about equally frequent among these. To
    divide by that mean once is "batch calibration" (Zhou et al. 2024, arXiv:2309.17249); since probabilities are made to sum to 1
    afterwards, the means are then not alike yet, and the step is repeated until they are.

    Args:
        logprobs: rows × labels, natural; at least one row.
    """
    bias = np.zeros(len(labels))
    for _ in range(STEPS):
        means = _softmax(logprobs + bias).mean(axis=0) * len(labels)
        bias -= np.log(np.maximum(means, 1e-12))
        if np.abs(means - 1).max() < 1e-3:
            break
    bias -= bias.mean()
    known = {"bias": tuple(map(float, bias)), "method": "prior correction", "rows": len(logprobs)}
    return plain_rule(labels).model_copy(update=known)


def fit(labels: Sequence[str], logprobs: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> LabelRule | None:
    """The rule that did best on five folds; None where there are too few rows, or of one label alone.

    Args:
        logprobs: rows × labels, natural.
        right: the index of each row's label.
    """
    counts = np.bincount(right, minlength=len(labels)) if len(right) else np.zeros(len(labels))
    if len(right) < LEAST_ROWS or (counts > 0).sum() < 2:
        return None
    folds = _folds(right)
    tried = []
    for method in ("bias", "scale and bias", "linear map"):
        for strength in STRENGTHS:
            chances = np.zeros_like(logprobs)
            for fold in range(FOLDS):
                held = folds == fold
                weights, bias = _fitted(method, strength, logprobs[~held], right[~held], len(labels))
                chances[held] = _softmax(logprobs[held] @ weights.T + bias)
            loss = -np.log(np.maximum(chances[np.arange(len(right)), right], 1e-12)).mean()
            tried.append((float(loss), method, strength, float((chances.argmax(1) == right).mean())))
    _, method, strength, accuracy = min(tried, key=lambda each: each[0])
    weights, bias = _fitted(method, strength, logprobs, right, len(labels))
    return LabelRule(
        labels=tuple(labels),
        weights=tuple(tuple(float(value) for value in row) for row in weights),
        bias=tuple(float(value) for value in bias),
        method=method,
        rows=len(right),
        accuracy=accuracy,
    )


def _fitted(
    method: str, strength: float, logprobs: np.ndarray[Any, Any], right: np.ndarray[Any, Any], size: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(weights, bias) of lowest logarithmic loss, drawn towards the model's own probabilities."""
    from scipy.optimize import minimize

    rows, identity = len(right), np.eye(size)
    target = np.eye(size)[right]

    def unpack(values: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        bias, rest = values[:size], values[size:]
        if method == "bias":
            return identity, bias
        if method == "scale and bias":
            return identity * (1 + rest[0]), bias
        return identity + rest.reshape(size, size), bias

    # Of how far the map is from the model's own; biases are freer than weights, since a label's prior is what is wrong most.
    free = {"bias": 0, "scale and bias": 1, "linear map": size * size}[method]
    penalties = np.concatenate([np.full(size, 0.02), np.full(free, 1.0)]) / strength
    centred = logprobs - logprobs.mean(axis=1, keepdims=True)

    def loss(values: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        weights, bias = unpack(values)
        chances = _softmax(centred @ weights.T + bias)
        value = -np.log(np.maximum(chances[np.arange(rows), right], 1e-12)).sum() + (penalties * values**2).sum() / 2
        by_logit = chances - target
        by_weights = by_logit.T @ centred
        gradient = [by_logit.sum(0)]
        if method == "scale and bias":
            gradient.append(np.asarray([(by_weights * identity).sum()]))
        elif method == "linear map":
            gradient.append(by_weights.ravel())
        return float(value), np.concatenate(gradient) + penalties * values

    found = minimize(loss, np.zeros(size + free), jac=True, method="L-BFGS-B")
    weights, bias = unpack(found.x)
    # The row's mean was taken out: a map of the log-probabilities themselves does the same.
    return weights @ (identity - 1 / size), bias


def _folds(right: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The fold of each row: every label is spread over all folds."""
    folds = np.zeros(len(right), dtype=int)
    for label in np.unique(right):
        at = np.flatnonzero(right == label)
        folds[at] = (np.arange(len(at)) + int(label)) % FOLDS
    return folds


def _softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def _key(value: Any) -> str:
    """A value, by which it is known again: `1` is not `"1"`."""
    return f"{type(value).__name__} {value}"


def _inputs_of(row: Any, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(_key(row.get(name)) for name in names)
