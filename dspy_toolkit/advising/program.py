"""The program that is optimized: a description in somebody's words → the situation → the advice.

One prediction reads the fields, each a choice with `unknown` among its levels, so that rows can train it; the rest is code. The
metric counts the fields and what they lead to: the measured regret of the advised configuration in the situation that was meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dspy_toolkit.advising.advice import Advice, advise_on
from dspy_toolkit.advising.landscape import LOSS, matching, measured_loss
from dspy_toolkit.errors import ProjectError
from dspy_toolkit.metrics import Score

if TYPE_CHECKING:
    import dspy

    from dspy_toolkit.advising.advisor import Advisor
    from dspy_toolkit.advising.situation import Situation

FIELDS_SHARE = 0.5
"""Of the score; the rest is the regret's."""


def advice_program(
    signature: type[dspy.Signature], find: Callable[[], Advisor], explain: type[dspy.Signature] | None = None
) -> dspy.Module:
    """A fresh program.

    Args:
        signature: `request` → the fields of the project's situation.
        find: the project's advisor; called when the program runs.
        explain: `situation, candidates, expected → configuration, explanation`, asked for words too. What it picks stands only if
            it is among the candidates, its explanation only if each of its numbers is a fact. Left out, code explains:
            a program of one step can be fine-tuned.
    """
    import dspy

    class AdviceProgram(dspy.Module):
        """`request` → the situation's fields, `configuration`, `explanation`."""

        def __init__(self) -> None:
            super().__init__()
            self.read = dspy.Predict(signature)
            if explain is not None:
                self.explain = dspy.Predict(explain)

        def forward(self, request: str) -> dspy.Prediction:
            answer = self.read(request=request)
            return self._answer(answer, lambda **inputs: self.explain(**inputs))

        async def aforward(self, request: str) -> dspy.Prediction:
            answer = await self.read.acall(request=request)
            return self._answer(answer, lambda **inputs: self.explain(**inputs))

        def _answer(self, answer: Any, ask: Callable[..., Any]) -> dspy.Prediction:
            advisor = find()
            situation = advisor.situation.lenient(dict(answer.items()))
            fields = situation.model_dump()
            try:
                advice = advise_on(advisor, situation, ranges=False)
            except ProjectError as refusal:
                return dspy.Prediction(**fields, configuration=None, explanation=str(refusal))
            configuration, text = advice.configuration, advice.text
            if explain is not None:
                configuration, text = _explained(advisor, advice, ask)
            return dspy.Prediction(**fields, configuration=configuration, explanation=text)

    return AdviceProgram()


def _explained(advisor: Advisor, advice: Advice, ask: Callable[..., Any]) -> tuple[Any, str]:
    """The model's pick among the candidates and its words, each where it can be trusted."""
    from dspy_toolkit.advising.advice import checked_explanation

    offered = [advisor.configure(advice.situation, each.configuration, advice.facts) for each in advice.candidates]
    said = ask(situation=advice.situation, candidates=offered, expected=advisor.describe(advice.expected))
    picked = said.configuration if said.configuration in offered else advice.configuration
    return picked, checked_explanation(advice, str(said.explanation))


def advice_metric(find: Callable[[], Advisor]) -> Callable[[Any, Any], Score]:
    """The metric: half for the share of fields that were read right, half for what they lead to.

    `measures` has both, the regret in the project's native unit. What is not allowed in the situation that was meant scores 0.
    """

    def advice_score(example: dspy.Example, prediction: dspy.Prediction) -> Score:
        advisor = find()
        names = list(advisor.situation.model_fields)
        meant = advisor.situation.lenient({name: example.get(name, "unknown") for name in names})
        read = advisor.situation.lenient({name: getattr(prediction, name, "unknown") for name in names})
        wrong = [name for name in names if getattr(read, name) != getattr(meant, name)]
        fields = 1 - len(wrong) / len(names)
        said = [f"{name} is {getattr(meant, name)!r}, not {getattr(read, name)!r}" for name in wrong]
        try:
            chosen = chosen_in(advisor, read)
        except ProjectError as refusal:
            return Score(
                value=FIELDS_SHARE * fields, feedback=f"{refusal} {'; '.join(said)}", measures={"fields": fields}
            )
        if refused := advisor.allowed(meant, chosen):
            return Score(value=0, feedback=f"Not allowed: {refused}. {'; '.join(said)}", measures={"fields": fields})
        regret, scale = regret_of(advisor, meant, chosen)
        value = FIELDS_SHARE * fields + (1 - FIELDS_SHARE) * max(0.0, 1 - regret / scale if scale > 0 else 1.0)
        said.append(f"what was advised is {regret:.3g} {advisor.unit} worse than the best that was measured")
        return Score(
            value=min(value, 1.0), feedback=". ".join(said) + ".", measures={"fields": fields, "regret": regret}
        )

    return advice_score


def chosen_in(advisor: Advisor, situation: Situation) -> Mapping[str, Any]:
    """The measured configuration that is advised in a situation; remembered, since many descriptions mean the same one."""
    cache, key = advisor._cache, ("chosen", situation)
    if key not in cache:
        cache[key] = advise_on(advisor, situation, ranges=False).measured
    return cache[key]


def regret_of(advisor: Advisor, situation: Situation, chosen: Mapping[str, Any]) -> tuple[float, float]:
    """(measured regret of a configuration in a situation, the regret of a random allowed one), in the native unit."""
    cache, key = advisor._cache, ("measured", situation)
    if key not in cache:
        columns, context = advisor.columns, advisor.context_of(situation)
        runs = matching(advisor.scored(situation), columns, context)
        means = runs.groupby(list(columns.configuration), sort=False)[LOSS].mean()
        permitted = [
            advisor.permits(situation)(dict(zip(columns.configuration, row, strict=True))) for row in means.index
        ]
        allowed = means[permitted]
        cache[key] = runs, float(allowed.min()), float((allowed - allowed.min()).mean())
    runs, best, random = cache[key]
    return max(measured_loss(runs, advisor.columns, {}, chosen) - best, 0.0), random
