"""A start from another program: what of it fits, how it enters the search, and what its rows may not test."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest

from dspy_toolkit.errors import ProjectError, RegistryError
from dspy_toolkit.lm.levers import pull
from dspy_toolkit.lm.neighbors import NeighborRow, NeighborRows
from dspy_toolkit.optimizers.generators.transfer import transfer
from dspy_toolkit.optimizers.problem import Start
from dspy_toolkit.optimizers.states import prompt_of, state_of
from dspy_toolkit.pipeline.release import manifest_of
from dspy_toolkit.pipeline.source import find_start
from dspy_toolkit.project import StartPart
from dspy_toolkit.project.signatures import fields_of, signature_hash
from dspy_toolkit.registry import Manifest, find_version, promote, save_version
from dspy_toolkit.registry.programs import load_program
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking.history import read_history
from dspy_toolkit.tracking.runs import open_run
from tests.optimizers.benches import Bench
from tests.optimizers.toys import (
    HINT,
    TOML,
    Colour,
    Toy,
    by_demos,
    by_instruction,
    choice,
    program,
    records,
    write_project,
)

SHOWN = [{"text": "a lime 1", "label": "green"}, {"text": "a whale 2", "label": "blue"}]


def told(text: str = HINT, demos: list[dict[str, Any]] = SHOWN, made: dspy.Module | None = None) -> dspy.Module:
    """A program somebody has optimized."""
    made = made or program()
    for predictor in made.predictors():
        predictor.signature = predictor.signature.with_instructions(text)
        predictor.demos = [dspy.Example(augmented=True, **demo) for demo in demos]
    return made


class Steps(dspy.Module):
    """Two predictors whose names and fields differ."""

    def __init__(self, **predictors: str | type[dspy.Signature]) -> None:
        super().__init__()
        for name, signature in predictors.items():
            setattr(self, name, dspy.Predict(signature))


class TestWhatFits:
    """`carry`, with no model."""

    def test_instructions_and_demonstrations_come_over(self) -> None:
        own, other = program(), told()
        before = prompt_of(own), prompt_of(other)
        carried = transfer(own, other, "tones@1")
        assert carried.signature.instructions == HINT
        assert carried.demos == SHOWN, "nothing but the fields of the signature"
        assert (prompt_of(own), prompt_of(other)) == before

    def test_the_same_name_goes_before_another_that_fits(self) -> None:
        own = Steps(first="text -> label", second="label -> sure: bool")
        other = Steps(zeroth="text -> label", first="text -> label", other="label -> sure: bool")
        for name in ("zeroth", "first", "other"):
            predictor = getattr(other, name)
            predictor.signature = predictor.signature.with_instructions(f"From {name}.")
        carried = transfer(own, other, "other@1")
        assert carried.first.signature.instructions == "From first."
        assert carried.second.signature.instructions == "From other.", "the only one that fits"

    def test_of_several_that_fit_none_is_taken(self) -> None:
        other = Steps(one="text -> label", two="text -> label")
        with pytest.raises(ProjectError, match="No predictor of other@1 fits"):
            transfer(program(), other, "other@1")

    def test_reasoning_is_no_part_of_the_fit(self) -> None:
        reasons = [{"reasoning": "limes are", **SHOWN[0]}, SHOWN[1]]
        thinking = dspy.ChainOfThought(Colour)
        assert transfer(program(), told(demos=reasons, made=thinking), "x@1").demos == SHOWN
        carried = transfer(dspy.ChainOfThought(Colour), told(demos=reasons, made=thinking), "x@1")
        assert carried.predictors()[0].demos == [{"reasoning": "limes are", **SHOWN[0]}, SHOWN[1]]
        assert transfer(dspy.ChainOfThought(Colour), told(), "x@1").predictors()[0].demos == SHOWN

    def test_renamed_fields_are_found_under_their_new_names(self) -> None:
        old = dspy.Predict(dspy.Signature("thing: str -> label: str", HINT))
        old.demos = [dspy.Example(thing="a lime 1", label="green")]
        with pytest.raises(ProjectError, match="thing -> label; here: text -> label"):
            transfer(program(), old, "old@1")
        carried = transfer(program(), old, "old@1", {"thing": "text"})
        assert carried.signature.instructions == HINT
        assert carried.demos == [{"text": "a lime 1", "label": "green"}]

    @pytest.mark.parametrize("bad", [{"text": "a rose", "label": "pink"}, {"text": "a rose"}, {"label": "red"}])
    def test_a_demonstration_that_does_not_fit_stays_behind(
        self, bad: dict[str, str], caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            carried = transfer(program(), told(demos=[SHOWN[0], bad]), "tones@1")
        assert carried.demos == SHOWN[:1]
        assert "1 of 2 demonstrations of tones@1 do not fit the fields here" in caplog.text

    def test_nothing_fits_lists_both_sides(self) -> None:
        other = Steps(one="question -> answer", two="answer -> sure: bool")
        with pytest.raises(ProjectError) as caught:
            transfer(program(), other, "quiz@2")
        assert str(caught.value) == (
            "No predictor of quiz@2 fits this program. Its fields: question -> answer; answer -> sure; here: "
            "text -> label. Start from another program, or note renamed fields in Project.renames."
        )

    def test_what_was_carried_over_survives_the_store(self, toy: Toy) -> None:
        from dspy_toolkit.optimizers.states import fill

        carried = transfer(program(), told(), "tones@1")
        kept = toy.store.read_json(toy.store.save_json(state_of(carried)))
        assert prompt_of(fill(program(), kept)) == prompt_of(carried)


@pytest.mark.parametrize("optimizer", ["bootstrap", "mipro", "gepa"])
class TestSearching:
    """A start beside the baseline, in each optimizer."""

    def test_a_better_start_is_scored_second_and_searched_from(self, toy: Toy, optimizer: str) -> None:
        toy.knows = by_instruction
        toy.instruction = "Answer with a word."
        compiled = toy.compile(choice(optimizer, 300), starts=(Start(told(demos=[]), "from tones@1"),))
        labels = [trial.label for trial in compiled.trials]
        assert labels[:2] == ["baseline", "from tones@1"]
        assert compiled.trials[1].val_mean == compiled.val_mean == 1.0
        assert compiled.changed
        assert HINT in json.dumps(toy.state(compiled))
        assert compiled.usage.lm_calls <= 300

    def test_a_worse_start_is_one_candidate_and_no_more(self, toy: Toy, optimizer: str) -> None:
        toy.knows = lambda request: "Classify." in request.messages[0].content or by_demos(request)
        toy.val = toy.val.iloc[:12]
        start = Start(told("Guess.", demos=[]), "from tones@1")
        compiled = toy.compile(choice(optimizer, 300, val=12), starts=(start,))
        unchanged, started = compiled.trials[:2]
        assert (unchanged.label, started.label) == ("baseline", "from tones@1")
        assert started.val_mean < unchanged.val_mean == 1.0
        assert not compiled.changed
        assert compiled.val_baseline == 1.0

    def test_a_start_that_is_the_program_itself_is_not_scored(self, toy: Toy, optimizer: str) -> None:
        alone = toy.compile(choice(optimizer, 120), toy.connect(model="mlx/fake@same"))
        beside = toy.compile(
            choice(optimizer, 120), toy.connect(model="mlx/fake@same"), starts=(Start(program(), "from colours@1"),)
        )
        assert [(trial.label, trial.val_mean, trial.lm_calls) for trial in beside.trials] == [
            (trial.label, trial.val_mean, trial.lm_calls) for trial in alone.trials
        ]

    def test_the_budget_holds(self, toy: Toy, optimizer: str) -> None:
        toy.knows = by_instruction
        short = choice(optimizer, 300).model_copy(update={"lm_calls": 30})
        compiled = toy.compile(short, starts=(Start(told(demos=[]), "from tones@1"),))
        assert compiled.usage.lm_calls <= 30
        assert len(compiled.trials) <= 2


class Shared(Bench):
    """The toy's project beside another, `tones`, of which a version is saved."""

    def __init__(self, home: Settings, folder: Path) -> None:
        super().__init__(home, folder)
        self.toy.instruction = "Answer with a word."
        self.other = write_project(folder / "tones", records(30), TOML.replace('"colours"', '"tones"', 1))

    def start(self, reference: str) -> StartPart:
        context = self.context()
        return find_start(reference, context.project, context.settings, context.store)

    def save(self, made: dspy.Module | None = None, rows: tuple[str, ...] = (), project: str = "tones") -> int:
        made = made or told(demos=[])
        manifest = Manifest(
            project=project,
            location=str(self.other) if project == "tones" else self.location,
            signature_fields={name: str(kind) for name, kind in fields_of(made).items()},
            signature_sha256=signature_hash(made),
            optimizer="gepa",
            model="openai/toy",
            trained_rows=rows,
            metric="exact_match",
        )
        settings = self.toy.settings
        return save_version(settings, project, state_of(made), manifest, open_run(settings, project, "a version"))


