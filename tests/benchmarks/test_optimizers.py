"""The benchmark of the optimizers without a model: its tasks, its arithmetic, its tables, and one run on fakes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.optimizers import __main__ as command
from benchmarks.optimizers.classical import LOGISTIC, NEAREST, classical
from benchmarks.optimizers.clock import Clock
from benchmarks.optimizers.clock import spell as spell_time
from benchmarks.optimizers.gains import Gains, gains_of, mean_sealed, of_task, over_tasks, shared
from benchmarks.optimizers.goals import best_alone, best_of_each, goals, near_best, never_below, profile_cost
from benchmarks.optimizers.measuring import measure_context, with_seed
from benchmarks.optimizers.report import cells, markdown, summary_cells, tables, task_cells
from benchmarks.optimizers.rows import BASELINE, CLASSICAL, PROFILE, SCRIPTED, Kept, Row, value_of
from benchmarks.optimizers.scripted import INSTRUCTION, MODEL, scripted_context
from benchmarks.optimizers.tasks import GYM, NAMES, find_task, gym
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
from tests.benchmarks import fake_gym


def prepared(context: Context) -> Dataset:
    return prepare(context, DataPart(project=context.project.name, location="", fingerprint=""))


LEAST = {"train": 60, "val": 50, "sealed": 80}
"""Rows that say something."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    # The name stands in fingerprints; no such model is ever asked, nor looked for.
    return Settings(home=tmp_path / "home", lm=LMSettings(model="openai/toy"))


