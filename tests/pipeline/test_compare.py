"""A candidate against the champion: who sees the sealed rows, and what the ledger keeps of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_toolkit.datasets import Dataset, from_records, prepare
from dspy_toolkit.errors import DatasetError, EngineFailed, LedgerError
from dspy_toolkit.gate.ledger import Ledger, Opening
from dspy_toolkit.lm.protocol import GenerationRequest
from dspy_toolkit.metrics import exact_match
from dspy_toolkit.pipeline.compare import LEDGER, Match
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.project import Project
from dspy_toolkit.project.signatures import fields_of
from dspy_toolkit.run import Comparison
from tests.optimizers.toys import HINT, SPEC, Toy, by_instruction, demos_in, program, question, records


class Table:
    """The toy's splits, and the gate before them."""

    def __init__(self, folder: Path) -> None:
        self.toy = Toy(folder)
        self.toy.knows = by_instruction
        self.connection = self.toy.connect()
        self.project = Project(
            name="colours", summary="Colours", program=program, metric=exact_match, dataset=SPEC, reference_rules={}
        )
        frame = from_records(records(90))
        self.dataset: Dataset = prepare(frame, SPEC, fields_of(program()), self.toy.store)

    def texts(self, split: str) -> set[str]:
        return set(self.toy.store.read_frame(getattr(self.dataset, split))["text"])

    def seen(self) -> set[str]:
        """The texts that the model was asked about."""
        from tests.optimizers.toys import engine_of

        return {question(request) for request in engine_of(self.connection).requests}

    def compare(self, candidate: dspy.Module, champion: dspy.Module | None = None, **options: Any) -> Comparison:
        context = Context(options.pop("project", self.project), self.toy.settings, lambda _: self.connection)
        given = {"candidate": candidate, "champion": champion or program(), "dataset": self.dataset, **options}
        return Match(context, **given).decide()

    def openings(self) -> list[Opening]:
        return Ledger(self.toy.settings.path(LEDGER)).openings()


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


def told(text: str = HINT) -> dspy.Module:
    """A candidate with another instruction."""
    made = program()
    made.signature = made.signature.with_instructions(text)
    return made


def test_the_same_prompt_is_unchanged_and_costs_nothing(table: Table) -> None:
    result = table.compare(program())
    assert result.outcome == "unchanged"
    assert (result.candidate_val, result.champion_val, result.sealed, result.reference_rules) == (None, None, None, {})
    assert table.seen() == set()
    assert table.openings() == []


def test_worse_on_validation_is_not_shown_the_sealed_rows(table: Table) -> None:
    result = table.compare(candidate=program(), champion=told())
    assert result.outcome == "refused"
    assert "on validation; the sealed test was not opened" in result.reason
    assert result.candidate_val is not None and result.champion_val is not None
    assert result.candidate_val.mean < result.champion_val.mean == 1.0
    assert result.sealed is None
    assert table.seen() == table.texts("val")
    assert table.openings() == []


def test_a_better_one_is_promoted_and_the_opening_written_down(table: Table) -> None:
    said = []
    result = table.compare(told(), progress=lambda *progress: said.append(progress))
    assert result.outcome == "promoted"
    assert result.sealed is not None
    assert result.sealed.low > 0
    assert result.sealed.candidate.mean == 1.0
    assert result.sealed.candidate.n == len(table.texts("sealed"))
    assert table.seen() == table.texts("val") | table.texts("sealed")
    [opening] = table.openings()
    assert opening.outcome == "promoted"
    assert opening.rows == result.sealed.candidate.rows
    assert opening.grant.project == "colours"
    assert result.sealed.level == 1 - 2 * opening.grant.alpha
    assert {doing for _, _, doing in said} == {
        f"{who} on {split}" for who in ("candidate", "champion") for split in ("val", "sealed")
    }


def test_no_better_on_validation_is_not_shown_the_sealed_rows(table: Table) -> None:
    """Not worse is not enough: each look at the sealed rows costs a part of the rate."""
    result = table.compare(told(f"{HINT} Answer with one word."), told())
    assert result.outcome == "refused"
    assert "is not shown to be better on validation; the sealed test was not opened" in result.reason
    assert result.sealed is None and table.openings() == []


def test_no_worse_and_cheaper_is_shown_them(table: Table) -> None:
    wordy = told(HINT + " Think of what the thing looks like, of its name, and of all that you know of it." * 8)
    result = table.compare(told(), wordy)
    assert result.sealed is not None and result.sealed.tokens_ratio < 0.9
    assert (result.outcome, result.promoted_for) == ("refused", None), "so few rows do not show that no point was lost"


def test_the_anchor_runs_on_the_same_rows(table: Table) -> None:
    """A champion that was promoted for its tokens: what the candidate may lose is counted from before it."""
    result = table.compare(told(), program(), anchor=told(f"{HINT} Answer with one word."))
    assert result.sealed is not None
    assert result.sealed.delta > 0.3 and result.sealed.anchor_delta == 0
    assert (result.outcome, result.promoted_for) == ("promoted", "tokens"), "not shown to be better than the anchor"


def test_where_the_anchor_is_gone_tokens_are_no_reason(table: Table) -> None:
    wordy = told(HINT + " Think of what the thing looks like, of its name, and of all that you know of it." * 8)
    result = table.compare(told(), wordy, cheaper_may=False)
    assert result.outcome == "refused" and table.openings() == []