@pytest.fixture
def shared(home: Settings, tmp_path: Path) -> Shared:
    return Shared(home, tmp_path / "project")


def test_a_start_is_a_part_of_its_own_looked_up_once(shared: Shared) -> None:
    settings = shared.toy.settings
    promote(settings, "tones", shared.save(rows=("b", "a")))
    plain, ref = shared.resolve(), shared.resolve("tones@champion")
    assert ref.model_copy(update={"start": None}) == plain
    assert ref.start is not None
    assert ref.start.name == "tones@1"
    assert shared.toy.store.read_json(ref.start.trained_rows) == ["a", "b"]
    assert shared.toy.store.read_json(ref.start.state)["signature"]["instructions"] == HINT
    for same in ("tones@1", str(shared.other)):
        assert shared.resolve(same) == ref
    promote(settings, "tones", shared.save(told("Another.")))
    moved = shared.resolve("tones@champion").start
    assert moved is not None
    assert moved.name == "tones@2"
    assert moved.state != ref.start.state


def test_a_projects_own_program_can_be_started_from(shared: Shared) -> None:
    assert shared.start(str(shared.other)).name == "tones"


def test_a_folder_can_be_started_from_whose_project_is_not_here(shared: Shared, tmp_path: Path) -> None:
    from mlflow.artifacts import download_artifacts

    shared.save()
    settings = shared.toy.settings
    found = find_version(settings, "tones@1")
    folder = download_artifacts(
        artifact_uri=f"runs:/{found.run_id}/program", dst_path=str(tmp_path), tracking_uri=settings.tracking_uri
    )
    start = shared.start(folder)
    assert start.name == f"tones@sha256:{found.program_sha256[:12]}"
    assert start.state == shared.start("tones@1").state


