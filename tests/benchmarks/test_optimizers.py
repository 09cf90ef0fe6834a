"""The benchmark of the optimizers without a model: its tasks, its arithmetic, its tables, and one run on fakes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.optimizers import __main__ as command
from benchmarks.optimizers.goals import best_alone, goals, mean_of, near_best, never_below, profile_cost, spent
from benchmarks.optimizers.measuring import measure_context, with_seed
from benchmarks.optimizers.report import cells, markdown, tables
from benchmarks.optimizers.rows import BASELINE, PROFILE, SCRIPTED, Kept, Row, value_of
from benchmarks.optimizers.scripted import INSTRUCTION, MODEL, scripted_context
from benchmarks.optimizers.tasks import NAMES, find_task
from benchmarks.optimizers.tasks.minutes import closeness, spell
from benchmarks.optimizers.tasks.record import share_of_fields
from benchmarks.optimizers.tasks.title import words_f1
from dspy_toolkit.datasets import Dataset, examples, read_file
from dspy_toolkit.metrics import score
from dspy_toolkit.pipeline.compile import compile as compile_step
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.prepare import prepare
from dspy_toolkit.pipeline.probe import probe
from dspy_toolkit.pipeline.select import select
from dspy_toolkit.pipeline.unchanged import program_part
from dspy_toolkit.project import DataPart, data_part
from dspy_toolkit.project.signatures import fields_of
from dspy_toolkit.run import CompileInput, SearchInput, SelectInput
from dspy_toolkit.settings import LMSettings, Settings
from dspy_toolkit.testing import fake_engine


def prepared(context: Context) -> Dataset:
    return prepare(context, DataPart(project=context.project.name, location="", fingerprint=""))


LEAST = {"train": 60, "val": 50, "sealed": 80}
"""Rows that say something."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    # The name stands in fingerprints; no such model is ever asked, nor looked for.
    return Settings(home=tmp_path / "home", lm=LMSettings(model="openai/toy"))


