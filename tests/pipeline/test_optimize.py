"""One call, from Python, on any module; and every bad input as one clear error before anything is lost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import dspy
import pandas as pd
import pytest

from dspy_toolkit import Result, optimize
from dspy_toolkit.errors import (
    DatasetError,
    MetricError,
    ModelNotFound,
    OptimizerError,
    ProjectError,
    StoreError,
    ToolkitError,
)
from dspy_toolkit.metrics import judge
from dspy_toolkit.settings import LMSettings, Settings
from tests.optimizers.toys import (
    HINT,
    LABELS,
    WRITTEN,
    Toy,
    asked_field,
    by_demos,
    by_instruction,
    engine_of,
    program,
    records,
    searched,
)
from tests.samples import sample


class Setup:
    """The toy behind `optimize`."""

    def __init__(self, toy: Toy) -> None:
        self.toy, self.connection = toy, toy.connect()
        self.toy.knows = by_instruction

    def optimize(self, given: dspy.Module | None = None, rows: Any = None, **options: Any) -> Result:
        rows = records(110) if rows is None else rows
        options = {"settings": self.toy.settings, "connection": self.connection, **options}
        return optimize(given or program(), rows, **options)


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(Toy(tmp_path))


def as_file(rows: list[dict[str, Any]], path: Path) -> Path:
    frame = pd.DataFrame(rows)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    return path


def test_a_better_program_comes_back_and_answers(setup: Setup) -> None:
    given, said = program(), []
    result = setup.optimize(given, progress=lambda *progress: said.append(progress))
    assert result.improved
    assert str(result) == result.reason
    assert result.reason.startswith("Better than the champion: ")
    assert result.choice.optimizer == "auto"
    with setup.connection.context():
        assert result.program(text="the sky 3").label == "blue"
    assert result.program.signature.instructions == HINT
    assert given.signature.instructions == "Classify."
    assert "candidate on sealed" in {doing for _, _, doing in said}
    assert any("100%" in doing for _, _, doing in said)


@pytest.mark.soak
def test_rows_of_every_kind_are_the_same_rows(setup: Setup, tmp_path: Path) -> None:
    rows = records(110)
    expected = setup.optimize(rows=rows).compiled
    kinds: dict[str, Any] = {
        "dictionaries": rows,
        "examples": [dspy.Example(**row).with_inputs("text") for row in rows],
        "generator": (row for row in rows),
        "frame": pd.DataFrame(rows),
        ".csv": str(as_file(rows, tmp_path / "rows.csv")),
        ".jsonl": as_file(rows, tmp_path / "rows.jsonl"),
        ".parquet": as_file(rows, tmp_path / "rows.parquet"),
    }
    for kind, given in kinds.items():
        compiled = setup.optimize(rows=given).compiled
        assert searched(compiled) == searched(expected), kind
        assert compiled.usage.physical_calls == 0, kind


def test_nothing_changed(setup: Setup) -> None:
    setup.toy.knows = lambda request: False
    given = program()
    result = setup.optimize(given, optimizer="bootstrap")
    assert not result.improved
    assert result.reason.startswith("Nothing changed: of ")
    assert result.comparison.outcome == "unchanged"
    assert result.program is not given
    assert result.program.demos == []


def test_nothing_to_gain(setup: Setup) -> None:
    setup.toy.knows = lambda request: True
    result = setup.optimize()
    assert (result.choice.optimizer, result.improved) == ("none", False)
    assert result.reason == "The program scores 100% as it is: there is nothing to gain."


class Steps(dspy.Module):
    """Two predictors, the first of which gives what the second takes, and a model of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = program()
        self.second = dspy.Predict("text, label -> sure: bool")

    def forward(self, text: str) -> dspy.Prediction:
        label = self.first(text=text).label
        return dspy.Prediction(label=label, sure=self.second(text=text, label=label).sure)