@pytest.mark.parametrize(
    ("reference", "kind", "message"),
    [
        ("tones@7", RegistryError, "No version 7 of tones; it has 1"),
        ("tomes@1", RegistryError, "Did you mean tones"),
        ("tones@champoin", RegistryError, "no alias 'champoin'"),
        ("no/such/folder", ProjectError, "no/such/folder"),
    ],
)
def test_a_start_that_is_not_there(shared: Shared, reference: str, kind: type[Exception], message: str) -> None:
    shared.save()
    with pytest.raises(kind, match=message):
        shared.resolve(reference)


def test_a_whole_run_from_another_projects_program(shared: Shared) -> None:
    shared.save(rows=("elsewhere",))
    run, _ = shared.whole(optimizer="bootstrap", start="tones@1")
    decision = run.decision
    assert decision.outcome == "promoted", decision.reason
    assert [trial.label for trial in run.compiled.trials[:2]] == ["baseline", "from tones@1"]
    manifest = load_program(shared.toy.settings, "colours@champion").manifest
    assert manifest is not None
    assert manifest.parent == "tones@1"
    assert "elsewhere" in manifest.trained_rows
    shared.whole(optimizer="bootstrap")
    without, started = read_history(shared.toy.settings).runs
    assert (started.start, without.start) == ("tones@1", "")
    assert started.search != without.search