@pytest.mark.parametrize("name", NAMES)
def test_a_task_has_the_same_rows_each_time_and_enough_in_every_split(name: str, settings: Settings) -> None:
    task = find_task(name)
    rows = task.records(settings)
    assert rows == find_task(name).records(settings)
    context = Context(task.project, settings, records=rows)
    dataset = prepared(context)
    parts = {part: context.store.read_frame(getattr(dataset, part)) for part in LEAST}
    sizes = {part: len(frame) for part, frame in parts.items()}
    assert all(sizes[part] >= least for part, least in LEAST.items()), sizes
    # Near-duplicates share a split; many of them would leave fewer rows to tell anything by than there seem to be.
    groups = sum(frame["_group"].nunique() for frame in parts.values())
    assert groups >= 0.9 * sum(sizes.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_gives_1_to_the_expected_answer_and_says_why_not_to_another(name: str, settings: Settings) -> None:
    task = find_task(name)
    project = task.project
    context = Context(project, settings, records=task.records(settings))
    cases = examples(context.store.read_frame(prepared(context).val), project.dataset, fields_of(project.build()))
    for case, other in zip(cases, [*cases[1:], cases[0]], strict=True):
        assert score(project.metric, case, dspy.Prediction(**case.labels())).value == 1
        wrong = score(project.metric, case, dspy.Prediction(**other.labels()))
        if dict(case.labels()) != dict(other.labels()):
            assert wrong.value < 1
            assert str(next(iter(dict(case.labels()).values())))[:3] in wrong.feedback or "expected" in wrong.feedback


def test_an_unknown_task_is_refused_with_the_names() -> None:
    with pytest.raises(KeyError, match="router, record, minutes"):
        find_task("poem")


def test_the_router_task_keeps_the_projects_sealed_rows_out(settings: Settings) -> None:
    from dspy_toolkit.projects.router import project

    context = Context(project, settings)
    dataset = prepare(context, data_part(project, settings, read_file(project.data_path)))
    sealed = set(context.store.read_frame(dataset.sealed)["request"])
    assert sealed
    assert not sealed & {row["request"] for row in find_task("router").records(settings)}


RUN = {"owner": "Mira", "method": "lora", "steps": 400, "loss": 1.25}


@pytest.mark.parametrize(
    ("changes", "value"),
    [({}, 1), ({"owner": " mira "}, 1), ({"steps": 40}, 0.75), ({"steps": 4, "loss": 2.0, "method": "clip"}, 0.25)],
)
def test_a_record_scores_the_share_of_its_fields(changes: dict[str, Any], value: float) -> None:
    scored = share_of_fields(dspy.Example(record=RUN), dspy.Prediction(record=RUN | changes))
    assert scored.value == value
    assert all(name in scored.feedback for name in changes if name != "owner")


@given(expected=st.integers(1, 10**6), found=st.integers(-(10**6), 10**6))
def test_closeness_is_1_only_for_the_number_itself_and_falls_with_distance(expected: int, found: int) -> None:
    def close(number: int) -> float:
        return closeness(dspy.Example(minutes=expected), dspy.Prediction(minutes=number)).value

    assert (close(found) == 1) == (found == expected)
    if found > expected:
        assert close(found) >= close(found + 1)
    if found <= 0:
        assert close(found) == 0


@given(minutes=st.integers(1, 600), seed=st.integers())
def test_a_duration_is_spelled_so_that_it_can_be_read_again(minutes: int, seed: int) -> None:
    import random

    text = spell(minutes, random.Random(seed)).replace("one", "1")
    hours = re.search(r"(\d+) h", text)
    rest = re.search(r"(\d+) min", text)
    assert 60 * int(hours[1] if hours else 0) + int(rest[1] if rest else 0) == minutes


@pytest.mark.parametrize(
    ("title", "value"),
    [("lora ON Song-lyrics; overfits", 1), ("LoRA on song lyrics", 8 / 9), ("Nothing", 0), ("", 0)],
)
def test_a_title_scores_the_f1_of_its_words(title: str, value: float) -> None:
    expected = dspy.Example(title="LoRA on song lyrics: overfits")
    assert words_f1(expected, dspy.Prediction(title=title)).value == pytest.approx(value)


def rows_of(task: str, seed: int, system: str, **values: float | None) -> list[Row]:
    return [
        {"task": task, "seed": seed, "system": system, "measure": measure, "value": value, "unit": "", "note": ""}
        for measure, value in values.items()
    ]


def canned(race: float = 0.6, high: float = 0.1, race_calls: float = 300, task: str = "minutes") -> list[Row]:
    """One task: bootstrap is the best alone, mipro cannot run."""
    numbers = {"val": 0.6, "val_baseline": 0.5, "val_rows": 50, "physical_calls": 200, "seconds": 60, "predicted": 280}
    rows = rows_of(task, 0, PROFILE, lm_calls=31)
    rows += rows_of(task, 0, BASELINE, sealed=0.5, sealed_low=0.4, sealed_high=0.6, sealed_rows=100)
    for system, sealed, calls in (("bootstrap", 0.61, 280), ("gepa", 0.5, 320), ("race", race, race_calls)):
        found = {"sealed": sealed, "delta": sealed - 0.5, "low": -0.1, "high": high, "lm_calls": calls, **numbers}
        rows += rows_of(task, 0, system, **found)
    stopped = rows_of(task, 0, "mipro", impossible=None)
    stopped[0]["note"] = "mipro cannot run here: 3 trials cost about 900 LM calls. " + "Much more. " * 20
    return rows + stopped


def test_means_are_over_seeds_and_only_where_all_seeds_have_a_value() -> None:
    rows = [*rows_of("a", 0, "race", sealed=0.4), *rows_of("a", 1, "race", sealed=0.6, high=0.1)]
    assert mean_of(rows, "a", "race", "sealed") == pytest.approx(0.5)
    assert mean_of(rows, "a", "race", "high") is None
    assert best_alone(canned(), "minutes") == ("bootstrap", 0.61)
    assert best_alone(rows, "a") is None


@pytest.mark.parametrize(("race", "met"), [(0.60, True), (0.59, True), (0.58, False), (0.7, True)])
def test_near_the_best_is_within_two_points(race: float, met: bool) -> None:
    assert near_best(canned(race), "race").met is met


def test_near_the_best_holds_on_four_of_five() -> None:
    names = ("a", "b", "c", "d", "e")

    def rows(far: int) -> list[Row]:
        return [row for i, name in enumerate(names) for row in canned(0.4 if i < far else 0.6, task=name)]

    assert [near_best(rows(far), "race").met for far in range(3)] == [True, True, False]
    assert near_best(rows(1), "race").found.startswith("4 of 5 (a -21.0, b -1.0")


def test_below_is_an_interval_below_0() -> None:
    assert never_below(canned(high=0.0), "race").met is True
    worse = never_below(canned(high=-0.01), "race")
    assert (worse.met, worse.found) == (False, "below on minutes (seed 0)")
    assert never_below(canned(), "auto").met is None


def test_what_a_race_spends_is_held_against_all_optimizers_together() -> None:
    assert spent(canned(race_calls=360), "race").met is True
    over = spent([*canned(race_calls=300), *canned(race_calls=361, task="b")], "race")
    assert (over.met, over.found) == (False, "minutes 50%, b 60%")
    assert spent(canned(), "auto").met is None


def test_the_profile_is_held_against_a_medium_budget() -> None:
    assert profile_cost(canned()).met is True
    assert profile_cost(rows_of("a", 0, PROFILE, lm_calls=120)).met is False


def test_the_scripted_task_counts_for_its_own_goal_only() -> None:
    scripted = rows_of(SCRIPTED, 0, "gepa", delta=0.2, low=0.1, high=-0.5, sealed=0.9, lm_calls=290)
    assert goals([*canned(), *scripted])[:-1] == goals(canned())[:-1]
    assert goals([*canned(), *scripted])[-1].met is True
    assert goals(rows_of(SCRIPTED, 0, "gepa", delta=0.2, low=0.0))[-1].met is False


def test_the_tables_show_every_system_and_why_one_could_not_run() -> None:
    lines = {line[2]: line for line in cells(canned())}
    assert list(lines) == [BASELINE, "bootstrap", "mipro", "gepa", "race"]
    assert lines[BASELINE][4] == "50.0 % (40.0 % to 60.0 %)"
    assert lines["bootstrap"][3:] == (
        "50.0 % → 60.0 % of 50",
        "61.0 %",
        "+11.0 (-10.0 to +10.0)",
        "280 (280)",
        "200",
        "60",
    )
    assert lines["mipro"][5].startswith("impossible: mipro cannot run here")
    assert lines["mipro"][5].endswith("…")
    assert [table.row_count for table in tables(canned())] == [5, 8]
    text = markdown(canned())
    assert "| minutes | 0 | race | 50.0 % → 60.0 % of 50 | 60.0 % |" in text
    assert "| profile: under 10% of a medium budget | met | 2.6% to 2.6% |" in text


def test_what_was_kept_is_found_again_also_after_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "home" / "kept.jsonl"
    rows = rows_of("a", 0, "race", sealed=0.5)
    Kept(path).keep(rows, "a", 0)
    Kept(path).keep([], "b", 0)
    assert Kept(path).find("a", 0) == rows
    assert Kept(path).find("a", 1) is None
    path.write_text(path.read_text()[:-20])
    assert Kept(path).find("a", 0) == rows
    assert Kept(path).find("b", 0) is None


def test_gepa_gains_with_the_scripted_reflector_and_a_second_run_measures_nothing_again(settings: Settings) -> None:
    kept, said = Kept(settings.path("kept.jsonl")), []
    context = scripted_context(with_seed(settings, 3))
    batches = list(measure_context(context, "light", ("gepa", "poem"), kept, said.append, name=SCRIPTED))
    rows = [row for batch in batches for row in batch]
    assert context.connection.model == MODEL
    assert {row["seed"] for row in rows} == {3}
    assert (value_of(rows, SCRIPTED, 3, "gepa", "delta") or 0) > 0.1
    assert (value_of(rows, SCRIPTED, 3, "gepa", "lm_calls") or 999) <= 300
    assert goals(rows)[-1].met is True
    assert INSTRUCTION.split("\n")[0] in str(context.store.read_json(_compiled(context)))
    (poem,) = batches[-1]
    assert poem["measure"] == "impossible"
    assert "There is no optimizer 'poem'" in poem["note"]

    asked = len(fake_engine(context.connection).requests)
    again = list(
        measure_context(context, "light", ("gepa", "poem"), Kept(settings.path("kept.jsonl")), said.append, SCRIPTED)
    )
    assert [row for batch in again for row in batch] == rows
    assert len(fake_engine(context.connection).requests) == asked
    assert sum(line.endswith(": gepa") for line in said) == 1
    assert len(list(cells(rows))) == 2


def _compiled(context: Context) -> Any:
    """GEPA's program once more, from the cache of replies."""
    dataset = prepared(context)
    search = SearchInput(program=program_part(context), train=dataset.train, val=dataset.val)
    given = SelectInput(**dict(search), profile=probe(context, search), optimizer="gepa", budget="light")
    return compile_step(context, CompileInput(**dict(search), choice=select(context, given))).program


def test_the_command_refuses_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["optimizers", "--tasks", "poem"])
    with pytest.raises(SystemExit):
        command.main()
    assert "invalid choice: 'poem'" in capsys.readouterr().err
