"""What every earlier toolkit wrote is still read, and brought to today's form without a change of the program."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.registry import find_version, load_version, promote
from dspy_toolkit.registry.fitting import migrate
from dspy_toolkit.registry.manifest import SCHEMA_VERSION, KeptVerdict, Manifest, read_manifest
from dspy_toolkit.registry.migrations import STEPS, migrated, migration
from dspy_toolkit.registry.programs import load_program
from dspy_toolkit.settings import Settings
from tests.conftest import QUESTIONS
from tests.registry.test_manifest import objects

SCHEMAS = Path(__file__).parent / "schemas"


def test_a_sample_of_every_earlier_schema_is_kept_and_has_a_step() -> None:
    earlier = list(range(1, SCHEMA_VERSION))
    assert sorted(STEPS) == earlier
    assert sorted(int(path.name) for path in SCHEMAS.iterdir()) == earlier


@pytest.mark.parametrize("folder", sorted(SCHEMAS.iterdir()), ids=lambda path: path.name)
def test_a_version_of_an_earlier_schema_loads(folder: Path, home: Settings, questions: Path) -> None:
    written = json.loads((folder / "manifest.json").read_text())
    assert written["schema_version"] == int(folder.name)
    loaded = load_program(home, str(folder), str(questions))
    assert loaded.manifest is not None and loaded.manifest.schema_version == SCHEMA_VERSION
    assert loaded.program.predictors()[0].signature.instructions == "Say what the answer is."
    # Everything that was written is still there.
    kept = loaded.manifest.model_dump(mode="json")
    assert {name: kept[name] for name in written if name != "schema_version"} == {
        name: value for name, value in written.items() if name != "schema_version"
    }


def test_the_verdict_of_schema_1_follows_from_its_evidence() -> None:
    seen: dict[str, Any] = json.loads((SCHEMAS / "1" / "manifest.json").read_text())

    def outcome(**evidence: Any) -> str | None:
        reports = {"comparison": {**seen["reports"]["comparison"], **evidence}}
        verdict = migrated({**seen, "reports": reports}, 2)["verdict"]
        return KeptVerdict.model_validate(verdict).outcome if verdict else None

    assert outcome() == "promoted"
    assert outcome(low=-0.02) == "refused"
    assert outcome(low=-0.005, tokens_ratio=0.8) == "promoted"
    assert outcome(low=-0.05, anchor_low=-0.005, tokens_ratio=0.8) == "promoted"
    assert outcome(low=0.0, tokens_ratio=1.0) == "refused"
    assert migrated({**seen, "reports": {}}, 2)["verdict"] is None


@settings(max_examples=60, deadline=None)
@given(reports=objects, optimizer_settings=objects, comparison=objects, rows=st.lists(st.text(max_size=8), max_size=4))
def test_any_manifest_of_schema_1_survives(
    reports: Any, optimizer_settings: Any, comparison: Any, rows: list[str]
) -> None:
    old = json.loads((SCHEMAS / "1" / "manifest.json").read_text())
    old |= {
        "reports": {**reports, "comparison": comparison},
        "optimizer_settings": optimizer_settings,
        "trained_rows": rows,
    }
    before = json.dumps(old)
    manifest = read_manifest(before.encode(), "manifest.json")
    assert (manifest.reports, manifest.optimizer_settings) == (old["reports"], optimizer_settings)
    assert manifest.trained_rows == tuple(rows)
    assert json.dumps(old) == before


def test_a_migration_is_made_once_and_changes_what_it_is_given_not_at_all() -> None:
    with pytest.raises(ValueError, match="two migrations from schema 1"):
        migration(1)(lambda manifest: manifest)
    old = {"schema_version": 1, "project": "x"}
    assert migrated(old, 2)["schema_version"] == 2 and old == {"schema_version": 1, "project": "x"}
    assert migrated({"schema_version": 2}, 2) == {"schema_version": 2}


def as_schema_1(home: Settings, reference: str) -> Path:
    """Make a version's manifest what an earlier toolkit wrote."""
    run_id = find_version(home, reference).run_id
    path = home.path("artifacts", run_id, "artifacts", "program", "manifest.json")
    manifest = json.loads(path.read_text())
    for name in ("verdict", "imported"):
        del manifest[name]
    path.write_text(json.dumps({**manifest, "schema_version": 1}))
    return path


