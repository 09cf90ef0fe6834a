"""What trainings cost a search, which one it takes, and what their candidates are: a tiny model is really trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest

from dspy_toolkit.errors import EngineFailed, ToolkitError
from dspy_toolkit.finetuning import find_adapter
from dspy_toolkit.lm.formats import format_of
from dspy_toolkit.lm.levers import levers_of
from dspy_toolkit.lm.models.weights import Weights
from dspy_toolkit.optimizers import Profile
from dspy_toolkit.optimizers.choice import Infeasible
from dspy_toolkit.optimizers.generators import finetune, together, trainings
from dspy_toolkit.optimizers.generators.training_rows import bare, row_set
from dspy_toolkit.optimizers.generators.trainings import PLANS
from dspy_toolkit.optimizers.generators.workshop import Workshop
from dspy_toolkit.optimizers.problem import Trainable
from dspy_toolkit.optimizers.settings import PoolSettings
from dspy_toolkit.testing import fake_connection
from tests.finetuning.conftest import base as base  # the fixture
from tests.optimizers.toys import Toy, profile, question, right_answer, rows

TRAINED: dict[str, Any] = {"training_note": "", "training_seconds": 0.1, "training_tokens": 900.0, "labels": 3}


def settings(*generators: str) -> PoolSettings:
    return PoolSettings(optimizer="race", generators=generators or ("finetune",), rungs=(8, 16))


def test_a_plan_costs_what_it_trains() -> None:
    whole, *_, least = (trainings.calls(profile(**TRAINED), plan) for plan in PLANS)
    costs = [trainings.seconds(profile(**TRAINED | {"training_seconds": 20.0}), plan) for plan in PLANS]
    assert costs == sorted(costs, reverse=True), "from the dearest to the cheapest"
    assert costs[-1] == pytest.approx(trainings.START_SECONDS + PLANS[-1].arms[0].epochs * 20.0)
    # Two arms make two passes each, and one of them goes on to its sixth.
    assert costs[-2] == pytest.approx(trainings.START_SECONDS + (2 + 6) * 20.0)
    assert trainings.tokens(profile(**TRAINED), PLANS[-1]) == pytest.approx(900 * PLANS[-1].arms[0].epochs, rel=0.1)
    assert whole > least > 0


def test_the_dearest_plan_that_fits_is_taken(toy: Toy) -> None:
    dear = profile(**TRAINED | {"training_seconds": 20.0, "seconds_per_call": 0.5})
    costs = [trainings.calls(dear, plan) for plan in PLANS]

    def taken(lm_calls: int, *generators: str) -> Any:
        return trainings.best_plan(Workshop(toy.problem(), dear, settings(*generators), lm_calls))

    scoring = 3 * 16
    for plan, calls in zip(PLANS, costs, strict=True):
        assert taken(calls + scoring) is plan
    assert taken(costs[-1]) is PLANS[-1], "the smallest needs no more than its own calls"
    assert taken(costs[-1] - 1) is None
    assert taken(costs[0] + scoring, "finetune", "gepa") is not PLANS[0], "others want their share"
    assert taken(2 * costs[0], "finetune", "gepa") is PLANS[0]


def test_an_adapter_is_trained_once_and_prompts_are_tried_on_it(
    toy: Toy, base: Callable[..., Weights], tmp_path: Path
) -> None:
    weights = base()
    patient = profile(**TRAINED | {"training_seconds": 20.0})  # a busy machine may be slow to start a process
    least = trainings.calls(patient, PLANS[-1])
    shop = Workshop(toy.problem(trainable=Trainable(weights, tmp_path, lease=False)), patient, settings(), least + 2)
    made = list(finetune.candidates(shop))
    assert [each.label.partition(", labels")[2] for each in made] == ["", " scored"], "no room for a second training"
    assert shop.meter.usage.lm_calls == least
    plain, scored = (levers_of(each.program.predictors()[0]) for each in made)
    assert plain.keys() == {"format", "adapter"} and plain["format"] == "plain"
    assert scored.keys() == {"format", "adapter", "labels"} and scored["adapter"] == plain["adapter"]
    assert find_adapter(tmp_path, plain["adapter"], weights.sha256).origin.steps > 0
    # What leads has demonstrations: weights come from before, and prompts are tried on them.
    shop.grounds.append(made[0].program)
    leading = bare(made[0].program)
    leading.predictors()[0].demos = list(shop.train[:2])
    after = list(together._on_weights(shop, leading, bare(made[0].program), "the best"))
    assert shop.meter.usage.lm_calls == least, "no second training"
    assert [len(each.program.predictors()[0].demos) for each in after] == [0, 2, 4, 8]
    assert {levers_of(each.program.predictors()[0])["adapter"] for each in after} == {plain["adapter"]}


def test_too_few_rows_or_right_runs_are_said(toy: Toy) -> None:
    found = finetune.cost(profile(**TRAINED, train=15), settings())
    assert isinstance(found, Infeasible) and "15 training rows are too few" in found.reason
    problem = toy.problem()
    note = finetune.training_facts(problem, True, 1.0, 100.0)[2]
    assert note.startswith("its model is not one that is trained here") and "dspy.BootstrapFinetune" in note
    own = toy.problem(trainable=Trainable(Weights("mlx/x", Path(), "0" * 64), Path()))
    assert "5% of its own runs are right" in finetune.training_facts(own, False, 0.05, 100.0)[2]


class Steps(dspy.Module):
    """Two steps, of whose first one no row says anything."""

    def __init__(self) -> None:
        super().__init__()
        self.look = dspy.Predict(dspy.Signature("text: str -> thing: str", "Name the thing."))
        self.say = dspy.Predict(dspy.Signature({"thing": (str, dspy.InputField()), "label": (
            Literal["red", "green", "blue"], dspy.OutputField())}, "Say its colour."))  # fmt: skip

    def forward(self, text: str) -> dspy.Prediction:
        return self.say(thing=self.look(text=text).thing)


def steps_shop(toy: Toy, reply: Callable[[Any], Any]) -> Workshop:
    toy.train = rows(30)
    seen: Profile = profile(**TRAINED, predictors=2, labelled=False, calls_per_run=2.0)
    problem = toy.problem(fake_connection(reply, toy.settings), program=Steps())
    return Workshop(problem, seen, settings(), 1_000)


def test_each_step_learns_from_its_own_calls_in_accepted_runs(toy: Toy) -> None:
    def reply(request: Any) -> Any:
        text = question(request) if "text" in request.messages[-1].content else request.messages[-1].content
        if "Name the thing" in request.messages[0].content:
            return {"thing": text}
        return {"label": right_answer(text) if "tomato" in text or "lime" in text else "blue"}

    shop = steps_shop(toy, reply)
    program = bare(shop.problem.program)
    data = row_set(shop, program)
    assert data is not None
    right = [case for case in shop.train if case.label == "blue" or "tomato" in case.text or "lime" in case.text]
    assert len(data.rows) + len(data.val_rows) == 2 * len(right)
    assert len(data.val_rows) == 2 * -(-len(right) // 5), "a fifth of the runs is kept back"
    firsts = [row for row in data.rows if "Name the thing" in row.prompt[0].content]
    others = [row for row in data.rows if "Say its colour" in row.prompt[0].content]
    assert len(firsts) == len(others) == len(data.rows) // 2
    assert all(right_answer(row.prompt[-1].content) in row.reply for row in others)
    assert shop.meter.usage.lm_calls == 60
    assert format_of(program.predictors()[0]) is None, "in the program's own format"


def test_a_model_that_fails_ends_the_search_and_one_run_does_not(toy: Toy) -> None:
    shop = steps_shop(
        toy, lambda request: {"thing": "x"} if "Name" in request.messages[0].content else {"label": "red"}
    )
    assert row_set(shop, bare(shop.problem.program)) is not None
    broken = steps_shop(toy, lambda request: EngineFailed("it died"))
    with pytest.raises(ToolkitError, match="it died"):
        row_set(broken, bare(broken.problem.program))