def test_a_version_of_the_same_project_is_a_parent_by_its_number(shared: Shared) -> None:
    shared.save(project="colours")
    run = shared.find(optimizer="bootstrap", start="colours@1")
    assert manifest_of(shared.context(), run).parent == 1


def test_rows_that_the_start_was_tuned_on_test_nothing(shared: Shared, caplog: pytest.LogCaptureFixture) -> None:
    _, data, _ = shared.begin()
    sealed = shared.toy.store.read_frame(data.sealed)
    tuned, shown = [str(row) for row in sealed["_row"].iloc[:4]], sealed.iloc[5]
    demo = {"text": shown["text"], "label": shown["label"]}
    shared.save(told(demos=[demo]), rows=tuple(tuned))
    with caplog.at_level(logging.WARNING):
        run = shared.find(optimizer="bootstrap", start="tones@1")
    assert "5 sealed rows were used to tune one of the programs; they are left out" in caplog.text
    comparison = run.comparison.sealed
    assert comparison is not None
    tested = set(shared.toy.store.read_frame(comparison.candidate.rows)["_row"])
    left_out = {*tuned, str(shown["_row"])}
    assert tested == set(sealed["_row"]) - left_out
    assert left_out <= set(manifest_of(shared.context(), run).trained_rows), "nor any descendant"


def test_rows_among_which_the_start_chooses_demonstrations_test_nothing(shared: Shared) -> None:
    _, data, _ = shared.begin()
    sealed, store = shared.toy.store.read_frame(data.sealed), shared.toy.store
    shown = sealed.iloc[3]
    kept = NeighborRows(
        rows=(NeighborRow(values={"text": shown["text"], "label": shown["label"]}, group="g", tokens=9),)
    )
    given = told(demos=[])
    pull(given, neighbors={"rows": store.save_json(kept).sha256, "of": 1, "count": 1, "tokens": 100})
    shared.save(given)
    run = shared.find(optimizer="labelled", start="tones@1", budget="80")
    comparison = run.comparison.sealed
    assert comparison is not None
    tested = set(store.read_frame(comparison.candidate.rows)["_row"])
    assert tested == set(sealed["_row"]) - {str(shown["_row"])}


def test_rows_of_another_home_stay_behind(toy: Toy, caplog: pytest.LogCaptureFixture) -> None:
    from dspy_toolkit import optimize

    given = told(demos=[])
    pull(given, neighbors={"rows": "c" * 64, "of": 1, "count": 1, "tokens": 100})
    with caplog.at_level(logging.WARNING):
        result = optimize(
            program(), records(110), optimizer="labelled", budget="60", start=given, settings=toy.settings,
            connection=toy.connect(),
        )  # fmt: skip
    assert "not in this home, and stay behind" in caplog.text
    assert result.compiled.trials[1].label == "from the given program"


def test_from_python(toy: Toy) -> None:
    from dspy_toolkit import optimize

    connection = toy.connect()
    toy.knows, toy.instruction = by_instruction, "Answer with a word."
    given = told(demos=[])
    result = optimize(
        program(), records(110), optimizer="bootstrap", start=given, settings=toy.settings, connection=connection
    )
    assert result.improved
    assert [trial.label for trial in result.compiled.trials[:2]] == ["baseline", "from the given program"]
    assert result.program.signature.instructions == HINT
    with pytest.raises(ProjectError, match="No predictor of the given program fits"):
        optimize(
            program(),
            records(110),
            start=dspy.Predict("question -> answer"),
            settings=toy.settings,
            connection=connection,
        )
    with pytest.raises(RegistryError, match="The registry has no program of 'tones'"):
        optimize(program(), records(110), start="tones@1", settings=toy.settings, connection=connection)


def test_another_choice_of_labels_gives_its_instructions_alone() -> None:
    class Spam(dspy.Signature):
        """Sort."""

        text: str = dspy.InputField()
        label: Literal["spam", "ham"] = dspy.OutputField()

    other = dspy.Predict(Spam)
    other.demos = [dspy.Example(text="win a prize", label="spam")]
    carried = transfer(program(), other, "mail@1")
    assert (carried.signature.instructions, carried.demos) == ("Sort.", [])
