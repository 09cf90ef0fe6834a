"""A version whose program chooses demonstrations among rows holds them, and brings them to a home that lacks them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_toolkit.errors import ProgramError, RegistryError
from dspy_toolkit.lm.levers import pull
from dspy_toolkit.lm.neighbors import NeighborRow, NeighborRows
from dspy_toolkit.optimizers.states import state_of
from dspy_toolkit.registry import Manifest, find_version, load_version, save_version
from dspy_toolkit.registry.programs import load_program
from dspy_toolkit.settings import Settings
from dspy_toolkit.store import Ref, Store
from dspy_toolkit.testing import fake_connection, fake_engine
from dspy_toolkit.tracking import runs as tracking

ROWS = NeighborRows(
    rows=tuple(NeighborRow(values={"request": f"tune {n}", "project": "lora"}, tokens=5) for n in range(4))
)


def saved(home: Settings, **changes: Any) -> tuple[Ref, Path]:
    """(the rows, the folder of version 1 of the router)."""
    ref = Store(home.objects).save_json(ROWS)
    program = dspy.Predict("request -> project")
    pull(program, neighbors={"rows": ref.sha256, "of": 4, "count": 2, "tokens": 100, **changes})
    manifest = Manifest(
        project="router", optimizer="knn", model="mlx/tiny@11111111", metric="exact_match",
        signature_fields={"request": "str", "project": "str"}, signature_sha256="0" * 64,
    )  # fmt: skip
    run_id = tracking.open_run(home, "router", "optimize router")
    assert save_version(home, "router", state_of(program), manifest, run_id) == 1
    return ref, home.path("artifacts", find_version(home, "router@1").run_id, "artifacts", "program")


@pytest.mark.soak
def test_another_process_in_another_home_has_the_rows_with_the_version(home: Settings, tmp_path: Path) -> None:
    ref, folder = saved(home)
    bundle = shutil.copytree(folder, tmp_path / "bundle")
    project = tmp_path / "router.py"
    project.write_text(
        "import dspy\nfrom dspy_toolkit import DatasetSpec, Project, exact_match\n"
        "project = Project(name='router', summary='s', program=lambda: dspy.Predict('request -> project'),\n"
        "    dataset=DatasetSpec(source='x.csv', inputs=('request',), outputs=('project',)), metric=exact_match)\n"
    )
    script = f"""
from dspy_toolkit.registry.programs import load_program
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import fake_connection, fake_engine
settings = Settings(home={str(tmp_path / "other")!r})
program = load_program(settings, {str(bundle)!r}, {str(project)!r}).program
connection = fake_connection(lambda request: "[[ ## project ## ]]\\nlora\\n\\n[[ ## completed ## ]]", settings)
with connection.context():
    program(request="tune 3")