@pytest.fixture(autouse=True)
def puzzles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is for the benchmark alone, and is not installed where these tests run."""
    monkeypatch.setitem(sys.modules, gym.PACKAGE, fake_gym)


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


@pytest.mark.parametrize("name", [name for name in NAMES if name != "router"])
def test_another_seed_draws_other_rows(name: str, settings: Settings) -> None:
    task = find_task(name)
    rows, others = ({str(row) for row in task.records(with_seed(settings, seed))} for seed in (0, 1))
    assert len(rows & others) < 0.05 * len(rows)


def test_a_puzzle_is_right_when_the_packages_verifier_gives_all_points() -> None:
    assert gym.verify("letter_counting", dspy.Example(answer=1), dspy.Prediction(answer=1)).value == 1
    partly = gym.verify("letter_counting", dspy.Example(answer=1), dspy.Prediction(answer=11))
    assert (partly.value, partly.feedback) == (0, "Expected 1, got '11'.")
    near = gym.verify("number_format", dspy.Example(answer=3.5), dspy.Prediction(answer=3.5001), {"solution": 3.5})
    assert near.value == 1


def test_without_the_package_its_tasks_are_named_with_the_command_that_helps(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert command.possible(NAMES) == list(NAMES)
    monkeypatch.setitem(sys.modules, gym.PACKAGE, None)
    assert command.possible(NAMES) == [name for name in NAMES if name not in GYM]
    told = capsys.readouterr().err
    assert told.startswith("Left out: letters, largest, relation. reasoning-gym cannot be imported (")
    assert told.endswith(": .venv/bin/uv pip install --group gym\n")
    assert command.possible(["router"]) == ["router"]
    assert not capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["optimizers", "--tasks", *GYM])
    assert command.main() == 1


def test_too_few_different_puzzles_are_an_error(settings: Settings) -> None:
    with pytest.raises(ValueError, match="letter_counting gave 0 different questions in 1,000 draws, 3 are wanted"):
        gym.draw_puzzles("letter_counting", {}, 3, settings, 1, answers=("none",))


@pytest.mark.parametrize(("name", "method"), [("cause", LOGISTIC), ("title", NEAREST), ("minutes", NEAREST)])
def test_the_classical_reference_learns_from_the_training_rows(name: str, method: str, settings: Settings) -> None:
    task = find_task(name)
    context = Context(task.project, settings, records=task.records(settings))
    dataset = prepared(context)
    found, score_of_sealed = classical(context, dataset)
    assert found == method
    # Those that it learned from, it knows: the sealed rows are what is hard.
    known, score_of_train = classical(context, dataset.model_copy(update={"sealed": dataset.train}))
    assert known == method
    assert 0.2 < score_of_sealed <= score_of_train
    assert score_of_train > 0.98


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
    numbers = {
        "budget": 300,
        "val": 0.6,
        "val_baseline": 0.5,
        "val_rows": 50,
        "physical_calls": 200,
        "seconds": 60,
        "predicted": 280,
    }
    rows = rows_of(task, 0, PROFILE, lm_calls=31)
    rows += rows_of(task, 0, BASELINE, sealed=0.5, sealed_low=0.4, sealed_high=0.6, sealed_rows=100)
    rows += rows_of(task, 0, CLASSICAL, sealed=0.3)
    for system, sealed, calls in (("bootstrap", 0.61, 280), ("gepa", 0.5, 320), ("race", race, race_calls)):
        found = {"sealed": sealed, "delta": sealed - 0.5, "low": -0.1, "high": high, "lm_calls": calls, **numbers}
        rows += rows_of(task, 0, system, **found)
    stopped = rows_of(task, 0, "mipro", impossible=None)
    stopped[0]["note"] = "mipro cannot run here: 3 trials cost about 900 LM calls. " + "Much more. " * 20
    return rows + stopped


def gain(task: str, seed: int, system: str, delta: float, width: float = 0.1) -> list[Row]:
    return rows_of(task, seed, system, delta=delta, low=delta - width, high=delta + width, sealed=0.5 + delta)


def test_gains_are_by_task_and_seed_and_none_where_a_system_could_not_run() -> None:
    rows = [*gain("a", 0, "race", 0.1), *gain("a", 1, "race", 0.3), *rows_of("b", 0, "race", impossible=None)]
    rows += [*gain("b", 1, "mipro", 0.2), *rows_of("a", 0, "mipro", failed=None), *gain(SCRIPTED, 0, "race", 0.9)]
    assert gains_of(rows, "race") == {"a": [0.1, 0.3], "b": [0.0]}
    assert gains_of(rows, "mipro") == {"b": [0.2]}  # what failed says nothing
    assert gains_of(rows, "auto") == {}
    both = shared(rows, ("race", "mipro"))
    assert both == []
    both = shared([*rows, *gain("a", 1, "mipro", 0.2)], ("race", "mipro"))
    assert {(row["task"], row["seed"]) for row in both} == {("a", 1)}


def test_a_search_that_failed_is_counted_beside_the_gains() -> None:
    rows = [*canned(), *rows_of("b", 0, "race", failed=None)]
    (race,) = (line for line in summary_cells(rows) if line[0] == "race")
    assert race[1:] == ("+10.0 (+10.0 to +10.0)", "100% (100% to 100%)", "1", "0", "1")


def test_a_sealed_score_is_the_baselines_where_a_system_could_not_run() -> None:
    rows = [row for seed in (0, 1) for row in rows_of("a", seed, BASELINE, sealed=0.4 + seed / 10)]
    rows += [*gain("a", 0, "race", 0.2), *rows_of("a", 1, "race", impossible=None)]
    assert mean_sealed(rows, "a", "race") == pytest.approx((0.6 + 0.5) / 2)
    assert mean_sealed(rows, "a", "auto") is None


shares = st.floats(-1, 1)


@given(st.dictionaries(st.text(max_size=3), st.lists(shares, min_size=1, max_size=3), min_size=1, max_size=4))
def test_a_bootstrapped_interval_is_around_the_mean_and_inside_what_was_seen(gains: Gains) -> None:
    found = over_tasks(gains)
    every = [value for each in gains.values() for value in each]
    slack = 1e-9
    assert found.mean == pytest.approx(sum(sum(each) / len(each) for each in gains.values()) / len(gains), abs=1e-9)
    assert min(every) - slack <= found.low <= found.high <= max(every) + slack
    if len(set(every)) == 1:
        assert found.low == pytest.approx(found.high)


def test_the_bootstrap_draws_tasks_and_then_their_seeds() -> None:
    import numpy as np

    draw = np.random.default_rng(1)
    tasks, seeds, covered = 12, 3, 0
    for _ in range(60):
        gains = {str(task): list(draw.normal(0.1, 0.05) + draw.normal(0, 0.02, seeds)) for task in range(tasks)}
        found = over_tasks(gains)
        covered += found.low <= 0.1 <= found.high
        # The standard error of the mean is 0.05² / 12 + 0.02² / 36, of which the interval has 1.96 on both sides.
        assert 0.03 < found.high - found.low < 0.1
    assert covered >= 50


def test_no_gains_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no gains"):
        over_tasks({})


def test_a_tasks_interval_narrows_with_its_seeds() -> None:
    one, four = [*gain("a", 0, "race", 0.1)], [row for seed in range(4) for row in gain("a", seed, "race", 0.1)]
    assert of_task(one, "a", "race") == pytest.approx((0.1, 0.0, 0.2))
    assert of_task(four, "a", "race") == pytest.approx((0.1, 0.05, 0.15))
    assert of_task(one, "a", "auto") is None


@pytest.mark.parametrize(("race", "met"), [(0.61, True), (0.60, True), (0.59, False), (0.7, True)])
def test_near_the_best_is_within_a_point(race: float, met: bool) -> None:
    assert best_alone(canned()) == ("bootstrap", pytest.approx((0.11, 0.11, 0.11)))
    assert near_best(canned(race), "race").met is met


def test_near_the_best_is_over_all_tasks_and_beside_the_best_of_each() -> None:
    rows = [*canned(0.55, task="a"), *canned(0.66, task="b")]
    rows += gain("a", 0, "labelled", 0.15) + gain("b", 0, "labelled", 0.01)
    assert best_of_each(rows) == pytest.approx((0.15 + 0.11) / 2)
    found = near_best(rows, "race")
    assert found.met is True
    assert found.found == "+10.5, bootstrap +11.0: -0.5 (-6.0 to +5.0); against the best of each task -2.5"
    assert near_best(rows, "auto").met is None
    # A task on which the race was not asked says nothing about it.
    assert near_best([*rows, *gain("c", 0, "bootstrap", 0.9)], "race").found == found.found


def test_below_is_an_interval_over_the_seeds_that_lies_below_0() -> None:
    assert never_below(canned(high=0.11), "race").met is True
    rows = gain("a", 0, "race", -0.08) + gain("b", 0, "race", 0.2)
    assert never_below(rows, "race").met is True
    worse = never_below([*rows, *gain("a", 1, "race", -0.08)], "race")
    assert (worse.met, worse.found) == (False, "worse on a -8.0 (at most -0.9)")
    assert never_below(canned(), "auto").met is None


def test_the_profile_is_held_against_a_medium_budget() -> None:
    assert profile_cost(canned()).met is True
    assert profile_cost(rows_of("a", 0, PROFILE, lm_calls=120)).met is False


def test_the_scripted_task_counts_for_its_own_goal_only() -> None:
    scripted = rows_of(SCRIPTED, 0, "gepa", delta=0.2, low=0.1, high=-0.5, sealed=0.9, lm_calls=290)
    assert goals([*canned(), *scripted])[:-1] == goals(canned())[:-1]
    assert goals([*canned(), *scripted])[-1].met is True
    assert goals(rows_of(SCRIPTED, 0, "gepa", delta=0.2, low=0.0, high=0.4))[-1].met is False


def test_the_tables_show_every_system_and_why_one_could_not_run() -> None:
    lines = {line[2]: line for line in cells(canned())}
    assert list(lines) == [BASELINE, CLASSICAL, "bootstrap", "mipro", "gepa", "race"]
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
    assert lines[CLASSICAL][4] == "30.0 %"
    assert [table.row_count for table in tables(canned())] == [6, 1, 4, 6]
    assert list(task_cells(canned())) == [
        ("minutes", "100", "50.0 %", "30.0 %", "61.0 %", "50.0 %", "50.0 %", "60.0 %")
    ]
    systems = {line[0]: line[1:] for line in summary_cells(canned())}
    assert systems["bootstrap"] == ("+11.0 (+11.0 to +11.0)", "93% (93% to 93%)", "1", "0", "0")
    assert systems["mipro"] == ("+0.0 (+0.0 to +0.0)", "–", "0", "1", "0")
    text = markdown(canned())
    assert "| race | +10.0 (+10.0 to +10.0) | 100% (100% to 100%) | 1 | 0 | 0 |" in text
    assert "| profile: under 10% of a medium budget | met | 2.6% to 2.6% |" in text


def test_the_clock_tells_what_is_through_and_how_long_the_rest_takes(capsys: Any) -> None:
    now = [0.0]
    clock = Clock(5, now=lambda: now[0])
    clock.done(rows_of("a", 0, "race", impossible=None), measured=False)
    now[0] = 100
    clock.done(gain("a", 0, "auto", 0.125) + rows_of("a", 0, "auto", lm_calls=290), measured=True)
    clock.done(gain("a", 0, "mipro", 0.125) + rows_of("a", 0, "mipro", lm_calls=290), measured=False)
    now[0] = 4000
    clock.done(gain("a", 0, "gepa", -0.01) + rows_of("a", 0, "gepa", lm_calls=300), measured=True)
    assert [line.strip() for line in capsys.readouterr().err.splitlines()] == [
        "0 s  1/5  a, seed 0: race impossible; the rest unknown",
        "2 min  2/5  a, seed 0: auto +12.5 points, 290 calls; about 5 min left",
        "2 min  3/5  a, seed 0: mipro +12.5 points, 290 calls, kept; about 3 min left",
        "1 h 07 min  4/5  a, seed 0: gepa -1.0 points, 300 calls; about 33 min left",
    ]
    assert [spell_time(seconds) for seconds in (0, 59, 60, 3600)] == ["0 s", "59 s", "1 min", "1 h 00 min"]


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
    rows = [row for batch in batches for row in batch.rows]
    assert [(batch.system, batch.measured) for batch in batches] == [("", False)] * 3 + [
        ("gepa", True),
        ("poem", False),
    ]
    assert context.connection.model == MODEL
    assert {row["seed"] for row in rows} == {3}
    assert (value_of(rows, SCRIPTED, 3, "gepa", "delta") or 0) > 0.1
    assert (value_of(rows, SCRIPTED, 3, "gepa", "lm_calls") or 999) <= 300
    assert goals(rows)[-1].met is True
    assert INSTRUCTION.split("\n")[0] in str(context.store.read_json(_compiled(context)))
    (poem,) = batches[-1].rows
    assert poem["measure"] == "impossible"
    assert "There is no optimizer 'poem'" in poem["note"]

    asked = len(fake_engine(context.connection).requests)
    again = list(
        measure_context(context, "light", ("gepa", "poem"), Kept(settings.path("kept.jsonl")), said.append, SCRIPTED)
    )
    assert [row for batch in again for row in batch.rows] == rows
    assert not any(batch.measured for batch in again)
    assert len(fake_engine(context.connection).requests) == asked
    assert sum(line.endswith(": gepa") for line in said) == 1
    assert len(list(cells(rows))) == 3


def _compiled(context: Context) -> Any:
    """GEPA's program once more, from the cache of replies."""
    dataset = prepared(context)
    search = SearchInput(program=program_part(context), train=dataset.train, val=dataset.val)
    profile = probe(context, search)
    choice = select(context, SelectInput(**dict(search), profile=profile, optimizer="gepa", budget="light"))
    return compile_step(context, CompileInput(**dict(search), choice=choice, profile=profile)).program