def test_an_edited_row_is_no_fresh_row(table: Table) -> None:
    """Another label in every row makes other hashes; the ledger knows the texts."""
    first = table.compare(told(f"{HINT} One.")).sealed
    again = [{**row, "text": f" {row['text']}  "} for row in records(90)]
    table.dataset = prepare(from_records(again), SPEC, fields_of(program()), table.toy.store)
    second = table.compare(told(f"{HINT} Two.")).sealed
    assert first is not None and second is not None
    assert (first.looks, second.looks) == (1, 2)


def test_better_on_validation_only_is_refused(table: Table) -> None:
    val = table.texts("val")
    table.toy.knows = lambda request: by_instruction(request) and question(request) in val
    result = table.compare(told())
    assert result.outcome == "refused"
    assert result.reason.startswith("Not shown to be better than the champion")
    assert [opening.outcome for opening in table.openings()] == ["refused"]


def test_only_the_rows_that_chose_the_candidate_are_used_of_val(table: Table) -> None:
    result = table.compare(told(), val_rows=7)
    assert result.candidate_val is not None
    assert result.candidate_val.n == 7


def test_rows_that_a_program_was_tuned_on_are_left_out(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    sealed = table.toy.store.read_frame(table.dataset.sealed)
    tuned = frozenset(sealed["_row"].iloc[:5])
    with caplog.at_level(logging.WARNING):
        result = table.compare(told(), tuned_on=tuned)
    assert "5 sealed rows were used to tune one of the programs; they are left out" in caplog.text
    assert result.sealed is not None
    assert result.sealed.candidate.n == len(sealed) - 5
    kept = table.toy.store.read_frame(result.sealed.candidate.rows)["_row"]
    assert not tuned & set(kept)


def test_no_fresh_row_is_left(table: Table) -> None:
    sealed = table.toy.store.read_frame(table.dataset.sealed)
    with pytest.raises(DatasetError, match="No sealed row is left .* Add fresh labelled rows"):
        table.compare(told(), tuned_on=frozenset(sealed["_row"]))
    assert table.openings() == []


def test_references_are_scored_on_the_same_rows(table: Table) -> None:
    from dataclasses import replace

    def always_red(learn: list[dspy.Example]) -> Any:
        assert {case.text for case in learn} == table.texts("train")
        return lambda case: dspy.Prediction(label="red")

    project = replace(table.project, reference_rules={"always red": always_red})
    result = table.compare(told(), project=project)
    red = (table.toy.store.read_frame(table.dataset.sealed)["label"] == "red").mean()
    assert result.reference_rules == {"always red": pytest.approx(red)}


def test_a_metric_that_asks_the_model_can_score_references_too(table: Table) -> None:
    from dataclasses import replace

    def asks(example: dspy.Example, prediction: dspy.Prediction) -> bool:
        assert dspy.settings.lm.model == table.connection.model
        return exact_match(example, prediction).value == 1

    reference_rules = {"always red": lambda learn: lambda case: dspy.Prediction(label="red")}
    result = table.compare(told(), project=replace(table.project, metric=asks, reference_rules=reference_rules))
    assert 0 < result.reference_rules["always red"] < 1


def test_a_crash_between_grant_and_result_is_not_charged_twice(table: Table) -> None:
    sealed = table.texts("sealed")

    def fail(request: GenerationRequest) -> bool:
        if question(request) in sealed:
            raise EngineFailed("The engine stopped.")
        return by_instruction(request)

    table.toy.knows = fail
    with pytest.raises(EngineFailed):
        table.compare(told())
    [spent] = table.openings()
    assert spent.outcome is None
    table.toy.knows = by_instruction
    assert table.compare(told()).outcome == "promoted"
    [opening] = table.openings()
    assert (opening.grant, opening.outcome) == (spent.grant, "promoted")


def test_the_same_answer_again_is_not_charged(table: Table) -> None:
    """A run that was killed between the ledger's line and its own kept result asks once more."""
    first, again = table.compare(told()), table.compare(told())
    assert (again.outcome, again.reason) == (first.outcome, first.reason)
    assert first.sealed is not None and again.sealed is not None
    assert (again.sealed.delta, again.sealed.low, again.sealed.looks) == (first.sealed.delta, first.sealed.low, 1)
    assert len(table.openings()) == 1


def test_another_answer_to_the_same_question_is_charged(table: Table) -> None:
    first = table.compare(told())
    table.toy.knows = lambda request: by_instruction(request) and len(question(request)) % 7 > 0
    table.connection = table.toy.connect()  # another model, of which no reply is kept
    again = table.compare(told())
    assert first.sealed is not None and again.sealed is not None
    assert again.sealed.delta < first.sealed.delta
    assert (first.sealed.looks, again.sealed.looks) == (1, 2)
    assert len(table.openings()) == 2


def test_another_question_is_a_second_look(table: Table) -> None:
    first, second = (table.compare(told(f"{HINT} {more}")).sealed for more in ("One.", "Two."))
    assert first is not None and second is not None
    assert (first.looks, second.looks) == (1, 2)
    assert second.alpha_left < first.alpha_left


def test_a_damaged_ledger_keeps_the_rows_sealed(table: Table) -> None:
    table.toy.settings.path(LEDGER).write_text("nonsense\n")
    with pytest.raises(LedgerError, match="line 1 is not a line of the ledger"):
        table.compare(told())
    assert not table.seen() & table.texts("sealed")


def test_demonstrations_count_as_a_change(table: Table) -> None:
    shown = program()
    shown.demos = [dspy.Example(text="a lime", label="green")]
    table.toy.knows = lambda request: bool(demos_in(request))
    assert table.compare(shown).outcome == "promoted"