print([turn.content for turn in fake_engine(connection).requests[0].messages if turn.role == "user"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "tune 0" in done.stdout and done.stdout.count("tune 3") == 1
    assert Store(Settings(home=tmp_path / "other").objects).exists(ref)


def test_lost_rows_are_taken_from_the_version(home: Settings) -> None:
    ref, _ = saved(home)
    store = Store(home.objects)
    store.delete(ref)
    load_version(home, "router@1")
    assert store.read_json(ref) == ROWS.model_dump(mode="json")


def test_a_version_without_its_rows_or_with_others_is_refused(home: Settings, tmp_path: Path) -> None:
    ref, folder = saved(home)
    bundle = shutil.copytree(folder, tmp_path / "bundle")
    file = bundle / "rows" / f"{ref.sha256}.json"
    other = Settings(home=tmp_path / "other")
    file.write_bytes(file.read_bytes().replace(b"lora", b"clip"))
    with pytest.raises(RegistryError, match=rf"{ref.sha256[:8]}.*damaged or changed"):
        load_version(other, str(bundle))
    file.unlink()
    with pytest.raises(RegistryError, match=rf"{ref.sha256[:8]}.*neither its files nor the store"):
        load_version(other, str(bundle))
    assert not Store(other.objects).exists(ref)


def test_a_program_whose_rows_are_gone_is_not_saved_by_halves(home: Settings) -> None:
    program = dspy.Predict("request -> project")
    pull(program, neighbors={"rows": "b" * 64, "of": 4, "count": 2, "tokens": 100})
    manifest = Manifest(
        project="router", optimizer="knn", model="mlx/tiny@11111111", metric="exact_match",
        signature_fields={"request": "str", "project": "str"}, signature_sha256="0" * 64,
    )  # fmt: skip
    run_id = tracking.open_run(home, "router", "optimize router")
    with pytest.raises(RegistryError, match=r"bbbbbbbb.*cannot be saved whole"):
        save_version(home, "router", state_of(program), manifest, run_id)


def test_a_state_that_says_no_hash_is_refused(home: Settings) -> None:
    state = state_of(dspy.Predict("request -> project")) | {"neighbors": {"rows": "../../x", "of": 1}}
    from dspy_toolkit.registry.parts import bring_parts

    with pytest.raises(ProgramError, match="neighbors"):
        bring_parts(state, home.path(), "it", home)


def test_a_field_that_was_renamed_since_is_noted(home: Settings, tmp_path: Path) -> None:
    _, folder = saved(home)
    project = tmp_path / "router.py"
    project.write_text(
        "import dspy\nfrom dspy_toolkit import DatasetSpec, Project, exact_match\n"
        "project = Project(name='router', summary='s', program=lambda: dspy.Predict('question -> project'),\n"
        "    dataset=DatasetSpec(source='x.csv', inputs=('question',), outputs=('project',)), metric=exact_match,\n"
        "    renames={'request': 'question'})\n"
    )
    program = load_program(home, str(folder), str(project)).program
    assert program.neighbors["fields"] == {"request": "question"}  # pyright: ignore[reportAttributeAccessIssue]


def test_the_rows_of_an_ensembles_members_travel_and_its_fields_are_renamed(home: Settings, tmp_path: Path) -> None:
    ref = Store(home.objects).save_json(ROWS)
    program = dspy.Predict("request -> project")
    near = {"rows": ref.sha256, "of": 4, "count": 2, "tokens": 100}
    members = [
        {"instructions": "One.", "demos": [{"request": "a", "project": "b"}]},
        {"instructions": "Two.", "neighbors": near},
    ]
    pull(program, ensemble={"rule": "majority", "members": members})
    manifest = Manifest(
        project="router", optimizer="race", model="mlx/tiny@11111111", metric="exact_match",
        signature_fields={"request": "str", "project": "str"}, signature_sha256="0" * 64,
    )  # fmt: skip
    run_id = tracking.open_run(home, "router", "optimize router")
    save_version(home, "router", state_of(program), manifest, run_id)
    folder = home.path("artifacts", run_id, "artifacts", "program")
    other = Settings(home=tmp_path / "other")
    project = tmp_path / "router.py"
    project.write_text(
        "import dspy\nfrom dspy_toolkit import DatasetSpec, Project, exact_match\n"
        "project = Project(name='router', summary='s', program=lambda: dspy.Predict('question -> project'),\n"
        "    dataset=DatasetSpec(source='x.csv', inputs=('question',), outputs=('project',)), metric=exact_match,\n"
        "    renames={'request': 'question'})\n"
    )
    loaded = load_program(other, str(folder), str(project)).program
    assert Store(other.objects).exists(ref)
    one, two = loaded.ensemble["members"]  # pyright: ignore[reportAttributeAccessIssue]
    assert one["demos"] == [{"question": "a", "project": "b"}]
    assert two["neighbors"]["fields"] == {"request": "question"}
    connection = fake_connection(lambda request: "[[ ## project ## ]]\nlora\n\n[[ ## completed ## ]]", other)
    with connection.context():
        assert loaded(question="tune 3").project == "lora"
    asked = fake_engine(connection).requests
    assert [len(each.messages) for each in asked] == [4, 6]