def test_the_command_refuses_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["optimizers", "--tasks", "poem"])
    with pytest.raises(SystemExit):
        command.main()
    assert "invalid choice: 'poem'" in capsys.readouterr().err


@pytest.mark.soak
def test_the_command_measures_writes_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, table = tmp_path / "home", tmp_path / "tables.md"
    given = ["--tasks", SCRIPTED, "--seeds", "0", "1", "--home", str(home), "--markdown", str(table)]
    monkeypatch.setattr(sys, "argv", ["optimizers", *given])
    assert command.main() == 0
    told = capsys.readouterr()
    assert re.search(r"1/2  scripted, seed 0: gepa \+[\d.]+ points, \d+ calls; about", told.err)
    assert re.search(r"2/2  scripted, seed 1: gepa .*; about 0 s left", told.err)
    written = json.loads((home / "optimizers.json").read_text())["results"]
    assert {row["seed"] for row in written["rows"]} == {0, 1}
    assert "| gepa: gains with a scripted reflector, on a scripted model that does as it is told | met |" in (
        table.read_text()
    )

    assert command.main() == 0
    assert capsys.readouterr().err.count(", kept; the rest unknown") == 2
    assert json.loads((home / "optimizers.json").read_text())["results"] == written


def test_what_was_measured_before_ctrl_c_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: Any, home: Path, rows: list[Row]) -> None:
        rows += canned()
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["optimizers", "--tasks", "minutes", "--home", str(tmp_path)])
    monkeypatch.setattr(command, "run", run)
    assert command.main() == 130
    told = capsys.readouterr()
    assert told.err.startswith("Interrupted.")
    assert "+11.0" in told.out