def test_manifests_are_written_anew_once(home: Settings, save_questions: Callable[..., int]) -> None:
    promote(home, "questions", save_questions())
    path = as_schema_1(home, "questions@1")
    program = path.with_name("program.json")
    before = hashlib.sha256(program.read_bytes()).hexdigest()
    (found,) = migrate(home, "questions")
    assert (found.schema_version, found.written, found.state, found.champion) == (1, False, "fits", True)
    assert json.loads(path.read_text())["schema_version"] == 1
    (found,) = migrate(home, "questions", write=True)
    assert found.written and json.loads(path.read_text())["schema_version"] == SCHEMA_VERSION
    assert hashlib.sha256(program.read_bytes()).hexdigest() == before
    (found,) = migrate(home, "questions", write=True)
    assert (found.schema_version, found.written) == (SCHEMA_VERSION, False)
    load_version(home, "questions@1")


@pytest.mark.parametrize(
    ("text", "state", "said"),
    [
        (QUESTIONS, "fits", ""),
        (QUESTIONS.replace('["number", "person"]', '["number", "person", "place"]'), "types changed", "label was Literal"),
        (QUESTIONS.replace("text: str ->", "text: str, hint: str ->").replace('["text"]', '["text", "hint"]'),
         "does not fit", "hint is new"),
        (QUESTIONS.replace("text: str", "query: str").replace('["text"]', '["query"]'), "does not fit",
         "text is gone, query is new. If a field was only renamed"),
        (QUESTIONS.replace("[dataset]", 'module = "chain_of_thought"\n[dataset]'), "does not fit", "reasoning is new"),
    ],
)  # fmt: skip
def test_what_changed_is_said(
    home: Settings, save_questions: Callable[..., int], questions: Path, text: str, state: str, said: str
) -> None:
    save_questions()
    questions.write_text(text)
    (found,) = migrate(home, "questions")
    assert found.state == state
    assert said in found.what


def test_a_field_that_was_renamed_is_read_by_the_projects_map(home: Settings, save_questions, tmp_path: Path) -> None:
    save_questions()
    file = tmp_path / "renamed.py"
    file.write_text(
        "import dspy\nfrom dspy_toolkit import DatasetSpec, Project, exact_match\n"
        "def program():\n"
        "    return dspy.Predict(dspy.Signature(\"query: str -> label: Literal['number', 'person']\"))\n"
        'project = Project(name="questions", summary="", program=program, metric=exact_match,\n'
        '    dataset=DatasetSpec(source="q.csv", inputs=("query",), outputs=("label",)), renames={"text": "query"})\n'
    )
    (found,) = migrate(home, "questions", str(file))
    assert (found.state, found.what) == ("renamed", "text → query")


def test_one_that_cannot_be_read_does_not_hide_the_others(home: Settings, save_questions) -> None:
    save_questions("one")
    save_questions("two")
    run_id = find_version(home, "questions@1").run_id
    shutil.rmtree(home.path("artifacts", run_id, "artifacts", "program"))
    states = [fit.state for fit in migrate(home, "questions")]
    assert states == ["cannot be read", "fits"]


def test_a_project_that_is_gone_is_said(home: Settings, save_questions, questions: Path) -> None:
    save_questions()
    questions.unlink()
    (found,) = migrate(home, "questions")
    assert found.state == "no project" and "--project" in found.what


def test_a_later_schema_is_refused() -> None:
    later = {"schema_version": SCHEMA_VERSION + 1}
    with pytest.raises(RegistryError, match="reads up to"):
        read_manifest(json.dumps(later).encode(), "manifest.json")
    assert Manifest.model_fields["schema_version"].default == SCHEMA_VERSION
