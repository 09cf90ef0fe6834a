"""The gate is asked again: champions on another model, champions as things are today, and versions that are not live."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.gate.ledger import Ledger
from dspy_toolkit.lm.connection import Connection
from dspy_toolkit.optimizers.states import state_of
from dspy_toolkit.pipeline.compare import LEDGER
from dspy_toolkit.pipeline.reprove import reprove, with_model
from dspy_toolkit.project import load_project
from dspy_toolkit.project.signatures import fields_of, signature_hash
from dspy_toolkit.registry import Manifest, champion, promote, save_version
from dspy_toolkit.registry.verdicts import promote_by_verdict
from dspy_toolkit.settings import LMSettings, Settings
from dspy_toolkit.tracking import runs as tracking
from dspy_toolkit.tracking.history import read_history
from dspy_toolkit.tracking.mlflow_client import session
from tests.optimizers.toys import HINT, Toy, by_instruction, question, records, write_project

Knows = Callable[[Any], bool]


class Day:
    """A project with a champion that says HINT, and two models: today's, and one to move to."""

    def __init__(self, home: Settings, folder: Path) -> None:
        self.place = write_project(folder, records(120))
        self.today, self.other = Toy(home), Toy(home)
        self.today.knows = by_instruction
        self.settings = self.today.settings
        self.connections = {"openai/toy": self.today.connect(), "openai/other": self.other.connect()}
        promote(self.settings, "colours", self.save(HINT))

    def save(self, instructions: str, **fields: Any) -> int:
        program = load_project(str(self.place)).build()
        program.signature = program.signature.with_instructions(instructions)
        manifest = Manifest(
            project="colours", location=str(self.place), optimizer="gepa", model="openai/toy", metric="exact_match",
            signature_fields={name: str(kind) for name, kind in fields_of(program).items()},
            signature_sha256=signature_hash(program), **fields,
        )  # fmt: skip
        run_id = tracking.open_run(self.settings, "colours", "optimize colours")
        return save_version(self.settings, "colours", state_of(program), manifest, run_id)

    def connect(self, settings: Settings) -> Connection:
        return self.connections[settings.lm.model]

    def reprove(self, reference: str = "colours", **options: Any) -> Any:
        return reprove(self.settings, reference, connecting=self.connect, **options)

    def openings(self) -> int:
        return len(Ledger(self.settings.path(LEDGER)).openings())


@pytest.fixture
def day(home: Settings, tmp_path: Path) -> Day:
    return Day(home, tmp_path / "project")


def test_a_champion_on_another_model(day: Day) -> None:
    fell = day.reprove(model="openai/other")
    assert (fell.outcome, fell.version) == ("fell", 1)
    assert fell.evidence.high < 0 and fell.evidence.n > 20
    assert "It is worse: -" in fell.reason
    # The same question again spends nothing more; another answer is another look.
    again = day.reprove(model="openai/other")
    assert (again.evidence, day.openings()) == (fell.evidence, 1)
    day.other.knows = by_instruction
    day.connections["openai/other"] = day.other.connect()
    holds = day.reprove(model="openai/other", tolerance=0.15)
    assert (holds.outcome, holds.evidence.delta) == ("holds", 0.0)
    assert day.openings() == 2
    undecided = day.reprove(model="openai/other", tolerance=0.0)
    assert undecided.outcome == "undecided"
    # Nothing was promoted, and no decision is in the history.
    assert champion(day.settings, "colours").version == 1
    assert read_history(day.settings).runs == ()


def test_a_champion_as_things_are_today(day: Day) -> None:
    assert day.reprove().outcome == "holds"
    day.today.knows = lambda request: True  # a model that needs no instruction any more
    day.connections["openai/toy"] = day.today.connect()
    assert day.reprove().outcome == "undecided"


def test_a_champion_that_is_worse_on_validation_rows_too_fell(day: Day) -> None:
    day.today.knows = lambda request: not by_instruction(request)
    day.connections["openai/toy"] = day.today.connect()
    fell = day.reprove()
    assert (fell.outcome, day.openings()) == ("fell", 1)
    assert fell.evidence.high < 0 and fell.reason.startswith("It is worse: -")


def test_a_champion_that_is_the_projects_own_program_opens_no_sealed_rows(day: Day) -> None:
    promote(day.settings, "colours", day.save("Classify."))
    same = day.reprove()
    assert (same.outcome, same.reason, day.openings()) == ("undecided", "It is the project's own program.", 0)


def test_what_was_scored_when_it_was_made_stands_beside_what_it_scores_now(day: Day) -> None:
    assert day.reprove().score_then is None
    then = {"mean": 1.0, "low": 0.99, "high": 1.0, "n": 24}
    promote(day.settings, "colours", day.save(f"{HINT} Or else.", reports={"comparison": {"candidate": then}}))
    held = day.reprove()
    assert held.outcome == "holds" and held.score_then.model_dump() == then
    assert held.score.n == held.evidence.n and held.note == ""
    day.today.knows = lambda request: by_instruction(request) and "9" not in question(request)
    day.connections["openai/toy"] = day.today.connect()
    lost = day.reprove()
    assert lost.outcome == "holds" and lost.score.mean < 0.99
    assert lost.note.startswith("It scored 1.000 when it was made (0.990 to 1.000), and scores 0.")


def test_a_version_that_is_not_live_gets_a_verdict_that_promotion_obeys(day: Day) -> None:
    day.save("Say something.")
    day.save(f"{HINT} Be at your best.")
    refused = day.reprove("colours@2")
    assert refused.outcome == "refused"
    with pytest.raises(RegistryError, match="colours@2 did not pass the gate"):
        promote_by_verdict(day.settings, "colours@2")
    day.today.knows = lambda request: "at your best" in request.messages[0].content
    day.connections["openai/toy"] = day.today.connect()
    assert day.reprove("colours@3").outcome == "passed"
    assert promote_by_verdict(day.settings, "colours@3").replaced == 1


def test_where_nothing_is_live_a_version_is_compared_with_the_projects_own_program(day: Day) -> None:
    with session(day.settings, "taking the champion away") as mlflow:
        mlflow.delete_registered_model_alias("colours", "champion")
    with pytest.raises(RegistryError, match="never compared"):
        promote_by_verdict(day.settings, "colours@1")
    assert day.reprove("colours@1").outcome == "passed"
    assert promote_by_verdict(day.settings, "colours@1").replaced is None


def test_a_version_is_not_moved_to_another_model(day: Day) -> None:
    day.save("Say something.")
    with pytest.raises(RegistryError, match="is not the champion"):
        day.reprove("colours@2", model="openai/other")


def test_a_key_stays_with_its_provider() -> None:
    settings = Settings(
        lm=LMSettings.model_validate({"model": "openai/a", "api_key": "sk-secret", "api_base": "http://x/v1"})
    )
    assert with_model(settings, "openai/b").lm.api_key is not None
    moved = with_model(settings, "anthropic/c").lm
    assert (moved.model, moved.api_key, moved.api_base) == ("anthropic/c", None, None)