def test_a_module_of_several_predictors_and_a_function_for_a_metric(setup: Setup) -> None:
    answer = setup.toy.reply
    setup.toy.knows = by_demos

    def reply(request: Any) -> Any:
        return {"sure": True} if "[[ ## sure ## ]]" in request.messages[0].content else answer(request)

    engine_of(setup.connection)._function = reply

    def metric(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return 0.5 * (example.label == prediction.label) + 0.5 * prediction.sure

    result = setup.optimize(Steps(), metric=metric, optimizer="bootstrap")
    assert result.profile.predictors == 2
    assert result.profile.calls_per_run == 2.0
    assert result.improved
    assert result.program.first.demos and result.program.second.demos


@pytest.mark.parametrize("optimizer", sample(["bootstrap", "gepa", "race"], "gepa"))
def test_a_judge_is_the_metric_of_a_whole_optimization(setup: Setup, optimizer: str) -> None:
    """Its calls are part of a run's cost and of the budget, its reasons reach the reflection model."""
    answer, reflected = setup.toy.reply, []
    setup.toy.knows = by_instruction if optimizer == "gepa" else by_demos

    def reply(request: Any) -> Any:
        system, user = request.messages[0].content, request.messages[-1].content
        if "Grade an answer by the rubric" in system:
            expected, given = re.findall(r"^label: (\w+)$", user, re.MULTILINE)
            return {"reason": f"It is {expected}, not {given}.", "grade": 5 if given == expected else 1}
        if asked_field(request) in WRITTEN:
            reflected.append(user)
        return answer(request)

    engine_of(setup.connection)._function = reply
    result = setup.optimize(metric=judge("The label is the colour of the thing."), optimizer=optimizer, budget="500")
    assert result.improved
    assert result.profile.calls_per_run == 2.0
    assert result.profile.feedback
    assert result.compiled.usage.lm_calls <= 500 + 2 * setup.toy.settings.optimize.threads
    # In a race labelled rows are right everywhere before anybody reflects.
    assert any("Grade 1 of 5. It is " in prompt for prompt in reflected) == (optimizer == "gepa")


def test_the_same_call_again_repeats_itself_from_the_cache(setup: Setup) -> None:
    first, second = setup.optimize(), setup.optimize()
    assert second.compiled.program == first.compiled.program
    assert (second.compiled.usage.physical_calls, second.improved) == (0, True)
    assert second.comparison.sealed is not None
    assert second.comparison.sealed.looks == 1, "the same question with the same answer is no other look"


def test_columns_may_be_named(setup: Setup) -> None:
    rows = [{**row, "note": "n", "number": index} for index, row in enumerate(records(110))]
    result = setup.optimize(rows=rows, inputs="text", outputs=["label"], optimizer="bootstrap")
    assert result.profile.train > 10


def test_a_program_that_was_compiled_before_may_be_given(setup: Setup) -> None:
    assert setup.optimize(setup.optimize(optimizer="bootstrap").program, optimizer="bootstrap").compiled.trials


def raises(example: dspy.Example, prediction: dspy.Prediction) -> float:
    raise ZeroDivisionError("nothing to divide")


BAD: dict[str, tuple[dict[str, Any], type[ToolkitError], str]] = {
    "empty": ({"rows": []}, DatasetError, "rows has no rows. Give at least a few dozen."),
    "no file": ({"rows": "rosw.csv"}, DatasetError, r"rosw\.csv does not exist.*Correct the dataset's source"),
    "no rows at all": ({"rows": 3}, DatasetError, "rows cannot be read: .* Give dictionaries, dspy.Examples"),
    "lists": ({"rows": [["a", "b"]]}, DatasetError, "rows cannot be read: .* Give dictionaries"),
    "unknown input": ({"inputs": ["txet"]}, DatasetError, 'rows has no column "txet". Did you mean text'),
    "unknown output": ({"outputs": ["lable"]}, DatasetError, 'rows has no column "lable". Did you mean label'),
    "no column fits": (
        {"rows": [{"question": "?", "answer": "!"}]},
        ProjectError,
        r"None of the rows' columns \(question, answer\) is an input of the program. Rename the columns, or pass inputs",
    ),
    "no output": ({"rows": [{"text": "a"}]}, ProjectError, "outputs is empty. exact_match needs one to compare with"),
    "input twice": (
        {"inputs": ["text", "text"]},
        ProjectError,
        r"inputs and outputs name text more than once. Correct inputs=\['text', 'text'\]",
    ),
    "label outside": (
        {"rows": [*records(60), {"text": "odd", "label": "pink"}]},
        DatasetError,
        'rows, row 61: label "pink" is not one of red, green, blue.*\nFix the row',
    ),
    "class with one row": (
        {"rows": [*(row for row in records(60) if row["label"] != "blue"), records(3)[2]]},
        DatasetError,
        '(?s)class "blue" of label has 1 row: .*Add rows of it, or merge it',
    ),
    "metric raises": ({"metric": raises}, MetricError, "raised ZeroDivisionError: nothing to divide"),
    "metric NaN": ({"metric": lambda e, p: float("nan")}, MetricError, "returned NaN. Return 0"),
    "metric 2.0": ({"metric": lambda e, p: 2.0}, MetricError, r"returned 2\.0, which is not in \[0, 1\]"),
    "metric's name": (
        {"metric": "exact_macth"},
        ProjectError,
        "'exact_macth' is not built in. Did you mean exact_match",
    ),
    "optimizer": ({"optimizer": "gepaa"}, OptimizerError, "There is no optimizer 'gepaa'. Did you mean gepa"),
    "budget": ({"budget": "lite"}, OptimizerError, "There is no budget 'lite'.* Correct --budget"),
    "too few rows": ({"rows": records(5)}, DatasetError, "(?s)has 1 row: .*Add rows of it"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(setup: Setup, what: str) -> None:
    options, kind, message = BAD[what]
    with pytest.raises(kind, match=message):
        setup.optimize(**options)
    if kind is not MetricError:
        assert setup.toy.kinds.total() == 0


def test_a_program_without_predictors(setup: Setup) -> None:
    class Rules(dspy.Module):
        def forward(self, text: str) -> dspy.Prediction:
            return dspy.Prediction(label=LABELS[0])

    with pytest.raises(ProjectError, match="The program Rules has no predictor .* Put a dspy.Predict into it"):
        setup.optimize(Rules())
    with pytest.raises(ProjectError, match="The program is <class .*Steps'>. Give a dspy.Module"):
        setup.optimize(Steps)  # pyright: ignore[reportArgumentType]


def test_a_program_that_asks_no_model(setup: Setup) -> None:
    class Idle(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = program()

        def forward(self, text: str) -> dspy.Prediction:
            return dspy.Prediction(label=LABELS[0])

    with pytest.raises(OptimizerError, match="auto cannot run here: the program asks no language model"):
        setup.optimize(Idle())


def test_a_model_that_does_not_exist(setup: Setup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    settings = Settings(home=tmp_path / "home", lm=LMSettings(model="mlx/smolm2-135m"))
    with pytest.raises(ModelNotFound, match="smollm2-135m"):
        setup.optimize(settings=settings)


def test_a_home_that_cannot_be_written(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="set DSPY_TOOLKIT_HOME to a folder that is"):
        setup.optimize(settings=setup.toy.settings.model_copy(update={"home": tmp_path / "file" / "home"}))
