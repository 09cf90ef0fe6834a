"""Each row run several times, with other samples each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_toolkit.errors import ProgramError, SettingsError
from dspy_toolkit.evaluation import Report, evaluate
from dspy_toolkit.metrics import Score, exact_match
from dspy_toolkit.settings import Settings
from dspy_toolkit.store import Store
from dspy_toolkit.testing import fake_connection, fake_engine
from tests.evaluation.made import SPEC, Calling, rows


def sampled(tmp_path: Path, reply: Any, frame: Any, repeats: int, *, metric: Any = exact_match, program: Any = None):
    """The report, its table, and the fake engine."""
    settings = Settings(home=tmp_path, lm={"temperature": 1.0})  # pyright: ignore[reportArgumentType]
    connection, store = fake_connection(reply, settings), Store(str(tmp_path / "objects"))
    report = evaluate(
        program or dspy.Predict("text -> label"),
        frame,
        SPEC,
        metric,
        split="val",
        lm=connection.lm,
        adapter=connection.adapter,
        store=store,
        repeats=repeats,
    )
    return report, store.read_frame(report.rows), fake_engine(connection)


def by_seed(request: Any) -> Any:
    """Right in every run but the second."""
    return {"label": "no" if request.seed == 2 else "yes"}


def test_a_rows_score_is_the_mean_of_its_runs_and_every_run_is_kept(tmp_path: Path) -> None:
    report, table, engine = sampled(tmp_path, by_seed, rows("yes", "yes", "no"), 4)
    assert (report.n, report.repeats, report.usage.lm_calls) == (3, 4, 12)
    assert report.mean == pytest.approx((3 / 4 + 3 / 4 + 1 / 4) / 3)
    assert table["value"].tolist() == [0.75, 0.75, 0.25]
    assert [json.loads(text) for text in table["values"]] == [[1, 0, 1, 1], [1, 0, 1, 1], [0, 1, 0, 0]]
    assert json.loads(table["prediction"][0]) == {"label": "yes"}, "the first run's"
    assert sorted(request.seed for request in engine.requests) == sorted([1, 2, 3, 4] * 3)


def test_a_second_evaluation_of_the_same_is_answered_by_the_cache(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, lm={"temperature": 1.0})  # pyright: ignore[reportArgumentType]
    connection, store = fake_connection(by_seed, settings), Store(str(tmp_path / "objects"))

    def once() -> Report:
        return evaluate(
            dspy.Predict("text -> label"),
            rows("yes", "no"),
            SPEC,
            exact_match,
            split="val",
            lm=connection.lm,
            adapter=connection.adapter,
            store=store,
            repeats=3,
        )

    first, second = once(), once()
    assert (first.usage.physical_calls, second.usage.physical_calls) == (6, 0)
    assert first.rows == second.rows


def test_rows_are_the_unit_of_the_interval(tmp_path: Path) -> None:
    """Twice as many runs of the same rows are no more rows."""
    frame = rows(*["yes"] * 6, *["no"] * 6)
    once, twice = (sampled(tmp_path, lambda request: {"label": "yes"}, frame, repeats)[0] for repeats in (2, 4))
    assert (once.mean, once.low, once.high) == (twice.mean, twice.low, twice.high)


def test_faults_are_counted_by_run_and_named_by_run(tmp_path: Path, run) -> None:
    def reply(request: Any) -> Any:
        return "?" if request.seed == 2 else {"label": "yes"}

    settings = Settings(home=tmp_path, lm={"temperature": 1.0})  # pyright: ignore[reportArgumentType]
    connection = fake_connection(reply, settings, check_grammar=False)
    frame = rows("yes", "yes")
    report = run(dspy.Predict("text -> label"), frame, lm=connection.lm, repeats=3)
    assert (report.parse_failures, report.mean) == (2, pytest.approx(2 / 3))

    def answer(text: str) -> str:
        raise ValueError("odd")

    with pytest.raises(ProgramError, match=r"of the first 1 runs of .* row row0 \(run 1\): .*ValueError"):
        run(Calling(answer), frame, lm=connection.lm, repeats=3, threads=1)


def test_measures_are_means_over_rows_and_runs(tmp_path: Path) -> None:
    def metric(example: dspy.Example, prediction: dspy.Prediction) -> Score:
        right = prediction.label == "yes"
        return Score(value=right, measures={"right": float(right)} | ({"length": 3.0} if right else {}))

    report, table, _ = sampled(tmp_path, by_seed, rows("yes", "no"), 2, metric=metric)
    assert report.measures == {"right": 0.5, "length": 3.0}
    assert [json.loads(text) for text in table["measures"]] == [{"right": 0.5, "length": 3.0}] * 2


def test_a_model_at_temperature_0_has_nothing_to_repeat(tmp_path: Path, run) -> None:
    connection = fake_connection([], tmp_path)
    with pytest.raises(
        SettingsError, match=r"repeats is 2, but the temperature of mlx/fake.* is 0.*Set lm\.temperature"
    ):
        run(Calling(str), rows("a"), lm=connection.lm, repeats=2)
    with pytest.raises(SettingsError, match="repeats is 0"):
        run(Calling(str), rows("a"), lm=connection.lm, repeats=0)
